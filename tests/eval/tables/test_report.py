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


def test_names_are_neither_mark_up_nor_commands_of_the_terminal() -> None:
    names = ["[/red]", "[bold]x[/bold]", "a\x1b]0;title\x07", "b\x1b[2J", "\u202egnp"]
    metric = {"categories": dict.fromkeys(names, 0.5), "overall": 0.5, "mean_of": "images"}
    counts = {**SUMMARY["counts"], "images_per_category": dict.fromkeys(names, 2)}
    summary = {**SUMMARY, "benchmark": "[/x]\x1b[31m", "counts": counts, "metrics": {"[/y]": metric}, "notes": ["[/z]"]}
    console = Console(file=io.StringIO(), color_system=None)
    show(summary, console)
    text = console.file.getvalue()
    for name in [
        "[/red]",
        "[bold]x[/bold]",
        r"a\x1b]0;title\x07",
        r"b\x1b[2J",
        r"\u202egnp",
        r"[/x]\x1b[31m",
        "[/y]",
        "[/z]",
    ]:
        assert name in text
    assert not {"\x1b", "\x07", "\u202e"} & {*text}
