"""Questions about pictures of the shapes world, their answers, and how one comes to them in words.

It stands in for the data sets of visual mathematics where no GPU and no download is at hand. A scene has one to four
shapes, often of one or two kinds and colours, so that counts above 1 occur. What is asked: how many of a shape there
are, how many of a shape in a colour, what colour the only one of a shape has.

Questions name pairs of a colour and a shape; those of `HELD_OUT_PAIRS` are in the held-out questions alone, and the
scenes of the two splits are drawn from different seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
from jaxtyping import UInt8

from models.question import IMAGE
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.prompts.shapes_world import COLORS, IMAGE_SIZE, PLURALS, SHAPES, Shape, place, render

TAGS = ("count", "count-color", "color")
SHARES = (0.4, 0.4, 0.2)
ABSENT = 0.2  # of the questions of how many there are: none
MOST = 4  # shapes in a scene
WORDS = ("zero", "one", "two", "three", "four")
ROW = 16  # pixels: shapes are listed by such rows, then from left to right, so that there is one right order

HELD_OUT_PAIRS = frozenset(zip(COLORS, SHAPES, strict=False))
NUMBERS = {"train": 2000, "heldout": 300}
SEEDS = {"train": 11, "heldout": 12}


@dataclass(frozen=True)
class ShapesQuestion:
    """A question about a scene.

    shape: that it asks about. color: that it asks about; "" of one about a shape of any, or about the colour itself.
    """

    scene: tuple[Shape, ...]
    tag: str
    shape: str
    color: str = ""

    @property
    def text(self) -> str:
        if self.tag == "color":
            return f"What color is the {self.shape}?"
        return f"How many {f'{self.color} ' if self.color else ''}{PLURALS[self.shape]} are there?"

    @property
    def answer(self) -> str:
        """As a checker compares it: a colour, or a number in digits."""
        return solved(self.scene, self)

    @property
    def pair(self) -> tuple[str, str]:
        """The colour and the shape that the question or its answer names; no colour where it names none."""
        return (self.answer if self.tag == "color" else self.color), self.shape

    def counts(self, item: Shape) -> bool:
        return item.shape == self.shape and self.color in ("", item.color)


def solved(scene: Sequence[Shape], asked: ShapesQuestion) -> str:
    """The answer to the question if that were the scene."""
    if asked.tag != "color":
        return str(sum(map(asked.counts, scene)))
    return next((item.color for item in scene if item.shape == asked.shape), "")


def rationale(seen: Sequence[Shape], asked: ShapesQuestion, result: str) -> str:
    """What is seen, with a running count behind each thing that counts, then the result in a box."""
    number, things = 0, []
    for item in seen:
        thing = f"a {item.color} {item.shape}"
        if asked.tag != "color" and asked.counts(item):
            number += 1
            thing += f" {WORDS[number]}"
        things.append(thing)
    said = result if asked.tag == "color" else WORDS[int(result)]
    return f"<think> I see {', '.join(things)}. So {said}.</think> \\boxed{{{result}}}"


def draw(noise: np.random.Generator, held_out: bool | None = None) -> ShapesQuestion:
    """A question about a scene, both at random; if told, of pairs that are held out, or of the others."""
    while True:
        scene = _scene(noise)
        asked = _question(scene, noise)
        if asked is not None and (held_out is None or not asked.pair[0] or (asked.pair in HELD_OUT_PAIRS) == held_out):
            return asked


def _scene(noise: np.random.Generator) -> tuple[Shape, ...]:
    """In reading order."""
    kinds = noise.choice(SHAPES, size=2, replace=False) if noise.random() < 0.7 else SHAPES
    colors = noise.choice(COLORS, size=2, replace=False) if noise.random() < 0.7 else COLORS
    squares = place(int(noise.integers(1, MOST + 1)), noise)
    items = [Shape(str(noise.choice(kinds)), str(noise.choice(colors)), *square) for square in squares]
    return tuple(sorted(items, key=lambda item: (item.y // ROW, item.x)))


def _question(scene: Sequence[Shape], noise: np.random.Generator) -> ShapesQuestion | None:
    """None where the scene has nothing to be asked in the way that was drawn."""
    tag = str(noise.choice(TAGS, p=SHARES))
    there = [item.shape for item in scene]
    if tag == "color":
        alone = [shape for shape in there if there.count(shape) == 1]
        return ShapesQuestion(tuple(scene), tag, str(noise.choice(alone))) if alone else None
    absent, item = noise.random() < ABSENT, scene[int(noise.integers(len(scene)))]
    if tag == "count":
        missing = [shape for shape in SHAPES if shape not in there]
        return ShapesQuestion(tuple(scene), tag, str(noise.choice(missing)) if absent else item.shape)
    pair = (item.color, item.shape)
    if absent:
        pairs = {(one.color, one.shape) for one in scene}
        others = [(color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in pairs]
        pair = others[noise.integers(len(others))]
    return ShapesQuestion(tuple(scene), tag, pair[1], pair[0])


def questions(split: str) -> list[ShapesQuestion]:
    """The questions of the `train` or the `heldout` split, always the same; none is in both."""
    noise = np.random.default_rng(SEEDS[split])
    if split == "train":
        return [draw(noise, held_out=False) for _ in range(NUMBERS[split])]
    known = {(asked.scene, asked.text) for asked in questions("train")}
    drawn = (draw(noise, held_out=True) for _ in count())
    return list(islice((asked for asked in drawn if (asked.scene, asked.text) not in known), NUMBERS[split]))


def prompts(split: str) -> list[Prompt]:
    """The questions with their pictures and answers."""
    return [
        Prompt(
            IMAGE + asked.text,
            {"prompt": IMAGE + asked.text, "answer": asked.answer, "tag": asked.tag},
            pictures=(picture(asked),),
        )
        for asked in questions(split)
    ]


def picture(asked: ShapesQuestion) -> UInt8[np.ndarray, "H W 3"]:
    return render(asked.scene, IMAGE_SIZE)
