"""Answers word by word as files: `answers.json` (the numbers), `heatmap.png` (a figure), `heatmap.html` (one page that
needs nothing else).
"""

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from t2i_rl.outputs import whole_folder
from t2i_rl.pictures.answer_maps import Answer, AnswerMaps, shade
from t2i_rl.pictures.figures import new_figure, ornament, save_figure
from t2i_rl.pictures.heatmaps import LOOKS
from t2i_rl.pictures.pages import data_uri, render

PLAIN, UP, DOWN = "#009E73", "#D55E00", "#0072B2"  # of a value; of a word made likelier, and less: as maps have it
DARKEST = 0.75  # opacity
COLUMNS = 84  # characters in a line of the figure
WIDE, HIGH = 0.602 * 7 / 72, 0.16  # inches of a character and of a line
PICTURE, EDGE = 2.0, 0.15  # inches
ANSWERS = 6  # in the figure; the page has them all

Word = tuple[str, float, tuple[float, float, float, float]]  # its text, its value, its colour with the opacity


def save(maps: AnswerMaps, folder: Path) -> None:
    """Write the three files into a new folder, which appears when they are complete. UserError if it is in use."""
    with whole_folder(folder) as aside:
        answers = [
            {"label": answer.label, "advantage": answer.advantage, "words": answer.words}
            | {name: [float(f"{value:.6g}") for value in values] for name, values in answer.maps.items()}
            for answer in maps.answers
        ]
        found = {"question": maps.question, "source": maps.source, "answers": answers}
        (aside / "answers.json").write_text(json.dumps(found, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        (aside / "heatmap.html").write_text(page(maps), encoding="utf-8")
        with ornament("heatmap.png"):
            save_figure(draw(maps), aside / "heatmap.png", 200)


def rows(maps: AnswerMaps, answer: Answer) -> Iterator[tuple[str, list[Word]]]:
    """The answer once for each map, with the colours of its words."""
    for name, values in answer.maps.items():
        together = [value for one in maps.answers for value in one.maps[name]]
        signed = name == "credit" and answer.advantage is not None
        color = to_rgb((UP if answer.advantage > 0 else DOWN) if signed and answer.advantage is not None else PLAIN)
        high = max(together)
        shades = shade(values, (min(0.0, min(together)), high if high > 0 else 1.0))
        triples = zip(answer.words, values.tolist(), shades.tolist(), strict=True)
        yield LOOKS[name].title, [(word, value, (*color, DARKEST * dark)) for word, value, dark in triples]


def page(maps: AnswerMaps) -> str:
    """The HTML page."""

    def css(color: tuple[float, float, float, float]) -> str:
        return f"rgb({' '.join(str(round(255 * part)) for part in color[:3])} / {color[3]:.3f})"

    answers = [
        (
            answer,
            [
                (title, [(word, f"{value:.4g}", css(color)) for word, value, color in words])
                for title, words in rows(maps, answer)
            ],
        )
        for answer in maps.answers
    ]
    return render("answers.html.j2", maps=maps, pictures=[*map(data_uri, maps.pictures)], answers=answers)


def draw(maps: AnswerMaps) -> Figure:
    """Pictures on the left; on the right the answers, once for each map: the higher a value, the darker its word."""
    blocks: list[tuple[str, list[list[Word]]]] = []
    for answer in maps.answers[:ANSWERS]:
        blocks.append((answer.label, []))
        blocks += [(title, broken(words)) for title, words in rows(maps, answer)]
    left_out = len(maps.answers) - ANSWERS
    title = textwrap.wrap(maps.question, COLUMNS) + textwrap.wrap(
        maps.source + (f" · {ANSWERS} of {len(maps.answers)} answers" if left_out > 0 else ""), COLUMNS + 20
    )
    lines = len(title) + 1 + sum(1 + len(words) for _, words in blocks)
    height = max(EDGE * 2 + lines * HIGH, EDGE * 2 + PICTURE * len(maps.pictures))
    left = EDGE + (PICTURE + EDGE if maps.pictures else 0)
    width = left + COLUMNS * WIDE + EDGE
    figure = new_figure(width, height)
    for number, picture in enumerate(maps.pictures):
        bottom = height - EDGE - (number + 1) * PICTURE
        axes = figure.add_axes((EDGE / width, bottom / height, PICTURE / width, 0.95 * PICTURE / height))
        axes.imshow(picture, interpolation="nearest")
        axes.set_axis_off()
    text = figure.add_axes((left / width, 0, 1 - left / width, 1))
    text.set(xlim=(0, width - left), ylim=(height, 0))
    text.set_axis_off()
    place = EDGE + HIGH
    for line in title:
        text.text(0, place, line, fontsize=7, va="bottom")
        place += HIGH
    for heading, block in blocks:
        text.text(0, place + HIGH, heading, fontsize=8 if not block else 6, va="bottom", color="0.35" if block else "0")
        place += HIGH
        for words in block:
            place += HIGH
            _draw_line(text, words, place)
    return figure


def broken(words: list[Word]) -> list[list[Word]]:
    """In lines of at most `COLUMNS` characters; a word's own line breaks become blanks."""
    lines: list[list[Word]] = [[]]
    used = 0
    for word, value, color in words:
        flat = " ".join(word.split("\n")) if "\n" in word else word
        if used + len(flat) > COLUMNS and lines[-1]:
            lines.append([])
            used = 0
        lines[-1].append((flat[:COLUMNS], value, color))
        used += len(flat)
    return lines


def _draw_line(axes: Axes, words: list[Word], bottom: float) -> None:
    at = 0.0
    for word, _, color in words:
        axes.add_patch(Rectangle((at, bottom - 0.9 * HIGH), len(word) * WIDE, 0.9 * HIGH, color=color, linewidth=0))
        axes.text(at, bottom - 0.04, word, fontsize=7, family="DejaVu Sans Mono", va="bottom")
        at += len(word) * WIDE
