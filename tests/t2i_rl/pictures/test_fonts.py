"""What people type is drawn in letters, by a font that has them, or a line says that none has."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager

from t2i_rl.pictures import fonts
from t2i_rl.pictures.figures import new_figure, save_figure
from t2i_rl.pictures.image_files import CAPTION, MARGIN, contact_sheet

FRAKTUR = "\U0001d56c"  # of those that only other fonts of matplotlib's have
SCRIPTS = ["红色的圆", "लाल घेरा", "🔴"]


@pytest.fixture(autouse=True)
def nothing_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "told", set())


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without fonts but matplotlib's first."""
    monkeypatch.setattr(fonts, "installed", lambda: ())


def titled(text: str, path: Path) -> str:
    """Draw it without a warning; the name of the last of its fonts."""
    figure = new_figure(4, 1)
    figure.text(0.1, 0.5, text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure, path, 50)
    family = figure.texts[0].get_fontfamily()
    assert len(family) == 1 + len(fonts.beside_own(text))
    return family[-1]


def test_a_letter_that_another_font_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert FRAKTUR not in fonts.letters(fonts.own_file())
    found = font_manager.findfont(titled(f"a {FRAKTUR}", tmp_path / "figure.png"))
    assert FRAKTUR in fonts.letters(found) and not capsys.readouterr().err
    assert fonts.of_line(FRAKTUR, 12).path == found
    assert fonts.beside_own("a red circle, круг, دائرة") == []


@pytest.mark.usefixtures("bare")
def test_letters_that_no_font_has_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    titled(SCRIPTS[0], tmp_path / "figure.png")
    said = capsys.readouterr().err
    assert said.startswith("warning: no font here has 圆 的 红 色, so pictures show boxes for them: install one")
    assert said.count("\n") == 1
    titled(SCRIPTS[0], tmp_path / "figure.png")
    contact_sheet([(text, [np.zeros((48, 48, 3), np.uint8)]) for text in SCRIPTS])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "圆" not in said and "🔴" in said and "घ" in said


def test_a_file_that_is_no_font(tmp_path: Path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    assert fonts.letters(str(tmp_path / "broken.ttf")) == frozenset()
    assert not any("LastResort" in file for file in fonts.installed())


def test_captions_of_a_contact_sheet_are_letters():
    """Pillow's own font has a box for each of these."""
    black = np.zeros((48, 48, 3), np.uint8)
    captions = [
        np.asarray(contact_sheet([(text, [black])]))[: CAPTION + MARGIN // 2] for text in ("круг", "куст", "круг")
    ]
    assert (captions[0] == captions[2]).all() and (captions[0] != captions[1]).any()
