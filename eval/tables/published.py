"""Figures that papers state, as they are printed; nothing was measured here.

`gcpo_papers.json` holds the tables of the two papers, typed from their text, one object a row. Each row becomes one of
`ROWS` for every benchmark that it has figures of; the number of its table is its source. What a later table repeats of
a row is left out. Guidance, seeds and versions of scorers may differ from ours; prompts, images of each and judges may
not (`eval.tables.terms`).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.benchmark import OVERALL
from eval.tables.compare import Finished
from eval.tables.terms import TERMS
from t2i_rl.errors import UserError

DATA = Path(__file__).with_name("gcpo_papers.json")
GUIDANCE = "arXiv:2605.29198"  # Guidance Contrastive
CRITICAL = "arXiv:2509.22485"  # Group Critical-token

Key = tuple[str, str]  # a metric of ours, and `overall` or a category

# A column's benchmark and figure of ours, on the same scale. Of which prompts HPSv2 is printed is not in our copy: it
# stands beside both benchmarks that have it. Columns of settings have no benchmark here.
COLUMNS: Mapping[str, Sequence[tuple[str, Key]]] = {
    "overall": [("geneval", ("correct", OVERALL))],
    "geneval": [("geneval", ("correct", OVERALL))],
    **{
        tag: [("geneval", ("correct", tag))]
        for tag in ("single_object", "two_object", "counting", "colors", "position", "color_attr")
    },
    **{
        category: [("t2i-compbench", ("score", category))]
        for category in ("color", "shape", "texture", "spatial", "non_spatial", "complex")
    },
    **{scorer: [("drawbench", (scorer, OVERALL))] for scorer in ("deqa", "imagereward", "pickscore")},
    "hpsv2": [("hps", ("hpsv2", OVERALL)), ("drawbench", ("hpsv2", OVERALL))],
    **{
        benchmark.replace("-", "_"): [(benchmark, ("accuracy", OVERALL))]
        for benchmark in ("mathverse", "mathvision", "mm12k", "logicvista", "mmmu-pro")
    },
}
COSTS = {"step_seconds": "{:g} s a step", "hours": "{:g} h", "gpu_memory_gb": "{:g} GB"}  # what a row's label tells
# The tables whose rows are variants of one model, but for their columns of MM12K, which are of another. Tables 7 to 11
# do not name it: one row of each has its figures.
VARIANTS = {
    **dict.fromkeys([(GUIDANCE, "table 3a"), (GUIDANCE, "table 3b")], "Janus-Pro-7B"),
    **{(CRITICAL, f"table {number}"): "Janus-Pro-1B" for number in (3, 7, 8, 9, 10, 11)},
}
ANSWERING = {(GUIDANCE, f"table {number}"): "Qwen2.5-VL-7B" for number in ("3a", "3b", "4")}
SETS = ("initial", "structure", "similarity")


@dataclass(frozen=True)
class Published:
    """A row of a paper's table, on the scale of our metrics.

    table: its number; row: what it is called there; of: where it is a variant, the model and what varies.
    figures: by metric and category. costs: what else is printed of it.
    """

    benchmark: str
    paper: str
    table: str
    row: str
    figures: Mapping[Key, float]
    of: str = ""
    costs: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        row = f"{self.of}: {self.row}" if self.of else self.row
        unseen = ["of which prompts is not known"] if self.benchmark == "hps" else []
        return f"published: {row} ({'; '.join([f'{self.paper}, {self.table}', *self.costs, *unseen])})"


def row_name(row: Mapping[str, Any]) -> str:
    """What a row is called. The ablation of the sets has marks instead of names: `initial, without` the weight."""
    if "model" in row:
        return f"{row['model']}, {row['parameters']}" if row.get("parameters") else str(row["model"])
    return f"{'+'.join(name for name in SETS if row[name])}, {'with' if row['dynamic_weight'] else 'without'}"


def printed(papers: Mapping[str, Any]) -> Iterator[Published]:
    """A row for each benchmark of each printed row, in the papers' order."""
    for paper in (GUIDANCE, CRITICAL):
        for title, rows in papers[paper].items():
            table, *subject = title.split(", ")
            for row in rows if isinstance(rows, list) else []:
                figures: dict[str, dict[Key, float]] = {}
                for column, places in COLUMNS.items():
                    for benchmark, key in places if row.get(column) is not None else []:
                        figures.setdefault(benchmark, {})[key] = row[column]
                costs = tuple(text.format(row[cost]) for cost, text in COSTS.items() if row.get(cost) is not None)
                for benchmark, held in figures.items():
                    model = (ANSWERING if benchmark == "mm12k" else VARIANTS).get((paper, table))
                    of = f"{model}, {subject[0]}" if model else ""
                    yield Published(benchmark, paper, table, row_name(row), held, of, costs)


def read_rows() -> tuple[Published, ...]:
    """All rows but those whose figures an earlier table of the same paper has, in a row of that name."""
    kept: list[Published] = []
    for row in printed(json.loads(DATA.read_text(encoding="utf-8"))):
        before = [one for one in kept if (one.benchmark, one.paper, one.row) == (row.benchmark, row.paper, row.row)]
        if not any(row.figures.items() <= one.figures.items() and row.table != one.table for one in before):
            kept.append(row)
    return tuple(kept)


ROWS = read_rows()


def rows_of(runs: Sequence[Finished], metrics: Sequence[str]) -> list[Published]:
    """What is published of these figures of the runs, which are all of one benchmark.

    Raises UserError for a benchmark without any, and for a run with other prompts, images of each or judges.
    """
    benchmark = runs[0].settings["benchmark"]
    found = [row for row in ROWS if row.benchmark == benchmark and any(metric in metrics for metric, _ in row.figures)]
    if not found:
        known = dict.fromkeys((row.benchmark, metric) for row in ROWS for metric, _ in row.figures)
        raise UserError(
            f"no figure of {benchmark} is known to be published, only of "
            f"{', '.join(f'{name} ({metric})' for name, metric in known)}: leave out --published"
        )
    stated = {metric for row in found for metric, _ in row.figures}
    shown = [metric for metric in metrics if metric in stated]
    for run in runs:
        if differences := TERMS[benchmark].differences(run, shown):
            raise UserError(
                f"what is published of {benchmark} cannot stand beside {run.name}, which has "
                f"{' and '.join(differences)}: leave out --published"
            )
    return found
