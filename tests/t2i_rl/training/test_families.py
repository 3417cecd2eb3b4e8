"""Every model family through every command, from a tiny random checkpoint in the layout that is released."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Int, UInt8
from numpy import ndarray
from torch import Tensor

from models.policy import Policy
from models.registry import load
from rewards.catalogue import REWARDS, RewardEntry
from rewards.reward import Scores
from t2i_rl.cli import main
from tests.conftest import random_janus
from tests.models.small_star import random_star
from tests.models.tiny_llamagen import save_release

TOKEN = 5
RATES = {"janus": 1e-2, "llamagen": 5e-4, "star": 3e-3}
RECORDS = [
    {
        "prompt": "a photo of a red circle",
        "tag": "colors",
        "include": [{"class": "circle", "count": 1, "color": "red"}],
    },
    {"prompt": "a photo of two squares", "tag": "counting", "include": [{"class": "square", "count": 2}]},
]


class TokenShare:
    """The share of one token id in images whose pixels are tokens; hardly anything else, so that few images tie."""

    name = "token"

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Any prompt will do."""

    def score(self, images: Sequence[ndarray], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Scores:
        tokens = torch.stack([torch.from_numpy(image).float() for image in images])
        total = (tokens == TOKEN).float().mean((1, 2, 3)) + 1e-4 * tokens.mean((1, 2, 3))
        return Scores(total, {}, ("",) * len(images))


def tokens_as_pixels(self: Policy, tokens: Int[Tensor, "R N"]) -> UInt8[Tensor, "R 3 1 N"]:
    return tokens.to(torch.uint8)[:, None, None].expand(-1, 3, 1, -1)


@pytest.fixture(params=RATES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def checkpoint(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / family
    if family == "llamagen":
        save_release(folder)
    else:
        {"janus": random_janus, "star": random_star}[family]().save(folder)
    return folder


def test_it_learns(family: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A wrong sign, mask, credit or teacher forcing shows at once; what is saved is what was learnt."""
    monkeypatch.setitem(REWARDS, "token", RewardEntry(lambda device: TokenShare()))
    monkeypatch.setattr(type(load(str(checkpoint))), "decode", tokens_as_pixels)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a photo of a red circle\na photo of two blue squares and a ring\n")
    run = tmp_path / "run"
    settings = f"""
        --model {checkpoint} --out {run} --method grpo --reward token --prompts {prompts} --heldout {prompts}
        --steps 12 --rollout.prompts-per-step 2 --rollout.group-size 8 --rollout.sampling.guidance-scale 2
        --update.learning-rate {RATES[family]} --update.schedule constant
        --evaluation.every 12 --evaluation.images-per-tag 32 --checkpoint.every 12
    """
    assert main(["train", *settings.split()]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rewards = [row["reward"] for row in rows if "reward" in row]
    assert sum(rewards[-3:]) > 1.5 * sum(rewards[:3])
    assert max(row["logprob_gap"] for row in rows if "logprob_gap" in row) < 1e-4
    assert rows[-1]["heldout"] > 2 * rows[0]["heldout"]
    trained = run / "checkpoints" / "step-000012"
    assert main(["generate", "a red ring", "--model", str(trained), "--out", str(tmp_path / "images")]) == 0
    assert (tmp_path / "images" / "contact_sheet.png").is_file()


def test_the_other_commands_run(checkpoint: Path, tmp_path: Path):
    words = ["--model", str(checkpoint), "--guidance-scale", "2"]
    assert main(["generate", "a red ring", "two squares", *words, "--out", str(tmp_path / "images")]) == 0
    assert len(list((tmp_path / "images").rglob("000?.png"))) == 8
    assert main(["heatmap", "a red ring", *words, "--out", str(tmp_path / "maps")]) == 0
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {"heatmap.png", "heatmap.html", "maps.npz"}
    records = tmp_path / "records.jsonl"
    records.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    assert main(["eval", "geneval", "--prompts", str(records), *words, "--out", str(tmp_path / "geneval")]) == 0
    summary = json.loads((tmp_path / "geneval" / "summary.json").read_text())
    assert summary["images"] == 8 and summary["per_tag"].keys() == {"colors", "counting"}
