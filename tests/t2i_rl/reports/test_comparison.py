"""Finished runs side by side: what is averaged, what is compared at equal time, and what stays empty."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i_rl.reports.comparison import (
    Arms,
    Finished,
    common_steps,
    draw,
    last_half,
    paired,
    read_run,
    shortest,
    spread,
    table,
)
from t2i_rl.training.metrics_log import METRICS


def write_run(run: Path, scores: dict[int, float], pace: float = 2.0, steps: int = 4) -> Path:
    """Metrics of a run of `steps` steps: `scores` by evaluated step, `pace` seconds a step, KL step / 100."""
    rows: list[dict[str, float]] = [{"step": step} for step in range(steps + 1)]
    for step, row in enumerate(rows):
        if step:
            row |= {"reward_std": 0.1 * step, "kl": step / 100, "kl_updated": 0.0, "credit_weight": 0.5}
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
def arms(tmp_path: Path) -> Arms:
    return {
        "fast": {
            3: finished(tmp_path / "fast-3", {0: 0.4, 2: 0.5, 4: 0.6}),
            7: finished(tmp_path / "fast-7", {0: 0.4, 2: 0.7, 4: 0.8}),
        },
        "free": {7: finished(tmp_path / "free-7", {0: 0.4, 1: 0.45, 2: 0.6, 4: 0.9}, pace=4.0, reference=False)},
        "absent": {},
    }


def test_what_a_run_measured(tmp_path: Path) -> None:
    found = finished(tmp_path / "run", {0: 0.4, 2: 0.5, 4: 0.6})
    assert found.heldout == {0: 0.4, 2: 0.5, 4: 0.6}
    assert found.seconds == {0: 0.0, 2: 4.0, 4: 8.0}
    assert found.tags == {"colors": 0.5, "counting": 0.5}
    assert found.reward_std == pytest.approx(0.25)
    assert found.kl == 0.04  # of the last step: a tenth of four is less than one
    assert found.seconds_per_step == 2.0 and found.weight == 0.5
    assert [found.at_time(seconds) for seconds in (0, 1, 6, 8)] == pytest.approx([0.4, 0.425, 0.55, 0.6])


def test_the_divergence_is_that_of_the_last_tenth(tmp_path: Path) -> None:
    found = read_run(write_run(tmp_path / "run", {20: 0.5}, steps=20), 20, reference=True)
    assert found is not None and found.kl == pytest.approx(0.195)


def test_a_step_that_updated_nothing_has_no_divergence(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {20: 0.5}, steps=20)
    rows = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    del rows[20]["kl"], rows[20]["kl_updated"]
    (run / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_run(run, 20, reference=True)
    assert found is not None and found.kl == 0.19


def test_a_run_without_reference_has_no_divergence(tmp_path: Path) -> None:
    assert finished(tmp_path / "run", {0: 0.4, 4: 0.5}, reference=False).kl is None


def test_single_images_have_no_spread(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {0: 0.4, 4: 0.5})
    rows = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    for row in rows[1:]:
        del row["reward_std"]
    (run / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_run(run, 4, reference=True)
    assert found is not None and found.reward_std is None
    assert "| arm | 1 | 0.400 | 0.500 |" in table({"arm": {0: found}})


def test_runs_that_have_not_reached_their_last_step_do_not_count(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {0: 0.4, 2: 0.5})
    assert read_run(run, 4, reference=True) is None  # its last evaluation is missing
    assert read_run(run, 9, reference=True) is None
    assert read_run(tmp_path / "absent", 4, reference=True) is None
    short = read_run(run, 2, reference=True)
    assert short is not None and short.seconds_per_step == 2.0 and short.reward_std == pytest.approx(0.15)


def test_mean_and_standard_error() -> None:
    assert spread([]) == ""
    assert spread([0.5]) == "0.500"
    assert spread([0.4, 0.6]) == "0.500 ± 0.100"
    assert spread([0.2, 0.4, 0.9], signed=True) == "+0.500 ± 0.208"  # 0.3606 / sqrt(3)
    assert spread([0.4, 0.6], digits=1) == "0.5 ± 0.1"


def test_the_last_half_of_the_evaluations() -> None:
    assert last_half([0, 5, 10, 15, 20]) == [15, 20]
    assert last_half([0, 20, 40]) == [40]
    assert last_half([0]) == [0]


def rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_the_table(arms: Arms) -> None:
    assert common_steps(arms) == [0, 2, 4]
    assert shortest(arms) == 8.0
    lines = rows_of(table(arms))
    assert lines[0] == [
        "arm", "seeds", "step 0", "step 4", "Δ", "8 s", "colors", "counting", "reward std",
        "weight", "KL", "s/step",
    ]  # fmt: skip
    fast, free, absent = (dict(zip(lines[0], line, strict=True)) for line in lines[2:])
    assert (fast["seeds"], fast["step 4"], fast["Δ"]) == ("2", "0.700 ± 0.100", "")
    assert (fast["8 s"], fast["weight"], fast["KL"]) == ("0.700 ± 0.100", "0.50 ± 0.00", "0.0400 ± 0.0000")
    assert (free["8 s"], free["step 4"], free["colors"]) == ("0.600", "0.900", "0.800")  # half its time is gone at 8 s
    assert free["Δ"] == "+0.100"  # from the run of its own seed, not from the mean
    assert free["KL"] == ""
    assert absent == dict.fromkeys(lines[0], "") | {"arm": "absent", "seeds": "0"}
    assert "less that of fast, over the seeds that both have" in table(arms)


def test_differences_are_paired_by_seed_and_have_their_own_error(tmp_path: Path) -> None:
    levels = {0: 0.1, 1: 0.5, 2: 0.9}
    arms = {
        arm: {
            seed: finished(tmp_path / f"{arm}-{seed}", {0: 0, 3: level + more[seed], 4: level})
            for seed, level in levels.items()
        }
        for arm, more in {"base": (0, 0, 0), "better": (0.2, 0.1, 0.3)}.items()
    }
    assert paired(arms["better"], arms["base"], [3]) == pytest.approx([0.2, 0.1, 0.3])
    _, _, base, better = rows_of(table(arms))
    assert better[2:7] == ["0.000 ± 0.000", "0.500 ± 0.231", "+0.000 ± 0.000", "0.600 ± 0.247", "+0.100 ± 0.029"]
    assert base[4] == base[6] == ""
    _, _, base, better = rows_of(table(arms, against="better"))
    assert (base[6], better[6]) == ("-0.100 ± 0.029", "")


def test_a_grid_that_has_not_run_is_an_empty_table(tmp_path: Path) -> None:
    nothing: Arms = {"a": {}, "b": {}}
    assert rows_of(table(nothing))[2:] == [["a", "0", "", "", "", ""], ["b", "0", "", "", "", ""]]
    draw(nothing, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size[0] > 500


def test_the_figure_shows_every_arm_in_its_own_panel(arms: Arms, tmp_path: Path) -> None:
    draw(arms, tmp_path / "three.png")
    draw({**arms, "more": arms["fast"], "last": arms["free"]}, tmp_path / "five.png")
    three, five = (np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("three.png", "five.png"))
    assert five.shape[0] > three.shape[0]  # a second row of panels
    blue = (three == (0x00, 0x72, 0xB2)).all(-1)
    assert blue[: three.shape[0] // 3].any() and blue[2 * three.shape[0] // 3 :].any()  # curves above, dots below
