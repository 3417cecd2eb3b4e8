"""Training runs by rewards as they are used: served elsewhere, on servers that fail, by GenEval's own networks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rewards.colors import ClipColors
from rewards.detectors.base import Subject
from rewards.errors import RewardError
from rewards.registry import BUILDERS, build
from rewards.reward import Scores
from t2i_rl.cli import main
from tests.conftest import random_janus
from tests.parity.golden import DEFAULT
from tests.rewards.servers import serving
from tests.rewards.tiny_clip import save_tiny_clip
from tests.t2i_rl.small_runs import Brightness, train_words


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "janus"
    random_janus().save(folder)
    return folder


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_identical(here: Path, there: Path) -> None:
    """Metrics but for the time, and the weights of the last checkpoint."""
    kept = [[{name: row[name] for name in row if "second" not in name} for row in rows(run)] for run in (here, there)]
    assert kept[0] == kept[1] and len(kept[0]) > 1
    last = sorted(path.name for path in (here / "checkpoints").iterdir())[-1]
    weights = [load_file(run / "checkpoints" / last / "model.safetensors") for run in (here, there)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_one_flag_moves_the_reward_to_servers(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(BUILDERS, "brightness", lambda device: Brightness())
    words = ("cfg", "--steps", "2", "--rollout.micro-batch", "1")
    assert main(train_words(model, tmp_path / "here", *words)) == 0
    with serving(Brightness(), "brightness") as one, serving(Brightness(), "brightness") as two:
        served = ("--reward", f"brightness@{one},{two}", "--reward-server.images", "2")
        assert main(train_words(model, tmp_path / "there", *words, *served)) == 0
    assert_identical(tmp_path / "here", tmp_path / "there")
    assert len({row["reward"] for row in rows(tmp_path / "here") if "reward" in row}) == 2


def test_the_demo_with_its_reward_served_is_the_same_run(tmp_path: Path):
    """The shipped model, preset, prompts and reward of `make demo`, in little."""
    short = "--steps 1 --rollout.prompts-per-step 2 --rollout.group-size 4 --evaluation.images-per-tag 1"

    def demo(name: str, *more: str) -> Path:
        out = tmp_path / name
        assert main(["train", "--model", "tiny", "--method", "cfg", "--out", str(out), *short.split(), *more]) == 0
        return out

    here = demo("here")
    with serving(build("shapes"), "shapes") as address:
        there = demo("there", "--reward", f"shapes@{address}")
    assert_identical(here, there)
    assert rows(here)[1]["grad_norm"] > 0


class NoCrosses(Brightness):
    """Its server breaks on prompts that say `cross`."""

    def score(self, images: Sequence[Any], prompts: Sequence[str], metadata: Sequence[Any]) -> Scores:
        if any("cross" in prompt for prompt in prompts):
            raise ValueError("the scorer broke")
        return super().score(images, prompts, metadata)


@pytest.mark.parametrize("on_failure", ["stop", "drop_group"])
def test_a_server_that_fails_on_some_images(
    on_failure: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(BUILDERS, "brightness", lambda device: NoCrosses())
    (tmp_path / "heldout.txt").write_text("a photo of a ring\n")
    words = ["--steps", "2", "--on-reward-failure", on_failure, "--heldout", str(tmp_path / "heldout.txt")]
    words += ["--reward-server.attempts", "2", "--reward-server.pause", "0.01", "--rollout.micro-batch", "1"]
    with serving(NoCrosses(), "brightness") as address:
        code = main(train_words(model, tmp_path / "run", "grpo", *words, "--reward", f"brightness@{address}"))
    error = capsys.readouterr().err
    trained = [row for row in rows(tmp_path / "run") if row["step"] > 0]
    if on_failure == "stop":
        assert code == 2 and error.count("\n") == 1
        assert 'a photo of two crosses") has no score: no server scored it in 2 attempts' in error
        assert not any(row.get("groups_lost") for row in trained)
    else:
        assert code == 0
        assert sum(row["groups_lost"] for row in trained) == 1  # of four groups, three prompts in turn
        # Both attempts of the one request, then the question whether the server is well again.
        assert sum(row.get("reward_faults/server", 0) for row in trained) == 2
        assert all(row["grad_norm"] > 0 for row in trained)


def test_a_run_without_servers_ends_before_it_begins(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = train_words(
        model, tmp_path / "run", "cfg", "--reward", "shapes@http://127.0.0.1:9", "--prompts", "shapes:train"
    )
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "no server of 'shapes' answers at http://127.0.0.1:9" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def geneval_prompts(path: Path) -> Path:
    """Of what a random detector sees everywhere: counts, colours and places that some pictures have."""
    mouse, bottle = {"class": "computer mouse", "count": 5}, {"class": "bottle", "count": 2}
    records = [
        {"tag": "counting", "include": [mouse], "exclude": [{"class": "computer mouse", "count": 6}]},
        {"tag": "colors", "include": [{**mouse, "color": "red"}]},
        {"tag": "color_attr", "include": [{**mouse, "color": "green"}, {**bottle, "color": "blue"}]},
        {"tag": "position", "include": [bottle, {**mouse, "position": ["above", 0]}]},
    ]
    lines = [json.dumps({**record, "prompt": f"a photo of {number} rings"}) for number, record in enumerate(records)]
    path.write_text("\n".join(lines))
    return path


def test_geneval_from_sampling_to_checkpoint(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Random networks of the released formats: a Janus, the detector, CLIP."""
    weights = load_file(DEFAULT / "mask2former" / "weights.safetensors")
    # Surer of its classes than random weights are, so that something passes GenEval's threshold.
    sure = {name: 3 * value if ".cls_embed." in name else value for name, value in weights.items()}
    save_file(sure, tmp_path / "detector.safetensors")
    monkeypatch.setenv("T2I_RL_DETECTOR", str(tmp_path / "detector.safetensors"))
    monkeypatch.setenv("T2I_RL_CLIP", str(save_tiny_clip(tmp_path / "clip")))
    classify, asked = ClipColors.classify, list[Subject]()

    def watched(self: ClipColors, subjects: Sequence[Subject]) -> list[str]:
        asked.extend(subjects)
        return classify(self, subjects)

    monkeypatch.setattr(ClipColors, "classify", watched)
    prompts = str(geneval_prompts(tmp_path / "geneval.jsonl"))
    words = ["--reward", "geneval", "--prompts", prompts, "--heldout", prompts, "--steps", "2"]
    words += ["--rollout.prompts-per-step", "4", "--rollout.group-size", "4", "--rollout.micro-batch", "2"]
    assert main(train_words(model, tmp_path / "run", "cfg", *words)) == 0
    untrained, *trained = rows(tmp_path / "run")
    assert {"heldout/counting", "heldout/colors", "heldout/color_attr", "heldout/position"} <= untrained.keys()
    assert {one.class_name for one in asked} == {"computer mouse", "bottle"}
    for row in trained:
        assert row["reward_std"] > 0 and row["grad_norm"] > 0 and 0 <= row["reward/strict"] <= row["reward"] <= 1
    moved = load_file(tmp_path / "run" / "checkpoints" / "step-000002" / "model.safetensors")
    before = load_file(model / "model.safetensors")
    assert any(not torch.equal(value, before[name]) for name, value in moved.items())


def test_geneval_without_its_networks_says_how_to_get_them(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("T2I_RL_DETECTOR", str(tmp_path / "absent.pth"))
    with pytest.raises(RewardError, match="absent"):
        build("geneval")
    prompts = str(geneval_prompts(tmp_path / "geneval.jsonl"))
    words = ["--reward", "geneval", "--prompts", prompts, "--heldout", prompts]
    assert main(train_words(model, tmp_path / "run", "cfg", *words)) == 2
    error = capsys.readouterr().err
    assert "T2I_RL_DETECTOR" in error and error.count("\n") == 1 and not (tmp_path / "run").exists()
