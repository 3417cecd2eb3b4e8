"""Pictures of a run over time: the same prompts and the same noise at every evaluation."""

import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from t2i_rl.errors import UserError
from t2i_rl.outputs import aside_of
from t2i_rl.pictures.figures import new_figure, save_figure

ROWS = 24  # of the grid over time; a longer run shows as many evaluations, evenly spaced


def strip_path(folder: Path, step: int) -> Path:
    """Where the pictures of an evaluation lie."""
    return folder / f"step-{step:06d}.png"


def save_strip(path: Path, images: Sequence[UInt8[ndarray, "H W 3"]]) -> None:
    """One image per prompt, side by side."""
    path.parent.mkdir(exist_ok=True)
    with aside_of(path) as aside:
        Image.fromarray(np.concatenate(images, axis=1)).save(aside, format="png")


def read_strip(path: Path) -> Image.Image | None:
    """The pictures of an evaluation; None, with a warning, where they are gone or damaged."""
    try:
        with Image.open(path) as strip:
            strip.load()
            return strip
    except (OSError, SyntaxError, ValueError) as error:  # SyntaxError is PIL's for a broken chunk
        print(f"warning: left out {path}, which cannot be read ({error})", file=sys.stderr)
        return None


def alike(strips: Mapping[int, Image.Image | None]) -> dict[int, Image.Image]:
    """Those by step that are there and as large as the last: earlier releases kept fewer pictures."""
    found = {step: strip for step, strip in strips.items() if strip is not None}
    return {step: strip for step, strip in found.items() if strip.size == found[max(found)].size}


def draw_progress(folder: Path, steps: Sequence[int], prompts: Sequence[str], path: Path) -> None:
    """The strips of these steps below each other: one row per evaluation that can be read, one column per prompt."""
    spaced = np.linspace(0, len(steps) - 1, min(ROWS, len(steps))).round().astype(int)
    read = {steps[index]: read_strip(strip_path(folder, steps[index])) for index in spaced}
    shown = alike(read)
    if not shown:
        raise UserError(f"{folder} holds no picture that can be read")
    figure = new_figure(1.4 * len(prompts), 1.4 * len(shown) + 0.8, layout="constrained")
    grid = figure.subplots(len(shown), len(prompts), squeeze=False)
    for row, (step, strip) in zip(grid, shown.items(), strict=True):
        pictures = np.split(np.asarray(strip), len(prompts), axis=1)
        for axes, picture in zip(row, pictures, strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"step {step}")
    for axes, prompt in zip(grid[0], prompts, strict=True):
        axes.set_title(textwrap.fill(prompt, 18), fontsize=7)
    save_figure(figure, path, 120)
