"""A training run whose reward is served elsewhere is the run whose reward is in its own process."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rewards.registry import BUILDERS
from t2i_rl.cli import main
from tests.conftest import random_janus
from tests.rewards.servers import serving
from tests.t2i_rl.small_runs import Brightness, train_words


def test_one_flag_moves_the_reward_to_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(BUILDERS, "brightness", lambda device: Brightness())
    model = tmp_path / "model"
    random_janus().save(model)
    assert main(train_words(model, tmp_path / "here", "cfg", "--steps", "2")) == 0
    with serving(Brightness(), "brightness") as one, serving(Brightness(), "brightness") as two:
        assert (
            main(train_words(model, tmp_path / "there", "cfg", "--steps", "2", "--reward", f"brightness@{one},{two}"))
            == 0
        )
    here, there = (
        [
            {name: value for name, value in json.loads(line).items() if "second" not in name}
            for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        ]
        for run in ("here", "there")
    )
    assert here == there and len({row["reward"] for row in here if "reward" in row}) > 1
    weights = [load_file(tmp_path / run / "checkpoints/step-000002/model.safetensors") for run in ("here", "there")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_run_without_servers_ends_before_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = tmp_path / "model"
    random_janus().save(model)
    words = train_words(
        model, tmp_path / "run", "cfg", "--reward", "shapes@http://127.0.0.1:9", "--prompts", "shapes:train"
    )
    capsys.readouterr()  # the model was written
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "no server of 'shapes' answers at http://127.0.0.1:9" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
