"""Comparing evaluations: the bootstrap, what is refused, and the tables."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.benchmark import OVERALL, Benchmark, Metric, RewardScorer
from eval.images import Generation
from eval.runner import run
from eval.tables.compare import Finished, Interval, compare, drawn, interval, read_run
from eval.tables.compare_table import as_csv, columns, latex, markdown, terminal
from eval.tables.published import ROWS
from eval.tables.terms import TERMS, Terms
from models.janus.policy import JanusPolicy
from t2i_rl.cli import main
from t2i_rl.errors import UserError
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.sampling import Sampling
from tests.eval.small import ByPixel

SETTINGS = {"benchmark": "small", "prompts_sha256": "1", "rules": {}}


def finished(name: str, means: dict[str, np.ndarray], mean_of: str = "images", **more) -> Finished:
    settings = SETTINGS | more
    scorers = {"pixel": settings.get("scorer", "x")}
    return Finished(name, settings, scorers, {"score": means}, {"score": mean_of}, {"score": "pixel"})


def test_the_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(0.4, 0.2, size=400)
    found = interval(drawn({"all": values}, "images", 4000, seed=0)[OVERALL])
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_overall_is_over_prompts_or_over_categories():
    means = {"a": np.array([1.0, 1.0, 1.0]), "b": np.array([0.0])}
    assert drawn(means, "images", 5, 0)[OVERALL].tolist() == [0.75] * 6  # every category keeps its number of prompts
    assert drawn(means, "categories", 5, 0)[OVERALL].tolist() == [0.5] * 6


def test_paired_differences_are_tighter_than_the_figures():
    random = np.random.default_rng(2)
    easy = random.random(200)
    a, b = finished("a", {"all": easy}), finished("b", {"all": easy + 0.01})
    found = compare([a, b])
    difference = found.differences["b - a"]["score", OVERALL]
    assert difference.value == pytest.approx(0.01) == pytest.approx(difference.low) == pytest.approx(difference.high)
    assert found.runs["a"]["score", OVERALL].high > found.runs["b"]["score", OVERALL].low


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"prompts_sha256": "2"}, "another prompts_sha256"),
        ({"benchmark": "large"}, "another benchmark"),
        ({"rules": {"fixed": True}}, "another rules"),
        ({"scorer": "y"}, "a was judged by x and b by y"),
    ],
)
def test_runs_that_were_not_judged_alike(more: dict, message: str):
    with pytest.raises(UserError, match=message):
        compare([finished("a", {"all": np.ones(2)}), finished("b", {"all": np.ones(2)}, **more)])


def test_runs_without_a_common_figure():
    other = Finished("b", SETTINGS, {}, {"beauty": {"all": np.ones(2)}}, {"beauty": "images"}, {"beauty": "x"})
    with pytest.raises(UserError, match="a, b have no figure in common"):
        compare([finished("a", {"all": np.ones(2)}), other])


@pytest.fixture
def runs(policy: JanusPolicy, tmp_path: Path) -> list[Path]:
    """The same benchmark by two guidance scales."""
    prompts = tuple(Prompt(f"a photo of {name}", {"category": name[-1]}) for name in ("a ring", "a cross", "a ring."))
    benchmark = Benchmark("hps", prompts, 2, (Metric("hpsv2", "pixel", {"total": 100.0}),))
    for name, scale in (("a_1", 1.0), ("b_2", 6.0)):
        source = Generation(policy, Sampling(scale), 0, "random")
        run(benchmark, source, {"pixel": RewardScorer(ByPixel())}, tmp_path / name)
    return [tmp_path / "a_1", tmp_path / "b_2"]


def test_a_run_is_read_as_it_was_summarised(runs: list[Path]):
    summary = json.loads((runs[0] / "summary.json").read_text())
    found = compare([read_run(path) for path in runs]).runs[str(runs[0])]
    metric = summary["metrics"]["hpsv2"]
    assert found["hpsv2", OVERALL].value == pytest.approx(metric["overall"])
    assert {place: one.value for (_, place), one in found.items() if place != OVERALL} == pytest.approx(
        metric["categories"]
    )


def test_a_ledger_that_was_edited_afterwards_is_not_believed(runs: list[Path]):
    ledger = runs[0] / "scores" / "pixel.jsonl"
    first, *rest = [json.loads(line) for line in ledger.read_text().splitlines()]
    first["values"]["total"] += 0.25
    ledger.write_text("".join(json.dumps(row) + "\n" for row in (first, *rest)))
    with pytest.raises(
        UserError, match=r"the lines of scores give .* for hpsv2, but summary.json .*: one of them was changed"
    ):
        read_run(runs[0])


def test_the_tables_hold_the_same_figures(runs: list[Path]):
    held = [read_run(path) for path in runs]
    comparison, stated = compare(held, 50), [row for row in ROWS if row.benchmark == "hps"]
    lines = list(csv.DictReader(io.StringIO(as_csv(comparison, stated))))
    assert len(lines) == 3 * 4 + len(stated)
    text = markdown(comparison, stated).splitlines()
    assert len(text) == 2 + 2 + 1 + len(stated) and {line.count("|") for line in text} == {len(columns(comparison)) + 2}
    for line in lines:
        if line["kind"] == "value" and line["category"] == OVERALL:
            assert any(line["run"] in row and f"{float(line['value']):.2f} [" in row for row in text)
    assert r"{\scriptsize [" in latex(comparison)
    assert r"b\_2" in latex(comparison) and latex(comparison).count(r"\midrule") == 2
    assert latex(comparison, stated).count(r"\\") == 1 + 2 + 1 + len(stated)


def test_the_command(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    assert main(["compare", *map(str, runs), "--published"]) == 2
    assert f"{runs[0]}, which has 3 prompts instead of 3200 and 2 instead of 1 images" in capsys.readouterr().err
    monkeypatch.setitem(TERMS, "hps", Terms(3, None, 2, {"hpsv2": ("pixels", "by pixel")}))
    out = [tmp_path / f"table{suffix}" for suffix in (".md", ".tex", ".csv")]
    words = [*map(str, runs), "--published", "--draws", "20", "--out", *map(str, out)]
    assert main(["compare", *words]) == 0
    shown = capsys.readouterr().out
    assert "29.61" in shown and "published" in shown and "29.61" in out[0].read_text()
    assert shown == out[0].read_text()  # a pipe gets Markdown
    assert all(path.read_text() for path in out)


def test_figures_are_rows_on_a_terminal_and_what_is_settled_is_bold(runs: list[Path]):
    comparison = compare([read_run(path) for path in runs], 50)
    (name, found), *_ = comparison.differences.items()
    settled = {key: Interval(0.2, 0.1, 0.3) for key in found} | {("hpsv2", OVERALL): Interval(0.2, -0.1, 0.3)}
    head, first, *rows = terminal(replace(comparison, differences={name: settled})).splitlines()
    assert all(run.name in head for run in runs)
    assert first.split()[0] == "hpsv2" and "\033" not in first
    assert rows and all("\033[1m" in row and row.endswith("+0.200 [+0.100, +0.300]\033[0m") for row in rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "nothing to compare"),
        ("absent", "absent/summary.json"),
        ("a a", "named more than once"),
        ("a --draws 0", "draws is 0"),
        ("a --out table.doc", "no kind of table"),
    ],
)
def test_what_the_command_refuses(words: str, message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["compare", *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_published_figures_stand_in_their_columns():
    means = {tag: np.array([0.5, 0.25]) for tag in ("counting", "position", "colors")}
    settings = {**SETTINGS, "benchmark": "geneval"}
    runs = [
        Finished(name, settings, {}, {"correct": means}, {"correct": "categories"}, {"correct": "geneval"})
        for name in ("a", "b")
    ]
    stated = [row for row in ROWS if row.benchmark == "geneval"]
    head, _, *rows = (line.split(" | ") for line in markdown(compare(runs, 5), stated).splitlines())
    row = next(row for row in rows if "Janus-Pro-7B (arXiv:2509.22485" in row[0])
    assert dict(zip(head[1:], (one.rstrip(" |") for one in row[1:]), strict=True)) == {
        "correct": "0.8", "counting": "0.59", "position": "0.79", "colors |": "0.9",
    }  # fmt: skip
