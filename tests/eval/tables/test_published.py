"""What papers state: every printed figure is there once, in the figure of ours that it is of, with its table."""

import json

import pytest

from eval.benchmark import OVERALL
from eval.compbench.benchmark import CATEGORIES
from eval.preferences import SCORERS
from eval.tables.published import COLUMNS, CRITICAL, DATA, GUIDANCE, ROWS, Published, rows_of
from t2i_rl.errors import UserError
from tests.eval.tables.test_terms import UNIDET, alike


def row_of(benchmark: str, paper: str, table: str, row: str) -> Published:
    (found,) = (one for one in ROWS if (one.benchmark, one.paper, one.table, one.row) == (benchmark, paper, table, row))
    return found


def test_the_figures_of_the_main_tables() -> None:
    trained = "Janus-Pro-7B + GCPO (critical tokens)"
    scores = row_of("t2i-compbench", CRITICAL, "table 2", trained)
    assert scores.figures == {
        ("score", "color"): 0.7508, ("score", "shape"): 0.5173, ("score", "texture"): 0.703,
        ("score", "spatial"): 0.3824, ("score", "non_spatial"): 0.3133, ("score", "complex"): 0.3888,
    }  # fmt: skip
    assert row_of("drawbench", CRITICAL, "table 2", trained).figures == {
        ("deqa", OVERALL): 3.73, ("imagereward", OVERALL): 1.01, ("pickscore", OVERALL): 22.1, ("hpsv2", OVERALL): 30.9,
    }  # fmt: skip
    assert row_of("hps", CRITICAL, "table 2", trained).figures == {("hpsv2", OVERALL): 30.9}
    assert scores.label == f"published: {trained} (arXiv:2509.22485, table 2; 14.89 s a step)"
    guided = row_of("geneval", GUIDANCE, "table 1", "Janus-Pro + GCPO (guidance contrast), 7B")
    assert guided.figures["correct", "color_attr"] == 0.83 and guided.figures["correct", OVERALL] == 0.89


@pytest.mark.parametrize(
    ("paper", "table", "row", "label", "overall"),
    [
        (GUIDANCE, "table 3a", "absolute difference", "Janus-Pro-7B, divergence: absolute difference", 0.84),
        (GUIDANCE, "table 3b", "min-max", "Janus-Pro-7B, normalisation: min-max", 0.85),
        (CRITICAL, "table 3", "structure, without", "Janus-Pro-1B, ablation: structure, without", 0.81),
        (CRITICAL, "table 4", "STAR + GRPO", "STAR + GRPO", 0.50),
        (CRITICAL, "table 7", "all tokens, with", "Janus-Pro-1B, dynamic weight: all tokens, with", 0.85),
        (CRITICAL, "table 11", "G=12", "Janus-Pro-1B, group size: G=12", 0.88),
    ],
)
def test_the_rows_of_ablations(paper: str, table: str, row: str, label: str, overall: float) -> None:
    found = row_of("geneval", paper, table, row)
    assert found.figures["correct", OVERALL] == overall
    assert found.label.startswith(f"published: {label} ({paper}, {table}")


def test_the_figures_of_reasoning() -> None:
    found = {
        benchmark: row_of(benchmark, GUIDANCE, "table 2", "Qwen3-VL-8B-Instruct + GCPO").figures["accuracy", OVERALL]
        for benchmark in ("mathverse", "mathvision", "mm12k", "logicvista", "mmmu-pro")
    }
    assert [*found.values()] == [84.1, 56.9, 81.3, 63.0, 55.3]
    for table, row, label, accuracy in (
        ("table 3a", "absolute difference", "Qwen2.5-VL-7B, divergence: absolute difference", 75.5),
        ("table 4", "blank image", "Qwen2.5-VL-7B, negative prompt: blank image", 82.1),
    ):
        variant = row_of("mm12k", GUIDANCE, table, row)
        assert variant.figures == {("accuracy", OVERALL): accuracy}
        assert variant.label == f"published: {label} ({GUIDANCE}, {table})"


def test_what_was_published_here_before_the_tables_were_is_still_there() -> None:
    overall = {row.figures["correct", OVERALL] for row in ROWS if row.benchmark == "geneval" and row.paper == GUIDANCE}
    assert overall >= {0.85, 0.89, 0.88, 0.84, 0.86}
    critical = [row for row in ROWS if row.benchmark == "geneval" and row.paper == CRITICAL and row.table == "table 1"]
    tags = {
        tuple(row.figures["correct", tag] for tag in (OVERALL, "counting", "colors", "position")) for row in critical
    }
    assert tags >= {(0.8, 0.59, 0.9, 0.79), (0.87, 0.71, 0.94, 0.92), (0.9, 0.9, 0.9, 0.95), (0.84, 0.59, 0.84, 0.88)}
    assert tags >= {(0.85, 0.63, 0.88, 0.91), (0.39, 0.28, 0.68, 0.11), (0.42, 0.25, 0.71, 0.13)}
    hps = {row.figures["hpsv2", OVERALL] for row in ROWS if row.benchmark == "hps"}
    assert hps >= {29.16, 29.33, 29.54, 29.61, 29.29, 29.65}


def test_no_printed_figure_is_lost_and_none_stands_twice() -> None:
    printed: dict[tuple[str, str], list[float]] = {}
    for paper in (GUIDANCE, CRITICAL):
        for title, rows in json.loads(DATA.read_text())[paper].items():
            for row in rows if isinstance(rows, list) else []:
                for column in COLUMNS.keys() & row.keys():
                    if row[column] is not None:
                        printed.setdefault((paper, title.partition(", ")[0]), []).append(row[column])
    for (paper, table), values in printed.items():
        held = [
            value
            for row in ROWS
            if (row.paper, row.table) == (paper, table)
            for key, value in row.figures.items()
            if (row.benchmark, key) != ("hps", ("hpsv2", OVERALL))  # stands beside DrawBench too
        ]
        # Table 6 repeats rows of tables 1 and 2, and one row of its own is table 1's overall figure.
        assert sorted(held) == sorted(values) if table != "table 6" else 0 < len(held) < len(values)
    labels = [(row.benchmark, row.label) for row in ROWS]
    assert len({*labels}) == len(labels)


def test_every_column_is_a_figure_of_its_benchmark() -> None:
    places = [place for held in COLUMNS.values() for place in held]
    assert {key[1] for benchmark, key in places if benchmark == "t2i-compbench"} < {*CATEGORIES}
    assert {key[0] for benchmark, key in places if benchmark in ("drawbench", "hps")} < {*SCORERS}


def test_what_is_not_published_is_refused() -> None:
    drawbench = alike("drawbench", pickscore="pickscore (x)", aesthetic="aesthetic (x)")
    assert len(rows_of([alike("t2i-compbench", score=UNIDET)], ["score"])) > 10
    assert all(("pickscore", OVERALL) in row.figures for row in rows_of([drawbench], ["pickscore", "aesthetic"]))
    with pytest.raises(UserError, match=r"no figure of drawbench is known .* geneval \(correct\).* hps \(hpsv2\)"):
        rows_of([drawbench], ["aesthetic"])
