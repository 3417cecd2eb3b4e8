"""Figures in files: drawn without a window, and with all text as it was typed."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from t2i_rl.outputs import aside_of
from t2i_rl.pictures.fonts import give_letters


def new_figure(width: float, height: float, **settings: Any) -> Figure:
    """An empty figure of this size, in inches."""
    figure = Figure(figsize=(width, height), **settings)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Write it. Captions and names are the user's: their $ is no mathematics, and their letters are any."""
    texts = [found for found in figure.findobj(Text) if isinstance(found, Text)]
    for text in texts:
        text.set_parse_math(False)
    give_letters(texts)
    with aside_of(path) as aside, warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing")  # said in one line
        figure.savefig(aside, dpi=dpi, format="png")


@contextmanager
def ornament(what: str) -> Iterator[None]:
    """A picture beside a result that is written: where it cannot be drawn, a warning says why."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"warning: {what} cannot be drawn ({reason}), but all else is written", file=sys.stderr)
