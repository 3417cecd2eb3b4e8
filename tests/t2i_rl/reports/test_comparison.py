"""Finished runs side by side: what is averaged, what is compared at equal time, and what stays empty."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i_rl.reports.comparison import Finished, common_steps, draw, read_run, shortest, spread, table
from t2i_rl.training.metrics_log import METRICS


def write_run(run: Path, scores: dict[int, float], pace: float = 2.0, steps: int = 4) -> Path:
    """Metrics of a run of `steps` steps: `scores` by evaluated step, `pace` seconds a step, KL step / 100."""
    rows: list[dict[str, float]] = [{"step": step} for step in range(steps + 1)]
    for step, row in enumerate(rows):
        if step:
            row |= {"reward_std": 0.1 * step, "kl": step / 100}
            row |= {"seconds/sample": pace / 4, "seconds/update": 3 * pace / 4}
        if step in scores:
            row |= {"heldout": scores[step], "heldout/colors": scores[step] - 0.1, "heldout/counting": 0.5}
    run.mkdir(parents=True)
    (run / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def finished(run: Path, scores: dict[int, float], pace: float = 2.0, reference: bool = True) -> Finished:
    found = read_run(write_run(run, scores, pace), 4, reference)
    assert found is not None
    return found


@pytest.fixture
def arms(tmp_path: Path) -> dict[str, list[Finished]]:
    return {
        "fast": [
            finished(tmp_path / "fast-0", {0: 0.4, 2: 0.5, 4: 0.6}),
            finished(tmp_path / "fast-1", {0: 0.4, 2: 0.7, 4: 0.8}),
        ],
        "free": [finished(tmp_path / "free-0", {0: 0.4, 1: 0.45, 2: 0.6, 4: 0.9}, pace=4.0, reference=False)],
        "absent": [],
    }


def test_what_a_run_measured(tmp_path: Path) -> None:
    found = finished(tmp_path / "run", {0: 0.4, 2: 0.5, 4: 0.6})
    assert found.heldout == {0: 0.4, 2: 0.5, 4: 0.6}
    assert found.seconds == {0: 0.0, 2: 4.0, 4: 8.0}
    assert found.tags == {"colors": 0.5, "counting": 0.5}
    assert found.reward_std == pytest.approx(0.25)
    assert found.kl == 0.04  # of the last step: a tenth of four is less than one
    assert found.seconds_per_step == 2.0
    assert [found.at_time(seconds) for seconds in (0, 1, 6, 8)] == pytest.approx([0.4, 0.425, 0.55, 0.6])


def test_the_divergence_is_that_of_the_last_tenth(tmp_path: Path) -> None:
    found = read_run(write_run(tmp_path / "run", {20: 0.5}, steps=20), 20, reference=True)
    assert found is not None and found.kl == pytest.approx(0.195)


def test_a_step_that_updated_nothing_has_no_divergence(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {20: 0.5}, steps=20)
    rows = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    del rows[20]["kl"]
    (run / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_run(run, 20, reference=True)
    assert found is not None and found.kl == 0.19


def test_a_run_without_reference_has_no_divergence(tmp_path: Path) -> None:
    assert finished(tmp_path / "run", {0: 0.4, 4: 0.5}, reference=False).kl is None


def test_runs_that_have_not_reached_their_last_step_do_not_count(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {0: 0.4, 2: 0.5})
    assert read_run(run, 4, reference=True) is None  # its last evaluation is missing
    assert read_run(run, 9, reference=True) is None
    assert read_run(tmp_path / "absent", 4, reference=True) is None
    short = read_run(run, 2, reference=True)
    assert short is not None and short.seconds_per_step == 2.0 and short.reward_std == pytest.approx(0.15)


def test_mean_and_deviation() -> None:
    assert spread([]) == ""
    assert spread([0.5]) == "0.500"
    assert spread([0.4, 0.6]) == "0.500 ± 0.141"
    assert spread([0.4, 0.6], digits=1) == "0.5 ± 0.1"


def test_the_table(arms: dict[str, list[Finished]]) -> None:
    assert common_steps(arms) == [0, 2, 4]
    assert shortest(arms) == 8.0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(arms).splitlines()]
    head = "arm seeds step_0 step_2 step_4 8_s colors counting reward_std KL s/step".replace("_", " ")
    assert " ".join(lines[0]) == head
    fast, free, absent = (dict(zip(lines[0], line, strict=True)) for line in lines[2:])
    assert (fast["seeds"], fast["step 2"], fast["step 4"]) == ("2", "0.600 ± 0.141", "0.700 ± 0.141")
    assert (fast["8 s"], fast["KL"], fast["s/step"]) == ("0.700 ± 0.141", "0.0400 ± 0.0000", "2.00 ± 0.00")
    assert (free["8 s"], free["step 4"], free["colors"]) == ("0.600", "0.900", "0.800")  # half its time is gone at 8 s
    assert free["KL"] == ""
    assert absent == dict.fromkeys(lines[0], "") | {"arm": "absent", "seeds": "0"}


def test_a_grid_that_has_not_run_is_an_empty_table(tmp_path: Path) -> None:
    nothing: dict[str, list[Finished]] = {"a": [], "b": []}
    assert table(nothing).splitlines()[2:] == ["| a | 0 |  |  |  |", "| b | 0 |  |  |  |"]
    draw(nothing, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size[0] > 500


def test_the_figure_shows_every_arm_in_its_own_panel(arms: dict[str, list[Finished]], tmp_path: Path) -> None:
    draw(arms, tmp_path / "three.png")
    draw({**arms, "more": arms["fast"], "last": arms["free"]}, tmp_path / "five.png")
    three, five = (np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("three.png", "five.png"))
    assert five.shape[0] > three.shape[0]  # a second row of panels
    blue = (three == (0x00, 0x72, 0xB2)).all(-1)
    assert blue[: three.shape[0] // 3].any() and blue[2 * three.shape[0] // 3 :].any()  # curves above, dots below
