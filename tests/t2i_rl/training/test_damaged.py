"""Checkpoints that are torn, damaged or another run's are refused, to resume from and as a model."""

import json
import os
from hashlib import sha256
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from t2i_rl.cli import main
from t2i_rl.training import checkpoints
from tests.t2i_rl.small_runs import STEPS, train_words
from tests.t2i_rl.training.runs import OPTIMIZER, copied, edit, refused

pytestmark = pytest.mark.usefixtures("brightness")


def torn(checkpoint: Path) -> None:
    os.truncate(checkpoint / "model.safetensors", 1000)


def flip(path: Path) -> None:
    """One bit of the middle is the other one, as a disk or a network leaves it."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


def flipped(checkpoint: Path) -> None:
    flip(checkpoint / "model.safetensors")


def flipped_moment(checkpoint: Path) -> None:
    flip(checkpoint / OPTIMIZER)


def zeroed(checkpoint: Path) -> None:
    content = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(content[:-3000] + bytes(3000))


def lost(checkpoint: Path) -> None:
    (checkpoint / OPTIMIZER).unlink()


def unmarked(checkpoint: Path) -> None:
    (checkpoint / "complete.json").unlink()


def another_method(checkpoint: Path) -> None:
    edit(checkpoint.parents[1] / "config.json", method="grpo")


def another_group(checkpoint: Path) -> None:
    path = checkpoint.parents[1] / "config.json"
    edit(path, rollout=json.loads(path.read_text())["rollout"] | {"group_size": 5})


def unknown_setting(checkpoint: Path) -> None:
    edit(checkpoint.parents[1] / "config.json", tempo=3)


def not_json(checkpoint: Path) -> None:
    (checkpoint.parents[1] / "config.json").write_text("{")


def no_settings(checkpoint: Path) -> None:
    (checkpoint.parents[1] / "config.json").write_text("[]")


def listed_anew(checkpoint: Path, name: str) -> None:
    """Have the inventory agree with a file that was replaced."""
    inventory, content = json.loads((checkpoint / "complete.json").read_text()), (checkpoint / name).read_bytes()
    files, digests = (
        inventory["files"] | {name: len(content)},
        inventory["sha256"] | {name: sha256(content).hexdigest()},
    )
    edit(checkpoint / "complete.json", files=files, sha256=digests)


def foreign_optimizer(checkpoint: Path) -> None:
    (checkpoint / OPTIMIZER).write_bytes(b"not of torch")
    listed_anew(checkpoint, OPTIMIZER)


def optimizer_of_another_model(checkpoint: Path) -> None:
    found = load_file(checkpoint / OPTIMIZER)
    save_file({name: value.flatten()[:1].repeat(3) for name, value in found.items()}, checkpoint / OPTIMIZER)
    listed_anew(checkpoint, OPTIMIZER)


def weights_of_another_model(checkpoint: Path) -> None:
    found = load_file(checkpoint / "model.safetensors")
    name = next(name for name in found if name.endswith("q_proj.weight") and "language_model" in name)
    found[name] = found[name][:4].clone()
    save_file(found, checkpoint / "model.safetensors", {"format": "pt"})
    listed_anew(checkpoint, "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (torn, "is torn, for model.safetensors has 1000 bytes"),
        (flipped, "is damaged, for model.safetensors does not hold what was written"),
        (flipped_moment, "is damaged, for optimizer-00001-of-00001.safetensors does not hold what was written"),
        (zeroed, "is damaged, for model.safetensors does not hold what was written"),
        (lost, "is torn, for optimizer-00001-of-00001.safetensors is missing"),
        (unmarked, "is not a checkpoint of ours"),
        (another_method, "config.json has method 'grpo', but"),
        (another_group, "config.json has rollout.group_size 5, but"),
        (unknown_setting, "config.json has the unknown key 'tempo'"),
        (not_json, "config.json is not valid JSON"),
        (no_settings, "config.json has to hold named settings"),
        (foreign_optimizer, "does not hold the optimizer state of this run"),
        (optimizer_of_another_model, "does not hold the optimizer state of this run"),
        (weights_of_another_model, "by config and other weights it should be"),
    ],
)
def test_a_damaged_run_is_not_resumed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage, says: str
):
    run = copied(finished, tmp_path)
    damage(checkpoints.latest(run / "checkpoints"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert says in refused(capsys, "train", "--resume", run, "--steps", STEPS + 1)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_checkpoint_of_before_has_no_digests(finished: Path, tmp_path: Path):
    run = copied(finished, tmp_path)
    inventory = checkpoints.latest(run / "checkpoints") / "complete.json"
    inventory.write_text(json.dumps({k: v for k, v in json.loads(inventory.read_text()).items() if k != "sha256"}))
    assert main(["train", "--resume", str(run), "--steps", str(STEPS + 1)]) == 0


@pytest.mark.parametrize("command", ["generate", "eval", "heatmap", "check", "export", "train", "report"])
def test_a_damaged_checkpoint_is_no_model(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
):
    run, out = copied(finished, tmp_path), tmp_path / "out"
    checkpoint = checkpoints.latest(run / "checkpoints")
    words = {
        "generate": ["a ring", "--model", checkpoint, "--out", out],
        "eval": ["geneval", "--prompts", "shapes:heldout", "--model", checkpoint, "--out", out],
        "heatmap": ["a ring", "--model", checkpoint, "--out", out],
        "check": ["--model", checkpoint],
        "export": ["--model", checkpoint, "--format", "deepseek", "--out", out],
        "train": train_words(checkpoint, out)[1:],
        "report": [run, "--prompt", "a ring", "--out", out],
    }
    flipped(checkpoint)
    assert "is damaged, for model.safetensors does not hold what was written" in refused(
        capsys, command, *words[command]
    )
    assert not out.exists()


def test_the_first_model_is_needed_where_it_is_the_reference(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = copied(finished, tmp_path)
    gone = str(tmp_path / "gone")
    edit(run / "config.json", model=gone)
    inventory = checkpoints.latest(run / "checkpoints") / "complete.json"
    edit(inventory, settings=json.loads(inventory.read_text())["settings"] | {"model": gone})
    sentence = refused(capsys, "train", "--resume", run, "--steps", STEPS + 1)
    assert "the model that it began with: put it back" in sentence and f"unknown model '{gone}'" in sentence
