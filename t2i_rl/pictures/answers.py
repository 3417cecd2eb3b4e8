"""Answers of a run over time: the same held-out questions and the same noise at every evaluation."""

import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.policy import Policy
from models.question import IMAGE, Question
from t2i_rl.errors import UserError
from t2i_rl.outputs import write_atomically
from t2i_rl.pictures.figures import new_figure, save_figure
from t2i_rl.prompts.asking import Asking
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.generate import generate
from t2i_rl.rollout.sampling import Sampling

ROWS = 8  # of the figure over time; a longer run shows as many evaluations, evenly spaced
WIDE, HIGH = 2.6, 1.5  # inches of a cell
LINE, LINES = 36, 9  # characters in a cell's line, and its lines


def answers_path(folder: Path, step: int) -> Path:
    """Where the answers of an evaluation lie."""
    return folder / f"step-{step:06d}.json"


def save_answers(
    path: Path,
    policy: Policy,
    prompts: Sequence[Prompt],
    asking: Asking,
    sampling: Sampling,
    seed: int,
    max_tokens: int,
) -> None:
    """One answer to each question, as a list of texts."""
    drawn = generate(policy, prompts, 1, sampling, seed, len(prompts), max_tokens=max_tokens, asking=asking)
    answers = [one.image for one in drawn]
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(answers, ensure_ascii=False, indent=2) + "\n")


def read_answers(path: Path) -> list[str] | None:
    """The answers of an evaluation; None, with a warning, where they are gone or damaged."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, list) and all(isinstance(one, str) for one in found):
            return found
        error = "no list of texts"
    except (OSError, ValueError) as failure:
        error = str(failure)
    print(f"warning: left out {path}, which cannot be read ({error})", file=sys.stderr)
    return None


def draw_answers(folder: Path, steps: Sequence[int], asked: Sequence[Question], path: Path) -> None:
    """The questions with their first pictures in a column, and beside each its answers: one column per evaluation."""
    spaced = np.linspace(0, len(steps) - 1, min(ROWS, len(steps))).round().astype(int)
    read = {steps[index]: read_answers(answers_path(folder, steps[index])) for index in spaced}
    shown = {step: answers for step, answers in read.items() if answers is not None and len(answers) == len(asked)}
    if not shown:
        raise UserError(f"{folder} holds no answers that can be read")
    figure = new_figure(WIDE * (len(shown) + 1), HIGH * len(asked) + 0.4, layout="constrained")
    grid = figure.subplots(len(asked), len(shown) + 1, squeeze=False)
    for row, question in zip(range(len(asked)), asked, strict=True):
        for axes in grid[row]:
            axes.set_axis_off()
        if question.pictures:
            grid[row, 0].imshow(question.pictures[0], interpolation="nearest")
        words = question.text.replace(IMAGE, "").strip()
        grid[row, 0].set_title(textwrap.shorten(words, 2 * LINE), fontsize=7)
        for axes, answers in zip(grid[row, 1:], shown.values(), strict=True):
            lines = textwrap.wrap(answers[row], LINE)
            cut = [*lines[: LINES - 1], "..."] if len(lines) > LINES else lines
            axes.text(0, 1, "\n".join(cut), fontsize=7, va="top", transform=axes.transAxes)
    for axes, step in zip(grid[0, 1:], shown, strict=True):
        axes.set_title(f"step {step}", fontsize=8)
    save_figure(figure, path, 120)
