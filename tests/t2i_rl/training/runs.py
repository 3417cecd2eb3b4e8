"""What tests of run folders share: what a run holds, and copies of one to spoil."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from t2i_rl.cli import main
from t2i_rl.training import checkpoints
from t2i_rl.training.announcements import LOADING

OPTIMIZER = "optimizer-00001-of-00001.safetensors"


def without_time(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer moments by name."""
    return load_file(checkpoint / OPTIMIZER) | load_file(checkpoint / "model.safetensors")


def held_by(optimizer: torch.optim.Optimizer, part: int = 0, parts: int = 1) -> Any:
    """What a process holds of weights of which there is one."""
    (parameter,) = getattr(optimizer, "weights", optimizer.param_groups[0]["params"])
    policy = SimpleNamespace(module=torch.nn.ParameterDict({"weight": parameter}))
    return SimpleNamespace(policy=policy, trained=policy, part=part, parts=parts, copy=0)


def stepped(size: int, times: int = 1) -> torch.optim.Optimizer:
    parameter = torch.nn.Parameter(torch.ones(size, size))
    optimizer = torch.optim.AdamW([parameter])
    for _ in range(times):
        parameter.square().sum().backward()
        optimizer.step()
    return optimizer


def listing(run: Path) -> list[str]:
    files = (str(path.relative_to(run)) for path in run.rglob("*"))
    return sorted(path for path in files if not path.startswith("tensorboard/"))


def assert_same_run(run: Path, other: Path) -> None:
    assert listing(run) == listing(other)
    assert without_time(run) == without_time(other)
    assert (run / "best.json").read_text() == (other / "best.json").read_text()
    for checkpoint in checkpoints.complete(run / "checkpoints"):
        found, wanted = state(checkpoint), state(other / "checkpoints" / checkpoint.name)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    for picture in (run / "samples").iterdir():
        assert picture.read_bytes() == (other / "samples" / picture.name).read_bytes()


def copied(run: Path, to: Path) -> Path:
    return shutil.copytree(run, to / "run")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The sentence with which the command line refuses, after checking that it is one."""
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("t2i-rl: ") and captured.err.count("\n") == 1
    assert not captured.out or captured.out.splitlines()[-1] == LOADING  # what was about to be done when it was refused
    return captured.err
