"""The figures of arms as a table."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def table(title: str, arms: Mapping[str, Mapping[str, Any]], caption: str) -> Table:
    """One column for each arm; a dash for what is not known."""
    shown = Table("", *arms, title=title, caption=caption)
    for name in next(iter(arms.values())):
        values = (figures[name] for figures in arms.values())
        shown.add_row(name.replace("_", " "), *("-" if value is None else f"{value:.3g}" for value in values))
    return shown
