"""The table of an evaluation on terminals of any width, and where there is none."""

import io
import re

import pytest
from rich.console import Console

from eval.tables.report import show

SCORERS = ("hpsv2", "imagereward", "pickscore", "clipscore", "aesthetic", "deqa", "unifiedreward", "judge")
CATEGORIES = {"colors": 0.6675, "color_attr": 0.2083, "a category with a very long name": 12.34}
SUMMARY = {
    "benchmark": "drawbench",
    "settings": {"model": "runs/a-model"},
    "samples": "images",
    "counts": {"prompts": 3, "images": 6, "images_per_category": dict.fromkeys(CATEGORIES, 2), "missing": [[0, 1]]},
    "notes": ["a note that is a good deal longer than the narrowest of these terminals is wide"],
    "metrics": {name: {"categories": CATEGORIES, "overall": 4.4053, "mean_of": "images"} for name in SCORERS},
}


@pytest.mark.parametrize("width", [20, 40, 80, 300])
@pytest.mark.parametrize("terminal", [False, True])
def test_names_and_numbers_are_whole(width: int, terminal: bool) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    show(SUMMARY, console)
    text = console.file.getvalue()
    rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in text.splitlines()]
    cells = {row[0]: row[2:] for row in rows if row}
    assert cells["category"] == list(SCORERS)
    for name, value in {**CATEGORIES, "overall (mean of images)": 4.4053}.items():
        assert cells[name] == [f"{value:.4f}"] * len(SCORERS)
