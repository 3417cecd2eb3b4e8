"""The figures of an evaluation for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

WIDEST = 10_000  # of a table, in signs


def show(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table whole: rich would shorten it to the width of a terminal, or to 80 signs without one.

    Names are the user's, and no mark-up.
    """
    console, drawn = console or Console(markup=False), table(summary)
    console.width = max(console.width, console.measure(drawn, options=console.options.update(max_width=WIDEST)).maximum)
    console.print(drawn)


def table(summary: Mapping[str, Any]) -> Table:
    """One row per category, one column per figure; below, the figures over all and what to know about them."""
    metrics, settings, counts = summary["metrics"], summary["settings"], summary["counts"]
    about = f"{counts['images']} {summary['samples']} of {counts['prompts']} prompts"
    drawn = Table(
        title=f"{summary['benchmark']}, {settings.get('model', 'given images')}",
        caption="\n".join([about, *summary.get("lines", ()), *summary["notes"]]),
    )
    drawn.add_column("category")
    drawn.add_column(summary["samples"], justify="right")
    for name in metrics:
        drawn.add_column(name, justify="right")
    for category, images in counts["images_per_category"].items():
        drawn.add_row(category, str(images), *(f"{metric['categories'][category]:.4f}" for metric in metrics.values()))
    drawn.add_section()
    kinds = {metric["mean_of"] for metric in metrics.values()}
    kind = kinds.pop()
    label = f"overall (mean of {summary['samples'] if kind == 'images' else kind})"
    drawn.add_row(label, "", *(f"{metric['overall']:.4f}" for metric in metrics.values()), style="bold")
    if missing := counts["missing"]:
        drawn.add_row("missing, scored 0", str(len(missing)), *[""] * len(metrics), style="red")
    return drawn
