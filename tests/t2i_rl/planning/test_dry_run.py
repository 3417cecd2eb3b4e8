"""What a run would be, said without starting it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rewards import catalogue
from rewards.catalogue import REWARDS
from rewards.detectors import mask2former, openmmlab
from rewards.geneval import colors
from rewards.scorers import aesthetic, clipscore, hpsv2, imagereward, pickscore
from t2i_rl.cli import main
from t2i_rl.commands.train import resolution
from t2i_rl.configuration.config import flat
from t2i_rl.configuration.presets import PRESETS
from t2i_rl.methods.catalogue import METHODS
from t2i_rl.planning import dry_run
from t2i_rl.prompts.sets import place

USERS_OWN = "train --model janus-pro-7b --method cfg --dry-run"
CHILD = """
import sys
from t2i_rl.commands.train import resolution
from t2i_rl.planning.dry_run import report
found = resolution(sys.argv[1].split()[1:])
assert report(found.config, found.preset)
assert not {"torch", "transformers"} & sys.modules.keys()
"""


@pytest.fixture(autouse=True)
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache, no variables, an empty folder."""
    loaded = {one.variable for entry in REWARDS.values() for one in entry.weights}
    for variable in {*loaded, *filter(None, (entry.endpoint for entry in REWARDS.values()))}:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("T2I_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def said(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a dry run says; whether it would start is `test_readiness`'s."""
    main(words.split())
    return capsys.readouterr().out


def test_model_and_method_resolve_to_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = said(USERS_OWN, capsys)
    assert "janus-pro-7b = deepseek-community/Janus-Pro-7B (janus, tokens 24x24" in text
    assert "janus-pro-7b-geneval-cfg" in text and METHODS["cfg"].summary in text and "KL 0.03 * k3" in text
    assert "geneval-train: not here: run t2i-rl data make geneval-train" in text
    assert "none held out" in text and "geneval-heldout: not here: run t2i-rl data make geneval-heldout" in text
    assert "7,000, not the 15,000" in said("train --model llamagen-256 --method critical --dry-run", capsys)
    assert "T2I_RL_DETECTOR may name a copy" in text and "timm/vit_large_patch14_clip_224.openai would be" in text
    assert f"{openmmlab.URL} would be downloaded to {tmp_path / 'cache'} (unpinned; " in text
    assert "1600 steps of 8 prompts x 16 images: 204,800 images, on cuda" in text
    for name, value in flat(PRESETS["janus-pro-7b-geneval-cfg"]).items():
        shown = "none" if value in (None, [], {}) else value if value != "" else '""'
        shown = "5.0 (the model's own)" if name == "evaluation.sampling.guidance_scale" else shown
        line = f"{name.replace('_', '-')} = {shown}"
        assert name in dry_run.SHOWN or re.search(rf"[ ]{re.escape(line)}$", text, re.MULTILINE), line
    assert not list(tmp_path.iterdir()) and "(preset: " not in text
    place("geneval-train").parent.mkdir(parents=True)
    place("geneval-train").write_text('{"prompt": "a photo of a bench"}\n')
    assert f"geneval-train: found at {place('geneval-train')}" in said(USERS_OWN, capsys)


def test_it_imports_no_torch():
    done = subprocess.run([sys.executable, "-c", CHILD, USERS_OWN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_here_and_what_is_served(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "clip").mkdir()
    monkeypatch.setenv("T2I_RL_CLIP", str(tmp_path / "clip"))
    words = f"train --model {model} --reward shapes:2@http://a:1 aesthetic:0.5 --steps 7 --prompts mine.txt"
    text = said(f"{words} --heldout mine.txt --dry-run", capsys)
    assert f"found at {model}" in text and "mine.txt: not here: put the file there" in text
    assert "shapes, weight 2, served at http://a:1" in text and "aesthetic, weight 0.5, in the run's own" in text
    assert f"T2I_RL_CLIP = {tmp_path / 'clip'}: found at" in text and "sac+logos" in text
    assert "preset    none: the defaults" in text and "steps = 7" in text
    assert "asks T2I_RL_JUDGE = nobody: set it" in said("train --reward judge --dry-run", capsys)
    monkeypatch.setenv("T2I_RL_JUDGE", "http://a:8000/v1")
    assert "asks T2I_RL_JUDGE = http://a:8000/v1" in said("train --reward judge --dry-run", capsys)
    text = said("train --model tiny-vlm --reward math --dry-run", capsys)
    assert "reward    math, in the run's own process\n          grades answers in text, in processes with" in text
    text = said("train --rollout.group-size 4 --dry-run", capsys)
    assert "rollout.group-size = 4  (preset: 8)" in text and text.count("(preset: ") == 1
    assert "preset    tiny-shapes-cfg" in text and "shapes:train: the shapes world" in text


def test_what_cannot_be_is_refused_as_in_a_run(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--dry-run", "--reward", "beauty"]) == 2
    assert main(["train", "--dry-run", "--prompts", "beauty"]) == 2
    errors = capsys.readouterr().err
    assert "no reward named 'beauty'" in errors and "unknown prompts 'beauty'" in errors and errors.count("\n") == 2


def test_without_a_reward_it_is_that_of_the_model(tmp_path: Path):
    for words, name in (
        ("--model janus-pro-7b --method critical", "janus-pro-7b-geneval-critical"),
        ("--model llamagen-256 --method critical", "llamagen-256-hps-critical"),
        ("--model tiny --method dapo", "tiny-shapes-dapo"),
    ):
        found = resolution(words.split())
        assert (found.preset, found.config) == (name, PRESETS[name])
    baseline = resolution(["--model", "janus-pro-7b", "--method", "grpo"])
    assert baseline.config.method == "grpo" and baseline.config.reward == "geneval"
    assert baseline.config.update == PRESETS[str(baseline.preset)].update
    (tmp_path / "run.json").write_text(json.dumps({"reward": "aesthetic"}))
    nearest = resolution(["--model", "janus-pro-7b", "--config", str(tmp_path / "run.json")])
    assert nearest.preset == "janus-pro-7b-geneval-cfg" and nearest.config.reward == "aesthetic"
    words = "--reward shapes --prompts shapes:train --heldout shapes:heldout"
    assert resolution(["--model", str(tmp_path), *words.split()]).preset is None


def test_what_was_not_named_is_said():
    for words, said in (
        ("", "preset tiny-shapes-cfg; not named, so taken from it: model tiny, method cfg, reward shapes, prompts "),
        (
            "--model janus-pro-7b --method grpo --reward geneval",
            "preset janus-pro-7b-geneval-cfg; not named, so ",
        ),
        ("--method cfg --model tiny --reward shapes --prompts shapes:train --heldout a.txt", "preset tiny-shapes-cfg"),
    ):
        assert resolution(words.split()).said().startswith(said)
    assert resolution(words.split()).said() == said


@pytest.mark.parametrize("model", ["star-512", "llamagen-512", "some/model"])
def test_a_model_without_a_preset_is_sampled_at_its_own_guidance(model: str, capsys: pytest.CaptureFixture[str]):
    words = f"train --model {model} --reward geneval --prompts geneval-train --heldout geneval-heldout"
    text = said(f"{words} --dry-run", capsys)
    own = {"star-512": "4.0 (the model's own)", "llamagen-512": "7.5 (the model's own)"}.get(model, "the model's own")
    for where in ("rollout", "evaluation"):
        assert re.search(rf"[ ]{where}\.sampling\.guidance-scale = {re.escape(own)}(  \(preset|$)", text, re.MULTILINE)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_a_method_in_lines(method):
    text = "\n".join(dry_run.composition(method))
    assert text.count("\n") == len(dry_run.composition(method)) - 1
    assert str(method.credit) in text and str(method.objective.surrogate) in text


def test_a_checksum_that_was_recorded_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recorded = {openmmlab.URL: "743b7d99aa", f"hub:{colors.OPENAI}/open_clip_model.safetensors": "0123456789"}
    (tmp_path / "cache").mkdir()
    pins = {key: {"sha256": digest} for key, digest in recorded.items()}
    (tmp_path / "cache" / "pins.json").write_text(json.dumps(pins))
    (tmp_path / "cache" / openmmlab.URL.rpartition("/")[2]).touch()
    text = said(USERS_OWN, capsys)
    assert "743b7d99.pth (recorded 743b7d99; T2I_RL_DETECTOR may" in text and "(recorded 01234567; T2I_RL_CLIP" in text
    assert "reward    geneval, in the run's own process\n          found at " in text


def test_the_weights_of_rewards_are_those_that_they_load():
    for weights, source in (
        (catalogue.DETECTOR, openmmlab.URL),
        (catalogue.FACEBOOK, mask2former.FACEBOOK),
        (catalogue.CLIP, colors.OPENAI),
        (catalogue.HPSV2, hpsv2.REPOSITORY),
        (catalogue.HPSV2_0, hpsv2.REPOSITORY),
        (catalogue.PICKSCORE, pickscore.REPOSITORY),
        (catalogue.IMAGEREWARD, imagereward.REPOSITORY),
        (catalogue.BERT, imagereward.BERT),
        (catalogue.CLIPSCORE, clipscore.OPENAI),
        (catalogue.AESTHETIC, aesthetic.URL),
    ):
        assert weights.source == source
