"""Fonts that have the letters of what people type: matplotlib's own, and for what that lacks others that are here."""

import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from matplotlib import font_manager
from matplotlib.text import Text
from PIL import ImageFont

from rewards.errors import printable

OWN = "DejaVu Sans"
NO_FONTS = ("lastresort",)  # draw a box for every letter
SHOWN = 10  # letters that a warning names
told = set[str]()  # letters that a warning has named, in this process


def own_file() -> str:
    return font_manager.findfont(OWN)


@cache
def letters(file: str) -> frozenset[str]:
    """What a font can draw; nothing for one of pictures, such as coloured emojis."""
    try:
        return frozenset(map(chr, font_manager.get_font(file).get_charmap()))
    except (RuntimeError, OSError, ValueError):
        return frozenset()


@cache
def installed() -> tuple[str, ...]:
    """The files of all fonts here, upright ones first; also those that came after matplotlib made its list."""
    found = {*font_manager.findSystemFonts(), *(entry.fname for entry in font_manager.fontManager.ttflist)}
    kept = (file for file in found if not Path(file).name.lower().startswith(NO_FONTS))
    return tuple(sorted(kept, key=lambda file: ("regular" not in Path(file).name.lower(), file)))


def beside_own(text: str) -> list[str]:
    """Files of further fonts that have letters which matplotlib's own lacks."""
    lacking, files = _lacking(text), list[str]()
    for file in installed() if lacking else ():
        if lacking & letters(file):
            files.append(file)
            lacking -= letters(file)
        if not lacking:
            break
    return files


def _lacking(text: str) -> set[str]:
    return {sign for sign in text if not sign.isspace()} - letters(own_file())


def say_what_lacks(texts: Iterable[str]) -> None:
    """A warning, once, for the letters that no font here has."""
    text = "".join(texts)
    new = sorted(_lacking(text).difference(told, *map(letters, beside_own(text))))
    if not new:
        return
    told.update(new)
    named = " ".join(new[:SHOWN]) + (" ..." if len(new) > SHOWN else "")
    mend = "install one that has, such as Noto Sans of their script"
    print(printable(f"warning: no font here has {named}, so pictures show boxes for them: {mend}"), file=sys.stderr)


def give_letters(texts: Sequence[Text]) -> None:
    """Let each text of a figure have the fonts that it needs."""
    say_what_lacks(text.get_text() for text in texts)
    for text in texts:
        if files := beside_own(text.get_text()):
            text.set_fontfamily([OWN, *map(_named, files)])


@cache
def _named(file: str) -> str:
    """The name by which matplotlib finds a font, of which it knows from now on."""
    if all(entry.fname != file for entry in font_manager.fontManager.ttflist):
        font_manager.fontManager.addfont(file)
    return font_manager.ttfFontProperty(font_manager.get_font(file)).name


def of_line(text: str, size: int) -> ImageFont.FreeTypeFont:
    """One font for a line of text: that which has most of its letters."""
    wanted = {*text}
    most = max([own_file(), *beside_own(text)], key=lambda file: len(wanted & letters(file)))
    return ImageFont.truetype(most, size)
