"""What figures say is what was typed, and a picture beside a result may fail."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from t2i_rl.pictures.figures import new_figure, ornament, save_figure

TYPED = ["worth $$", "for $5 and $10", "$\\frac{$", "$x$"]  # two of these matplotlib cannot read, two it changes


@pytest.mark.parametrize("typed", TYPED)
def test_every_text_is_shown_as_it_was_typed(typed: str, tmp_path: Path):
    figure = new_figure(4, 3, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], label=typed)
    axes.set(title=typed, xlabel=typed, ylabel=typed, yticks=[0])
    axes.set_yticklabels([typed])
    axes.legend()
    figure.suptitle(typed)
    figure.text(0.5, 0.5, typed)
    save_figure(figure, tmp_path / "figure.png", 50)
    assert np.asarray(Image.open(tmp_path / "figure.png")).std() > 0
    said = [text for text in figure.findobj(Text) if text.get_text() == typed]
    assert len(said) >= 7 and not any(text.get_parse_math() for text in said)
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


def test_a_figure_that_fails_leaves_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    figure = new_figure(4, 3)
    figure.text(0.5, 0.5, "text", transform="of no kind")
    with ornament("figure.png"):
        save_figure(figure, tmp_path / "figure.png", 50)
    assert capsys.readouterr().err.startswith("warning: figure.png cannot be drawn (")
    assert not list(tmp_path.iterdir())
