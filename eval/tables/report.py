"""The figures of an evaluation for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rewards.errors import printable

WIDEST = 10_000  # of a table, in signs


def show(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table whole: rich would shorten it to the width of a terminal, or to 80 signs without one."""
    console, drawn = console or Console(), table(summary)
    console.width = max(console.width, console.measure(drawn, options=console.options.update(max_width=WIDEST)).maximum)
    console.print(drawn)


def table(summary: Mapping[str, Any]) -> Table:
    """One row per category, one column per figure; below, the figures over all and what to know about them."""
    metrics, settings, counts = summary["metrics"], summary["settings"], summary["counts"]
    about = f"{counts['images']} {summary['samples']} of {counts['prompts']} prompts"
    drawn = Table(
        title=_plain(f"{summary['benchmark']}, {settings.get('model', 'given images')}"),
        caption=_plain("\n".join([about, *summary.get("lines", ()), *summary["notes"]])),
    )
    drawn.add_column("category")
    drawn.add_column(summary["samples"], justify="right")
    for name in metrics:
        drawn.add_column(_plain(name), justify="right")
    for category, images in counts["images_per_category"].items():
        means = (f"{metric['categories'][category]:.4f}" for metric in metrics.values())
        drawn.add_row(_plain(category), str(images), *means)
    drawn.add_section()
    kinds = {metric["mean_of"] for metric in metrics.values()}
    kind = kinds.pop()
    label = f"overall (mean of {summary['samples'] if kind == 'images' else kind})"
    drawn.add_row(label, "", *(f"{metric['overall']:.4f}" for metric in metrics.values()), style="bold")
    if missing := counts["missing"]:
        drawn.add_row("missing, scored 0", str(len(missing)), *[""] * len(metrics), style="red")
    return drawn


def _plain(text: str) -> Text:
    """A name of the user's, who need not know of rich's mark-up, nor means to steer the terminal."""
    return Text(printable(text))
