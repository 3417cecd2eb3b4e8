"""Checkpoints: whole or not there, the newest and the best stay, a full disk costs nothing that was."""

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from t2i_rl.errors import UserError
from t2i_rl.outputs import write_atomically
from t2i_rl.training import checkpoints, optimizer_files
from tests.t2i_rl.training.runs import OPTIMIZER, held_by, stepped

SETTINGS = {"method": "cfg", "update.learning_rate": 1e-3}
HISTORY = {"a photo of a ring": {"count": 3.0, "mean": 0.1, "squares": 1 / 3}}


@pytest.fixture
def optimizer() -> torch.optim.Optimizer:
    return stepped(4)


def save_weights(path: Path) -> None:
    save_file({"weight": torch.ones(20_000)}, path / "model.safetensors")


def save(folder: Path, step: int, optimizer: torch.optim.Optimizer) -> Path:
    def write(aside: Path) -> None:
        save_weights(aside)
        optimizer_files.save(aside, held_by(optimizer), optimizer)

    return checkpoints.save(folder, step, write, SETTINGS, HISTORY)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_comes_back(tmp_path: Path, optimizer: torch.optim.Optimizer):
    saved = save(tmp_path, 20, optimizer)
    assert names(tmp_path) == ["step-000020"]
    assert names(saved) == ["complete.json", "model.safetensors", OPTIMIZER]
    assert checkpoints.read(saved) == checkpoints.Inventory(20, SETTINGS, HISTORY)
    again = stepped(4)
    again.state.clear()
    optimizer_files.load(saved, held_by(again), again)
    (state,), (wanted,) = again.state.values(), optimizer.state.values()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


def test_what_a_killed_run_left_aside_is_removed(tmp_path: Path, optimizer: torch.optim.Optimizer):
    (tmp_path / ".step-000003.new").mkdir()
    (tmp_path / ".step-000003.new" / "model.safetensors").write_bytes(b"half")
    save(tmp_path, 4, optimizer)
    assert names(tmp_path) == ["step-000004"]


def test_order_is_by_number_and_other_folders_do_not_count(tmp_path: Path):
    for name in ("step-1000000", "step-999999", "step-000002", "step-000003-copy", ".step-2000000.new"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-000009").write_text("a file")
    assert [path.name for path in checkpoints.complete(tmp_path)] == ["step-000002", "step-999999", "step-1000000"]
    assert checkpoints.latest(tmp_path) == tmp_path / "step-1000000"
    assert checkpoints.latest(tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("keep_last", "best", "left"),
    [(1, None, [5]), (2, None, [4, 5]), (2, 1, [1, 4, 5]), (1, 5, [5]), (9, 2, [1, 2, 3, 4, 5]), (2, 77, [4, 5])],
)
def test_the_newest_and_the_best_are_kept(tmp_path: Path, keep_last: int, best: int | None, left: list[int]):
    for step in range(1, 6):
        checkpoints.at_step(tmp_path, step).mkdir()
    checkpoints.prune(tmp_path, keep_last, best)
    assert names(tmp_path) == [f"step-{step:06d}" for step in left]


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Writing fails beyond this many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_the_first_survives(folder: Path, first: Path, before: dict[Path, bytes], error: UserError) -> None:
    assert f"--resume goes on from {first}" in str(error) and "\n" not in str(error)
    assert names(folder) == [first.name]
    assert before == {path: path.read_bytes() for path in first.iterdir()}


@pytest.mark.parametrize("size", [10_000, 100_000], ids=["weights", "optimizer"])
def test_a_full_disk(tmp_path: Path, size: int):
    """safetensors and torch each have an error of their own for it."""
    optimizer = stepped(200)
    first = save(tmp_path, 1, optimizer)
    before = {path: path.read_bytes() for path in first.iterdir()}
    with pytest.raises(UserError, match="the checkpoint of step 2 cannot be written") as caught, no_file_above(size):
        save(tmp_path, 2, optimizer)
    assert_the_first_survives(tmp_path, first, before, caught.value)


def test_a_disk_that_fills_up_at_the_end(
    tmp_path: Path, optimizer: torch.optim.Optimizer, monkeypatch: pytest.MonkeyPatch
):
    first = save(tmp_path, 1, optimizer)
    before = {path: path.read_bytes() for path in first.iterdir()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device") as caught:
        save(tmp_path, 2, optimizer)
    assert_the_first_survives(tmp_path, first, before, caught.value)


def test_a_full_disk_at_the_first_checkpoint(tmp_path: Path, optimizer: torch.optim.Optimizer):
    with pytest.raises(UserError, match="--resume begins the run anew"), no_file_above(10_000):
        save(tmp_path, 1, optimizer)
    assert not names(tmp_path)


@pytest.mark.parametrize(
    "inventory",
    [
        None,
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"step": 1e999, "settings": {}, "history": {}, "files": {}}',
        '{"step": 1, "files": {}}',
        '{"step": "x", "settings": {}, "files": {}}',
        "\x00",
    ],
)
def test_a_folder_that_is_not_ours(tmp_path: Path, inventory: str | None):
    if inventory is not None:
        (tmp_path / checkpoints.INVENTORY).write_text(inventory)
    with pytest.raises(UserError, match="is not a checkpoint of ours"):
        checkpoints.read(tmp_path)


def test_a_torn_checkpoint(tmp_path: Path, optimizer: torch.optim.Optimizer):
    saved = save(tmp_path, 1, optimizer)
    os.truncate(saved / OPTIMIZER, 10)
    with pytest.raises(UserError, match=r"is torn, for optimizer\S+ has 10 bytes instead of"):
        checkpoints.read(saved)
    (saved / OPTIMIZER).unlink()
    with pytest.raises(UserError, match=r"is torn, for optimizer\S+ is missing"):
        checkpoints.read(saved)


def test_small_files_are_replaced_in_one_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "best.json"
    write_atomically(path, json.dumps({"step": 1}))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, json.dumps({"step": 2}))
    assert json.loads(path.read_text()) == {"step": 1}
