"""What a run writes down, and how it speaks."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from t2i_rl.pictures.curves import draw_reward_curve
from t2i_rl.training import metrics_log as tracking
from t2i_rl.training.metrics_log import MetricsLog, Numbers, pace, read_metrics, step_seconds
from tests.t2i_rl.training.test_trainer import settings, trainer

ROWS = [{"step": 0, "heldout": 0.25}] + [{"step": step, "reward": step / 10, "seconds/sample": 0.5} for step in (1, 2)]


def log(run: Path, done: int, *rows: dict[str, float]) -> None:
    with MetricsLog(run, 4, done) as tracker:
        for row in rows:
            tracker.log(row)


def test_metrics_come_back(tmp_path: Path):
    assert read_metrics(tmp_path) == []
    log(tmp_path, 0, *ROWS)
    assert read_metrics(tmp_path) == ROWS


def test_what_lies_beyond_the_checkpoint_is_written_again(tmp_path: Path):
    log(tmp_path, 0, *ROWS)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rew')  # killed while it wrote
    assert read_metrics(tmp_path) == ROWS
    log(tmp_path, 1, {"step": 2, "reward": 0.9})
    assert read_metrics(tmp_path) == [*ROWS[:2], {"step": 2, "reward": 0.9}]


@pytest.mark.parametrize("damage", [bytes(30), b"\xff\xfe{", b"[1]", b'{"reward": 1}', b'{"step": 3, "rew', b"7", b""])
def test_a_damaged_line_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes):
    """As after a power failure; a run that goes on writes the file anew."""
    log(tmp_path, 0, *ROWS)
    capsys.readouterr()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(damage + b"\n")
    assert read_metrics(tmp_path) == ROWS
    assert capsys.readouterr().err == f"warning: left out what is damaged of {tmp_path}/metrics.jsonl: line 4\n"
    log(tmp_path, 2, {"step": 3, "reward": 0.9})
    capsys.readouterr()
    assert read_metrics(tmp_path) == [*ROWS, {"step": 3, "reward": 0.9}]
    assert not capsys.readouterr().err


def test_tensorboard_has_the_same_numbers(tmp_path: Path):
    log(tmp_path, 0, *ROWS)
    log(tmp_path, 1, {"step": 2, "reward": 0.9})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {event.step: event.value for event in events.Scalars("reward")}
    assert found == pytest.approx({1: 0.1, 2: 0.9})
    assert [event.step for event in events.Scalars("heldout")] == [0]


def test_one_plain_line_a_step_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    log(tmp_path, 0, *ROWS)
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "step 0  heldout 0.250",
        "step 1  reward 0.100  0.5 s  0:00:02 left",
        "step 2  reward 0.200  0.5 s  0:00:01 left",
    ]
    assert not captured.err


def test_groups_that_are_lost_stand_in_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    log(tmp_path, 0, *({"step": 1 + lost, "groups_lost": lost, "groups_scored": 8 - lost} for lost in (0, 3)))
    assert capsys.readouterr().out.splitlines() == ["step 1  ", "step 4    3 of 8 groups lost"]


def test_what_is_followed_is_counted_on_a_terminal_and_named_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    with MetricsLog(tmp_path / "a", 4, 0) as tracker:
        assert [*tracker.following("abc", "judging 3 images", 3)] == ["a", "b", "c"]
    assert capsys.readouterr().out == "judging 3 images\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with MetricsLog(tmp_path / "b", 4, 0) as tracker:
        seen = []
        for _ in tracker.following("abc", "judging 3 images", 3):
            steps, judging = tracker.progress.tasks
            seen.append((steps.description, judging.description, judging.total))
        assert seen == [("step", "judging 3 images", 3)] * 3
        assert [task.description for task in tracker.progress.tasks] == ["step"]
    assert [*Numbers(tmp_path, 0).following("abc", "", 3)] == ["a", "b", "c"]


def test_every_metric_of_a_step_is_documented():
    metrics = trainer("grpo", settings()).step(1)
    named = re.findall(r"^\| (.+?) \|", tracking.__doc__, flags=re.MULTILINE)
    documented = {name for cell in named for name in cell.split(", ")}
    plain = {re.sub(r"^seconds/(?!score$|step$).*", "seconds/PHASE", name) for name in metrics}
    assert plain <= documented
    phases = {name.removeprefix("seconds/") for name in metrics if name.startswith("seconds/")}
    assert phases == {"sample", "decode", "reference", "score_wait", "update", "score", "step"}
    spent = sum(metrics[f"seconds/{phase}"] for phase in phases - {"score", "step"})
    assert spent <= metrics["seconds/step"]
    json.dumps(metrics, allow_nan=False)


def test_the_divergence_of_an_older_run_goes_by_todays_names(tmp_path: Path):
    """It was over the updated tokens: over all where these were all, and not known there elsewhere."""
    rows = [
        {"step": 1, "kl": 0.3, "updated_tokens": 0.3},
        {"step": 2, "kl": 0.2, "updated_tokens": 1.0},
        {"step": 3, "kl": 0.1, "kl_updated": 0.5, "updated_tokens": 0.3},
        {"step": 4, "reward": 1.0},
    ]
    (tmp_path / tracking.METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [(row.get("kl"), row.get("kl_updated")) for row in read_metrics(tmp_path)]
    assert found == [(None, 0.3), (0.2, 0.2), (0.1, 0.5), (None, None)]


def test_the_seconds_of_a_step_count_nothing_twice():
    assert step_seconds({"step": 1, "seconds/score": 5.0, "seconds/score_wait": 1.0, "seconds/step": 4.0}) == 4
    assert step_seconds(ROWS[1]) == 0.5 and step_seconds(ROWS[0]) == 0


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]], ids=["trained", "untrained"])
def test_the_reward_curve(tmp_path: Path, rows: list[dict[str, float]]):
    assert draw_reward_curve(tmp_path, rows) == tmp_path / "reward.png"
    picture = np.asarray(Image.open(tmp_path / "reward.png"))
    assert picture.ndim == 3 and picture.std() > 0


def test_the_pace():
    """Of the last steps, against the first ones; an evaluation alone has none."""
    rows = [{"step": 0, "heldout": 0.1}, *({"step": step, "seconds/step": 2.0} for step in range(1, 11))]
    assert pace(rows[:1], 100) == "" and pace(rows, 100) == "  2.0 s  0:03:00 left" and pace(rows, 10) == "  2.0 s"
    rows += [{"step": step, "seconds/step": 3.0} for step in range(11, 21)]
    assert pace(rows, 3620) == "  3.0 s, +50% since the start  3:00:00 left"
