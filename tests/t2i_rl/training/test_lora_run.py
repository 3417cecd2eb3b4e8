"""A run with adapters: it learns, resumes bit for bit, and what it leaves merges into a model with the same images."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.janus.policy import JanusPolicy
from models.lora import LoraPolicy
from models.registry import load
from rewards.catalogue import REWARDS, RewardEntry
from t2i_rl.cli import main
from tests.t2i_rl.training.test_families import TokenShare, tokens_as_pixels


def words(model: Path, run: Path, steps: int, *more: str) -> list[str]:
    prompts = model.parent / "prompts.txt"
    prompts.write_text("a photo of a red circle\na photo of two blue squares and a ring\n")
    settings = f"""
        --model {model} --out {run} --method grpo --reward token --prompts {prompts} --heldout {prompts}
        --steps {steps} --rollout.prompts-per-step 2 --rollout.group-size 8 --rollout.sampling.guidance-scale 2
        --update.learning-rate 3e-2 --update.schedule constant --lora.rank 4 --lora.alpha 8
        --evaluation.every 40 --evaluation.images-per-tag 32 --checkpoint.every 4 --checkpoint.keep-last 9
    """
    return ["train", *settings.split(), *more]


def images(model: Path, out: Path) -> list[np.ndarray]:
    assert main(["generate", "a red ring", "two squares", "--model", str(model), "--out", str(out)]) == 0
    return [np.asarray(Image.open(path)) for path in sorted(out.rglob("000?.png"))]


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REWARDS, "token", RewardEntry(lambda device: TokenShare()))
        patch.setattr(JanusPolicy, "decode", tokens_as_pixels)
        assert main(words(model, folder, 12)) == 0
    return folder


def test_it_learns(run: Path):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rewards = [row["reward"] for row in rows if "reward" in row]
    assert sum(rewards[-3:]) > 1.5 * sum(rewards[:3])
    assert rows[-1]["heldout"] > 2 * rows[0]["heldout"]
    assert rows[1]["kl"] == 0 < rows[-1]["kl"]


def test_a_checkpoint_is_the_adapters_and_the_name_of_their_base(run: Path, model: Path):
    folder = run / "checkpoints" / "step-000012"
    names = {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
        "optimizer-00001-of-00001.safetensors",
        "complete.json",
    }
    assert {path.name for path in folder.iterdir()} == names
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(model.resolve())
    assert isinstance(load(str(folder)), LoraPolicy)


def test_a_resumed_run_ends_in_the_same_adapters(
    run: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(REWARDS, "token", RewardEntry(lambda device: TokenShare()))
    monkeypatch.setattr(JanusPolicy, "decode", tokens_as_pixels)
    assert main(words(model, tmp_path / "run", 4)) == 0
    assert main(["train", "--resume", str(tmp_path / "run"), "--steps", "12"]) == 0
    ends = [
        (folder / "checkpoints" / "step-000012" / "adapter_model.safetensors").read_bytes()
        for folder in (run, tmp_path / "run")
    ]
    assert ends[0] == ends[1]


def test_merged_weights_draw_the_images_of_adapters_and_base(run: Path, tmp_path: Path):
    adapters, merged = run / "checkpoints" / "step-000012", tmp_path / "merged"
    assert main(["export", "--model", str(adapters), "--out", str(merged)]) == 0
    assert not (merged / "adapter_config.json").exists()
    assert "PeftModel" in (adapters / "README.md").read_text() and "PeftModel" not in (merged / "README.md").read_text()
    both = zip(images(adapters, tmp_path / "one"), images(merged, tmp_path / "two"), strict=True)
    assert all(np.array_equal(one, two) for one, two in both)


@pytest.mark.usefixtures("brightness")
def test_a_run_begins_with_a_whole_model(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(words(run / "checkpoints" / "step-000012", tmp_path / "again", 4, "--reward", "brightness")) == 2
    assert "is an adapter: merge it first, with t2i-rl export" in capsys.readouterr().err
