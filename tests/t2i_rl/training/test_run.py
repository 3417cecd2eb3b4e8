"""A run as a folder: what it holds, how it resumes bit for bit however it died, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from models.janus.policy import JanusPolicy
from rewards.catalogue import REWARDS, RewardEntry
from rewards.reward import Scores
from t2i_rl.cli import main
from t2i_rl.pictures.strips import draw_progress
from t2i_rl.training import checkpoints, optimizer_files
from t2i_rl.training.announcements import LOADING
from t2i_rl.training.lock import owned
from t2i_rl.training.run import best_step
from t2i_rl.training.trainer import Trainer
from tests.conftest import random_janus
from tests.t2i_rl.small_runs import DEATHS, DIES_AT, STEPS, Brightness, train_words
from tests.t2i_rl.training.runs import assert_same_run, copied, edit, listing, refused, without_time

pytestmark = pytest.mark.usefixtures("brightness")


@pytest.fixture(scope="module")
def killed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run per way of dying."""
    folder = tmp_path_factory.mktemp("killed")
    words = [sys.executable, "-m", "tests.t2i_rl.small_runs", str(model), str(folder)]
    subprocess.run(words, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    return folder


def test_the_folder_of_a_run(finished: Path):
    best = json.loads((finished / "best.json").read_text())["step"]
    assert listing(finished)[0] == "best.json"
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "prompts.json",
        "run.json",
        "origins.json",
        "best.json",
        "checkpoints",
        "config.json",
        "lock",
        "metrics.jsonl",
        "reward.png",
        "samples",
        "samples.png",
        "tensorboard",
    }
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {f"step-{n:06d}" for n in (best, STEPS)}
    assert [row["step"] for row in without_time(finished)] == list(range(STEPS + 1))
    assert [row["step"] for row in without_time(finished) if "heldout" in row] == [0, 3, STEPS]
    kept = {f"step-{n:06d}{kind}" for n in (0, 3, STEPS) for kind in (".png", ".jsonl")}
    assert {path.name for path in (finished / "samples").iterdir()} == kept
    assert np.asarray(Image.open(finished / "samples.png")).std() > 0
    assert any((finished / "tensorboard").iterdir())


def test_the_run_changes_the_weights(finished: Path, model: Path):
    before = load_file(model / "model.safetensors")
    after = load_file(checkpoints.at_step(finished / "checkpoints", STEPS) / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("language_model" in name for name in moved)


@pytest.mark.parametrize("death", [death.__name__ for death in DEATHS])
def test_a_killed_run_ends_like_one_that_was_not(killed: Path, finished: Path, death: str):
    assert main(["train", "--resume", str(killed / death)]) == 0
    assert_same_run(killed / death, finished)


@pytest.mark.parametrize(
    ("step", "says"), [(1, "begins it anew, for it has no checkpoint yet"), (DIES_AT, "goes on after step 3")]
)
def test_a_run_that_is_stopped_says_how_it_goes_on_and_does(
    model: Path,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    says: str,
):
    run, do = tmp_path / "run", Trainer.step

    def stopped(self: Trainer, number: int) -> dict[str, float]:
        if number == step:
            raise KeyboardInterrupt
        return do(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopped)
        assert main(train_words(model, run)) == 130
    assert capsys.readouterr().err == f"t2i-rl: stopped: t2i-rl train --resume {run} {says}\n"
    assert main(["train", "--resume", str(run)]) == 0
    assert_same_run(run, finished)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("step", [1, DIES_AT, STEPS])
def test_a_signal_stops_a_run_after_the_step_with_a_checkpoint(
    model: Path,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    step: int,
):
    run, do, before = tmp_path / "run", Trainer.step, signal.getsignal(number)

    def told(self: Trainer, now: int) -> dict[str, float]:
        if now == step:
            os.kill(os.getpid(), number)
        return do(self, now)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", told)
        assert main(train_words(model, run)) == 0
    captured = capsys.readouterr()
    assert checkpoints.latest(run / "checkpoints") == checkpoints.at_step(run / "checkpoints", step)
    assert signal.getsignal(number) == before and not captured.err
    if step < STEPS:
        says = f"t2i-rl: stopped after step {step}, as it was asked to: t2i-rl train --resume {run} goes on"
        assert captured.out.splitlines()[-1] == says
        assert main(["train", "--resume", str(run)]) == 0
    assert_same_run(run, finished)


def test_a_stop_before_there_is_a_folder_promises_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("t2i_rl.training.preparing.load", stopped)
    assert main(train_words(model, tmp_path / "run")) == 130
    assert capsys.readouterr().err == "t2i-rl: stopped\n"
    assert not list(tmp_path.iterdir())


def test_a_deterministic_run_is_the_same_on_a_cpu(model: Path, finished: Path, tmp_path: Path):
    assert main(train_words(model, tmp_path / "run", "cfg", "--deterministic")) == 0
    assert_same_run(tmp_path / "run", finished)
    edit(tmp_path / "run" / "config.json", deterministic=False)
    assert main(["train", "--resume", str(tmp_path / "run"), "--steps", str(STEPS + 1)]) == 0


def test_a_picture_that_cannot_be_drawn_costs_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    run = tmp_path / "run"

    def broken(*_: object) -> None:
        raise ValueError("no such font")

    with monkeypatch.context() as patch:
        patch.setattr("t2i_rl.training.run.draw_progress", broken)
        assert main(train_words(model, run)) == 0
        assert capsys.readouterr().err == (
            "warning: samples.png cannot be drawn (no such font), but all else is written\n"
        )
        assert (run / "reward.png").exists() and checkpoints.latest(run / "checkpoints").name == f"step-{STEPS:06d}"
        assert main(["train", "--resume", str(run)]) == 2
        assert f"t2i-rl: {run} has done {STEPS} steps" in capsys.readouterr().err
    with monkeypatch.context() as patch:  # later it is drawn, without a look at the weights
        patch.setattr("t2i_rl.training.preparing.load", broken)
        assert main(["train", "--resume", str(run)]) == 0
    assert (run / "samples.png").exists() and capsys.readouterr().err == ""
    assert f"has done {STEPS} steps" in refused(capsys, "train", "--resume", run)


def test_a_run_with_damaged_numbers_and_samples_goes_on(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = copied(finished, tmp_path)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(bytes(512) + b"\n")
    os.truncate(run / "samples" / "step-000003.png", 60)
    assert main(["train", "--resume", str(run), "--steps", str(STEPS + 1)]) == 0
    said = capsys.readouterr().err
    assert f"metrics.jsonl: line {STEPS + 2}" in said and "step-000003.png, which cannot be read" in said
    assert [row["step"] for row in without_time(run)] == list(range(STEPS + 2))
    assert without_time(run)[: STEPS + 1] == without_time(finished)
    draw_progress(run / "samples", [0, STEPS, STEPS + 1], ["first", "second"], tmp_path / "whole.png")
    draw_progress(run / "samples", [0, 3, STEPS, STEPS + 1], ["first", "second"], tmp_path / "left.png")
    assert (tmp_path / "whole.png").read_bytes() == (tmp_path / "left.png").read_bytes()
    capsys.readouterr()
    assert f"has done {STEPS + 1} steps" in refused(capsys, "train", "--resume", run)


def test_text_with_dollars_is_no_mathematics(model: Path, tmp_path: Path):
    run, prompts = tmp_path / "a$$b", tmp_path / "prompts.txt"
    words = train_words(model, run)
    prompts.write_text("a ring worth $$\na cross for $5 or $6\n", encoding="utf-8")
    assert main([*words, "--heldout", str(prompts), "--steps", "1"]) == 0
    assert (run / "reward.png").exists() and (run / "samples.png").exists()


@pytest.mark.parametrize("change", ["rollout.micro_batch", "update.micro_batch", "evaluation.batch"])
def test_what_only_memory_depends_on_may_change(finished: Path, tmp_path: Path, change: str):
    run = copied(finished, tmp_path)
    part, name = change.split(".")
    settings = json.loads((run / "config.json").read_text(encoding="utf-8"))
    edit(run / "config.json", **{part: settings[part] | {name: 1}})
    assert main(["train", "--resume", str(run), "--steps", str(STEPS + 1)]) == 0


class Coarse(Brightness):
    """So coarse that the images of a group often score the same."""

    def score(self, images, prompts, metadata) -> Scores:
        fine = super().score(images, prompts, metadata)
        return replace(fine, total=(25 * fine.total).round())


# What a step needs beyond weights and moments: history, prompts in place of others, settings that name parts.
REMEMBERING = [
    ("tracker", ""),
    ("spo", ""),
    ("dapo", "--rollout.resample-rounds 3"),
    ("grpo", "--reward-weights total 2.0 --update.log-prob cfg --update.updates-per-rollout 2"),
    ("cfg[source=current]", "--contrast text:ring --negative-prompt cross --update.updates-per-rollout 2"),
]


@pytest.mark.parametrize(("method", "more"), REMEMBERING, ids=[method for method, _ in REMEMBERING])
def test_what_a_run_remembers_survives(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, more: str
):
    monkeypatch.setitem(REWARDS, "coarse", RewardEntry(lambda device: Coarse()))
    words = [*more.split(), "--reward", "coarse"]
    assert main(train_words(model, tmp_path / "whole", method, *words)) == 0
    with monkeypatch.context() as patch:
        step = Trainer.step

        def stopped(self: Trainer, number: int) -> dict[str, float]:
            if number == DIES_AT:
                raise KeyboardInterrupt
            return step(self, number)

        patch.setattr(Trainer, "step", stopped)
        assert main(train_words(model, tmp_path / "stopped", method, *words)) == 130
    assert main(["train", "--resume", str(tmp_path / "stopped")]) == 0
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    rows = without_time(tmp_path / "whole")
    assert any(row.get("zero_variance", 0) > 0 for row in rows)
    assert (method == "dapo") == any(row.get("groups_resampled", 0) > 0 for row in rows)


def test_a_resumed_run_copies_no_reference(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The model that the run began with is the reference; the checkpoint's is never copied."""
    copied_from = []
    reference = JanusPolicy.reference

    def counted(self: JanusPolicy) -> JanusPolicy:
        copied_from.append(self)
        return reference(self)

    monkeypatch.setattr(JanusPolicy, "reference", counted)
    run = copied(finished, tmp_path)
    assert main(["train", "--resume", str(run), "--steps", str(STEPS + 1)]) == 0
    assert len(copied_from) == 1


def test_more_steps(finished: Path, tmp_path: Path):
    run = copied(finished, tmp_path)
    assert main(["train", "--resume", str(run), "--steps", str(STEPS + 1), "--device", "cpu"]) == 0
    assert without_time(run)[: STEPS + 1] == without_time(finished)
    assert [row["step"] for row in without_time(run)] == list(range(STEPS + 2))
    assert json.loads((run / "config.json").read_text())["steps"] == STEPS + 1
    assert (run / "samples.png").exists() and (run / f"samples/step-{STEPS + 1:06d}.png").exists()


NEWER = ("beta", "dynamic_clip", "sampling")  # settings that older runs did not write


def test_a_run_of_before_goes_on_as_it_began(finished: Path, tmp_path: Path):
    """Its held-out images were drawn as those of training, and its beta was the method's."""
    run = copied(finished, tmp_path)
    written = json.loads((run / "config.json").read_text())
    drawn = {**written["rollout"]["sampling"], "guidance_scale": 3.0}
    kept = {
        part: {name: value for name, value in written[part].items() if name not in NEWER}
        for part in ("update", "evaluation")
    }
    edit(run / "config.json", rollout={**written["rollout"], "sampling": drawn}, **kept)
    for checkpoint in checkpoints.complete(run / "checkpoints"):
        settings = json.loads((checkpoint / "complete.json").read_text())["settings"]
        parts = {name: name.split(".") for name in settings}
        before = {
            name: settings[name]
            for name, (part, *below) in parts.items()
            if part == "rollout" or not {*below} & {*NEWER}
        }
        edit(checkpoint / "complete.json", settings=before | {"rollout.sampling.guidance_scale": 3.0})
    assert main(["train", "--resume", str(run), "--steps", str(STEPS + 1)]) == 0
    found = json.loads((run / "config.json").read_text())
    assert found["evaluation"]["sampling"] == drawn and found["update"]["beta"] is None


def test_held_out_images_are_drawn_at_the_models_own_guidance(
    finished: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Training at another guidance leaves the untrained policy's held-out score as it was."""
    out = tmp_path / "run"
    more = ("--rollout.sampling.guidance-scale", "1", "--steps", "1")
    assert main(train_words(model, out, "cfg", *more)) == 0
    written = json.loads((out / "config.json").read_text())
    scales = [written[part]["sampling"]["guidance_scale"] for part in ("rollout", "evaluation")]
    assert scales == [1.0, random_janus().default_guidance]
    assert without_time(out)[0] == without_time(finished)[0]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "no preset: the defaults"
    assert said[1].startswith("on cpu, ") and said[1].endswith(f", float32: {model} by cfg, for brightness")
    assert said[2:5] == [
        f"1 steps of 2 prompts x 3 images, into {out}",
        LOADING,
        "guidance 1 in training, 5 on held-out prompts",
    ]
    assert said[5].startswith("3 of 3 held-out prompts are training prompts too")
    other = tmp_path / "other"
    assert main(train_words(model, other, "cfg", *more, "--evaluation.sampling.guidance-scale", "1")) == 0
    assert without_time(other)[0] != without_time(finished)[0]


def test_a_run_that_is_never_evaluated(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """It needs no held-out prompts, draws none of them, and goes on and ends like any other."""
    run = tmp_path / "run"
    words = train_words(model, run, "cfg", "--evaluation.every", "0", "--heldout", "absent.txt", "--steps", "1")
    assert main(words) == 0
    assert "nothing is held out (evaluation.every is 0)" in capsys.readouterr().out
    assert main(["train", "--resume", str(run), "--steps", "2"]) == 0
    assert [row["step"] for row in without_time(run)] == [1, 2]
    assert not any("heldout" in row for row in without_time(run)) and not (run / "samples").exists()
    assert json.loads((run / "best.json").read_text()) == {"step": None}
    assert main(["report", str(run)]) == 0
    capsys.readouterr()
    assert "give a larger --steps" in refused(capsys, "train", "--resume", run)


def test_a_long_run_shows_evenly_spaced_evaluations(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prompts = ["first", "second"]
    draw_progress(finished / "samples", [0, STEPS], prompts, tmp_path / "ends.png")
    monkeypatch.setattr("t2i_rl.pictures.strips.ROWS", 2)
    draw_progress(finished / "samples", [0, 3, STEPS], prompts, tmp_path / "thinned.png")
    assert (tmp_path / "thinned.png").read_bytes() == (tmp_path / "ends.png").read_bytes()


def test_the_best_step_is_the_earliest_of_equals_and_never_the_untrained_one():
    assert best_step([{"step": 0, "heldout": 0.9}]) is None
    rows = [{"step": step, "heldout": score} for step, score in enumerate((0.9, 0.2, 0.4, 0.4, 0.3))]
    assert best_step([*rows, {"step": 5}]) == 2


def test_a_run_that_is_being_trained_is_left_alone(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = copied(finished, tmp_path)
    with owned(run):
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        sentence = refused(capsys, "train", "--resume", run, "--steps", STEPS + 1)
        assert f"is being trained by process {os.getpid()} on" in sentence
        assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize("begin", ["start", "resume"])
def test_a_run_is_owned_while_it_trains(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, begin: str
):
    run, said, step = tmp_path / "run", [], Trainer.step
    if begin == "resume":
        assert main(train_words(model, run, "cfg", "--steps", "1")) == 0

    def beside(self: Trainer, number: int) -> dict[str, float]:
        capsys.readouterr()
        said.append(refused(capsys, "train", "--resume", run))
        return step(self, number)

    monkeypatch.setattr(Trainer, "step", beside)
    words = ["train", "--resume", str(run)] if begin == "resume" else train_words(model, run, "cfg")
    assert main([*words, "--steps", "2"]) == 0
    assert said and all("is being trained by process" in sentence for sentence in said)
    assert (run / "lock").read_text() == ""


def test_what_is_no_run(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "is not a run folder" in refused(capsys, "train", "--resume", tmp_path)
    newest = checkpoints.latest(finished / "checkpoints")
    assert "is not a run folder" in refused(capsys, "train", "--resume", newest)
    assert f"has done {STEPS} steps" in refused(capsys, "train", "--resume", finished)
    assert f"has done {STEPS} steps" in refused(capsys, "train", "--resume", finished, "--steps", 2)
    assert "steps is 0" in refused(capsys, "train", "--resume", finished, "--steps", 0)
    assert "Unrecognized options: --seed" in refused(capsys, "train", "--resume", finished, "--seed", 1)
    run = copied(finished, tmp_path)
    for checkpoint in checkpoints.complete(run / "checkpoints"):
        shutil.rmtree(checkpoint)
    before = listing(run)
    assert "the checkpoints of" in refused(capsys, "train", "--resume", run)
    assert listing(run) == before


def test_a_full_disk_leaves_the_last_checkpoint(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    run = copied(finished, tmp_path)

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    words = ["train", "--resume", str(run), "--steps", str(STEPS + 1)]
    with monkeypatch.context() as patch:
        patch.setattr(optimizer_files, "save_file", full)
        assert main(words) == 2
    error = capsys.readouterr().err
    assert (
        f"--resume goes on from {checkpoints.at_step(run / 'checkpoints', STEPS)}" in error and "No space left" in error
    )
    assert listing(run / "checkpoints") == listing(finished / "checkpoints")
    assert main(words) == 0
