"""What a run was started with, what stands on its checkpoints, and where else its numbers go."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from models.registry import load
from rewards.catalogue import REWARDS, RewardEntry
from t2i_rl.cli import main
from t2i_rl.errors import UserError
from t2i_rl.rollout.noise import Noise
from t2i_rl.rollout.sampler import sample_group
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.training import run_record
from t2i_rl.training.model_card import publishable
from t2i_rl.training.run_record import identity, read_record, record, surroundings
from t2i_rl.training.trackers import Package, check_tracker
from tests.t2i_rl.small_runs import STEPS, Brightness, train_words

pytestmark = pytest.mark.usefixtures("brightness")


def test_the_surroundings():
    found = surroundings("cpu", 2)
    assert found.keys() == {"started", "host", "hardware", "command", "commit", "versions"}
    assert re.fullmatch(r"2 x cpu, \d+ cores with \d+ GB", found["hardware"])
    assert {"python", "torch", "t2i-rl"} <= found["versions"].keys()
    assert re.fullmatch(r"([0-9a-f]{12}\+?)?", found["commit"])


def test_a_run_and_its_continuation_are_recorded(model: Path, tmp_path: Path):
    run = tmp_path / "run"
    assert main(train_words(model, run, "cfg", "--steps", "1")) == 0
    assert len(read_record(run)) == 1
    assert main(["train", "--resume", str(run), "--steps", "2"]) == 0
    first, second = read_record(run)
    assert first["started"] <= second["started"]
    (run / "run.json").write_text("{")
    assert read_record(run) == []


def test_runs_that_begin_in_one_second_are_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_record, "surroundings", lambda *_: {"started": "2026-01-01T00:00:00+00:00"})
    runs = tmp_path / "here/first", tmp_path / "there/first"
    for run in runs:
        run.mkdir(parents=True)
        record(run, "cpu", 1)
    here, there = map(identity, runs)
    record(runs[0], "cpu", 1)  # it goes on
    assert here == identity(runs[0]) != there


def test_the_card_of_a_checkpoint(finished: Path, model: Path):
    text = (finished / "checkpoints" / f"step-{STEPS:06d}" / "README.md").read_text(encoding="utf-8")
    assert text.startswith(
        f'---\nbase_model: "{model.name}"\nlibrary_name: transformers\n'
    )  # no folder of this machine
    for says in (
        "`cfg`: guidance contrast",
        "| reward | `brightness` |",
        "## Held-out scores",
        "| step | held out | all |",
    ):
        assert says in text, says
    assert len(re.findall(r"^\| [035] \|", text, re.MULTILINE)) == 3
    assert f"{STEPS} of {STEPS}" in text


def test_a_card_may_go_where_others_read_it():
    command = "t2i-rl train --model /home/ann/models/mine --out=~/runs/a --prompts mine.txt --reward shapes@http://a:1"
    told = "t2i-rl train --model mine --out=a --prompts mine.txt --reward shapes"
    assert publishable(command) == told and publishable("") == ""


def test_plain_transformers_load_and_sample_a_checkpoint(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By the card's own lines; the same tokens as ours where the most likely ones are taken."""
    folder = finished / "checkpoints" / f"step-{STEPS:06d}"
    snippet = (folder / "README.md").read_text(encoding="utf-8").split("```python\n", 1)[1].split("```", 1)[0]
    found: dict = {}
    monkeypatch.chdir(folder)
    code = snippet.replace("do_sample=True", "do_sample=False").replace("circle.png", str(tmp_path / "circle.png"))
    exec(compile(code, "README.md", "exec"), found)
    policy = load(str(folder))
    condition = policy.encode(["a photo of a red circle"])
    sampling = Sampling(guidance_scale=policy.default_guidance, temperature=0)
    ours = sample_group(policy, condition, 1, sampling, Noise(seed=0))
    assert torch.equal(found["tokens"], ours.tokens[0])
    shown = np.asarray(Image.open(tmp_path / "circle.png")).astype(int)
    assert np.abs(shown - ours.images(policy)[0, 0].permute(1, 2, 0).numpy()).max() <= 1


class Told:
    """A tracker's package that notes what it is told."""

    def __init__(self, broken: str = "") -> None:
        self.calls: list[tuple[str, dict]] = []
        self.broken = broken

    def __getattr__(self, name: str):
        def call(*given: object, **named: object) -> None:
            if name == self.broken:
                raise ConnectionError("nobody\nthere")
            self.calls.append((name, {"given": given, **named}))

        return call


@pytest.fixture(params=["trackio", "wandb", "swanlab"])
def tracker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Told]:
    told = Told()
    monkeypatch.setitem(sys.modules, request.param, told)
    monkeypatch.setattr("t2i_rl.training.trackers.find_spec", lambda name: SimpleNamespace())
    return request.param, told


def test_a_tracker_is_told_every_step(tracker: tuple[str, Told], model: Path, tmp_path: Path):
    name, told = tracker
    assert main(train_words(model, tmp_path / "run", "cfg", "--steps", "1", "--track", name)) == 0
    assert [call for call, _ in told.calls] == ["init", "log", "log", "finish"]
    begun, first, second, _ = (given for _, given in told.calls)
    assert begun["project"] == "t2i-rl" and begun["config"]["rollout.group_size"] == 3
    assert (first["step"], second["step"]) == (0, 1) and "reward" in second["given"][0]


def test_runs_of_one_name_are_apart_and_go_on_as_themselves(tracker: tuple[str, Told], model: Path, tmp_path: Path):
    name, told = tracker
    for place in ("here", "there"):
        assert main(train_words(model, tmp_path / place / "first", "cfg", "--steps", "1", "--track", name)) == 0
    assert main(["train", "--resume", str(tmp_path / "here/first"), "--steps", "2"]) == 0
    here, there, again = (given for call, given in told.calls if call == "init")
    key = "name" if name == "trackio" else "id"
    assert here[key] == again[key] != there[key]
    assert again["resume"] == "allow"
    if key == "id":
        assert re.fullmatch("[0-9a-f]{21}", here["id"])
        assert "first" in here.values()


def test_a_tracker_that_fails_costs_a_warning(
    tracker: tuple[str, Told], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    name, told = tracker
    package = Package(name, tmp_path, {})
    told.broken = "log"
    for step in (1, 2):
        package.log({"reward": 1.0}, step)
    said = capsys.readouterr().err
    assert said == f"warning: {name} is not told any more (ConnectionError: nobody there); the run goes on\n"
    told.broken = "init"
    with pytest.raises(UserError, match=f"{name} cannot be begun .*leave out --track"):
        Package(name, tmp_path, {})


def test_a_tracker_that_is_not_here():
    with pytest.raises(UserError, match=r"--track nowhere needs the package nowhere.*pip install nowhere"):
        check_tracker("nowhere")


def test_further_rewards_judge_the_same_images(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    class Darkness(Brightness):
        name = "darkness"

        def score(self, images, prompts, metadata):
            scores = super().score(images, prompts, metadata)
            return type(scores)(1 - scores.total, {}, scores.reasons)

    monkeypatch.setitem(REWARDS, "darkness", RewardEntry(lambda device: Darkness()))
    run = tmp_path / "run"
    assert main(train_words(model, run, "cfg", "--steps", "1", "--evaluation.also", "darkness")) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    for row in rows:
        assert row["heldout"] + row["also/darkness"] == pytest.approx(1, abs=1e-5)
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert 'id="gains"' in page and "<td>darkness</td>" in page and "<td>its score</td>" in page
    capsys.readouterr()
    assert main(train_words(model, tmp_path / "no", "cfg", "--evaluation.also", "pairwise")) == 2
    assert "evaluation.also is pairwise: it has to be rewards of single images" in capsys.readouterr().err
