"""Training runs by rewards as they are used: served elsewhere, on servers that fail, by GenEval's own networks."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rewards.catalogue import REWARDS, RewardEntry
from rewards.detectors.base import Subject
from rewards.errors import RewardError
from rewards.geneval.colors import ClipColors
from rewards.registry import build
from rewards.reward import Scores
from scripts.demo import RUN, SETTINGS
from t2i_rl.cli import main
from t2i_rl.commands.train import resolve
from t2i_rl.configuration.config import TrainConfig, flat
from t2i_rl.configuration.presets import PRESETS
from t2i_rl.prompts.geneval import MIX, lines, training_records
from t2i_rl.prompts.sets import place
from t2i_rl.settings import override
from tests.conftest import random_janus
from tests.rewards.servers import serving
from tests.rewards.tiny_clip import save_tiny_clip
from tests.rewards.tiny_scorers import save_detector
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
    monkeypatch.setitem(REWARDS, "brightness", RewardEntry(lambda device: Brightness()))
    words = ("cfg", "--steps", "2", "--rollout.micro-batch", "1")
    assert main(train_words(model, tmp_path / "here", *words)) == 0
    with serving(Brightness(), "brightness") as one, serving(Brightness(), "brightness") as two:
        served = ("--reward", f"brightness@{one},{two}", "--reward-server.images", "2")
        assert main(train_words(model, tmp_path / "there", *words, *served)) == 0
    assert_identical(tmp_path / "here", tmp_path / "there")
    assert len({row["reward"] for row in rows(tmp_path / "here") if "reward" in row}) == 2


def test_the_demo_with_its_reward_served_is_the_same_run(tmp_path: Path):
    """The shipped model, preset, prompts and reward of `make demo`, in little; the command is the same but one flag."""
    assert resolve(["--model", "tiny", "--method", "cfg", "--out", str(RUN)]) == SETTINGS
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
    monkeypatch.setitem(REWARDS, "brightness", RewardEntry(lambda device: NoCrosses()))
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
    words = ["--reward", "shapes@http://127.0.0.1:9", "--prompts", "shapes:train", "--heldout", "shapes:heldout"]
    assert main(train_words(model, tmp_path / "run", "cfg", *words)) == 2
    error = capsys.readouterr().err
    assert "no server of 'shapes' answers at http://127.0.0.1:9" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.fixture
def tiny_geneval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GenEval's two networks in little, and its prompts where `t2i-rl data make` puts them."""
    monkeypatch.setenv("T2I_RL_DETECTOR", str(save_detector(tmp_path / "detector.safetensors")))
    monkeypatch.setenv("T2I_RL_CLIP", str(save_tiny_clip(tmp_path / "clip")))
    monkeypatch.setenv("T2I_RL_CACHE", str(tmp_path / "cache"))
    assert main(["data", "make", "geneval-heldout"]) == 0
    # Of the 80 classes, two that the random detector sees in some pictures and not in others.
    seen = training_records(12, 4, ("baseball bat", "computer mouse"))
    place("geneval-train").write_text("".join(lines(seen)))


def hub_with_a_tiny_janus(folder: Path) -> Path:
    """The hub's cache after a download of Janus-Pro-7B, were that a tiny model with as many tokens."""
    repository = folder / "models--deepseek-community--Janus-Pro-7B"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123")
    (repository / "snapshots").mkdir()
    random_janus(grid=24).save(repository / "snapshots" / "0123")
    return folder


@pytest.mark.usefixtures("tiny_geneval")
def test_the_users_own_line_from_sampling_to_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The paper's preset but for the device and the size: only the model, the detector and CLIP are other files."""
    hub = hub_with_a_tiny_janus(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    asked, classify = list[Subject](), ClipColors.classify

    def watched(self: ClipColors, subjects: Sequence[Subject]) -> list[str]:
        asked.extend(subjects)
        return classify(self, subjects)

    monkeypatch.setattr(ClipColors, "classify", watched)
    smaller = "--device cpu --steps 1 --rollout.prompts-per-step 6 --rollout.group-size 2 --rollout.micro-batch 3"
    smaller += " --evaluation.images-per-tag 1"
    words = ["train", "--model", "janus-pro-7b", "--method", "cfg"]
    assert main([*words, *smaller.split()]) == 0
    run = tmp_path / "runs" / "train"
    paper, used = flat(PRESETS["janus-pro-7b-geneval-cfg"]), json.loads((run / "config.json").read_text())
    changed = {name for name, value in flat(override(TrainConfig(), used, "run")).items() if value != paper[name]}
    asked_for = {word.removeprefix("--").replace("-", "_") for word in smaller.split() if "--" in word}
    assert changed == {*asked_for, "evaluation.sampling.guidance_scale"}  # the model's own, once it is known
    untrained, trained = rows(run)
    assert {f"heldout/{tag}" for tag in MIX} < untrained.keys()
    assert {one.class_name for one in asked} & {"baseball bat", "computer mouse"}
    assert trained["reward_std"] > 0 and trained["grad_norm"] > 0 and 0 < trained["reward"] < 1
    moved = load_file(run / "checkpoints" / "step-000001" / "model.safetensors")
    before = load_file(next(hub.glob("*/snapshots/*/model.safetensors")))
    assert any(not torch.equal(value, before[name]) for name, value in moved.items())


def test_a_copy_of_the_model_takes_the_papers_settings_by_their_name(model: Path):
    """What points `--model` elsewhere: the preset is named, for a path has none."""
    found = resolve(["--preset", "janus-pro-7b-geneval-cfg", "--model", str(model)])
    assert found == replace(PRESETS["janus-pro-7b-geneval-cfg"], model=str(model))


def test_geneval_without_its_networks_says_how_to_get_them(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("T2I_RL_DETECTOR", str(tmp_path / "absent.pth"))
    with pytest.raises(RewardError, match="absent"):
        build("geneval")
    bus = {"prompt": "a bus", "tag": "single_object", "include": [{"class": "bus", "count": 1}]}
    (tmp_path / "one.jsonl").write_text(json.dumps(bus))
    prompts = str(tmp_path / "one.jsonl")
    words = ["--reward", "geneval", "--prompts", prompts, "--heldout", prompts]
    assert main(train_words(model, tmp_path / "run", "cfg", *words)) == 2
    error = capsys.readouterr().err
    assert "T2I_RL_DETECTOR" in error and error.count("\n") == 1 and not (tmp_path / "run").exists()
    # What is wrong with the prompts is said first, for the networks may be a long download.
    for wrong, says in (
        ({**bus, "include": [{"class": "mouse", "count": 1}]}, "the detector does not know 'mouse' of include[0]"),
        ({"prompt": "a bus"}, "the metadata lack the key 'tag'"),
    ):
        (tmp_path / "one.jsonl").write_text(json.dumps(wrong))
        assert main(train_words(model, tmp_path / "run", "cfg", *words)) == 2
        error = capsys.readouterr().err
        assert error.startswith('t2i-rl: prompt "a bus": ') and says in error and error.count("\n") == 1
    (tmp_path / "one.jsonl").unlink()
    assert main(train_words(model, tmp_path / "run", "cfg", *words)) == 2
    assert "cannot read the prompts" in capsys.readouterr().err
