"""The shapes world: a small universe with captions in GenEval's grammar, exact scenes and a renderer.

It stands in for real images where no GPU and no download is at hand. A scene is a list of coloured
shapes on a lattice of image patches; every GenEval task has its captions, its metadata in GenEval's own
schema, and scenes that satisfy it. `rewards.detectors.shapes` sees this world exactly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from rewards.detectors.shapes import BACKGROUND, PALETTE, silhouette
from rewards.geneval.rules import RELATIONS, relative_position

IMAGE_SIZE = 48  # pixels
LATTICE = 4  # objects sit on multiples of this many pixels: a small codebook then holds every patch
SIDES = (12, 16)  # pixels
SUPERSAMPLING = 4

SHAPES = ("circle", "square", "triangle", "cross", "ring")
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
COLORS = tuple(PALETTE)
NUMBERS = {2: "two", 3: "three", 4: "four"}
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

HELD_OUT_SHARE = 0.2  # of the prompts of each tag, at least HELD_OUT_LEAST
HELD_OUT_LEAST = 2
SPLIT_SEED = 0

Record = dict[str, object]


@dataclass(frozen=True)
class Shape:
    """One object: its class, colour and box, the upper left corner and the side in pixels."""

    shape: str
    color: str
    x: int
    y: int
    side: int

    @property
    def box(self) -> ndarray:
        return np.array([self.x, self.y, self.x + self.side, self.y + self.side], dtype=np.float32)


def render(scene: Sequence[Shape], size: int = IMAGE_SIZE) -> UInt8[ndarray, "size size 3"]:
    """Draw the scene, antialiased."""
    canvas = np.full((size, size, 3), BACKGROUND, dtype=np.float32)
    for item in scene:
        fine = silhouette(item.shape, item.side * SUPERSAMPLING).astype(np.float32)
        coverage = fine.reshape(item.side, SUPERSAMPLING, item.side, SUPERSAMPLING).mean((1, 3))[..., None]
        window = canvas[item.y : item.y + item.side, item.x : item.x + item.side]
        window += coverage * (np.array(PALETTE[item.color], dtype=np.float32) - window)
    return np.round(canvas).astype(np.uint8)


def place(count: int, generator: np.random.Generator) -> list[tuple[int, int, int]]:
    """`(x, y, side)` of `count` squares that keep at least one lattice step between each other."""
    while True:
        placed: list[tuple[int, int, int]] = []
        for _ in range(40):
            side = int(generator.choice(SIDES))
            steps = (IMAGE_SIZE - side) // LATTICE + 1
            x, y = (int(step) * LATTICE for step in generator.integers(0, steps, size=2))
            apart = all(
                x + side + LATTICE <= other_x
                or other_x + other_side + LATTICE <= x
                or y + side + LATTICE <= other_y
                or other_y + other_side + LATTICE <= y
                for other_x, other_y, other_side in placed
            )
            if apart:
                placed.append((x, y, side))
            if len(placed) == count:
                return placed


def scene_for(record: Record, generator: np.random.Generator) -> list[Shape]:
    """A random scene that satisfies the record exactly: no other objects, free choices uniform."""
    wanted = [item for item in record["include"] for _ in range(item["count"])]  # type: ignore[attr-defined]
    while True:
        scene = [
            Shape(item["class"], item.get("color") or str(generator.choice(COLORS)), *square)
            for item, square in zip(wanted, place(len(wanted), generator), strict=True)
        ]
        holds = all(
            "position" not in item
            or item["position"][0] in relative_position(shape.box, scene[item["position"][1]].box)
            for item, shape in zip(wanted, scene, strict=True)
        )
        if holds:
            return scene


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _thing(name: str, count: int = 1, **more: object) -> Record:
    return {"class": name, "count": count, **more}


def all_prompts() -> Iterator[Record]:
    """Every prompt of the world as a GenEval metadata record, in a fixed order."""
    pairs = [(a, b) for a in SHAPES for b in SHAPES if a != b]
    for shape in SHAPES:
        yield {"tag": "single_object", "include": [_thing(shape)], "prompt": f"a photo of {_article(shape)}"}
    for a, b in pairs:
        prompt = f"a photo of {_article(a)} and {_article(b)}"
        yield {"tag": "two_object", "include": [_thing(a), _thing(b)], "prompt": prompt}
    for shape in SHAPES:
        for number, word in NUMBERS.items():
            yield {
                "tag": "counting",
                "include": [_thing(shape, number)],
                "exclude": [_thing(shape, number + 1)],
                "prompt": f"a photo of {word} {PLURALS[shape]}",
            }
    for shape in SHAPES:
        for color in COLORS:
            include = [_thing(shape, color=color)]
            yield {"tag": "colors", "include": include, "prompt": f"a photo of {_article(f'{color} {shape}')}"}
    for a, b in pairs:
        for relation in RELATIONS:
            # As in the benchmark, the object that the relation refers to comes first.
            include = [_thing(b), _thing(a, position=[relation, 0])]
            prompt = f"a photo of {_article(a)} {relation} {_article(b)}"
            yield {"tag": "position", "include": include, "prompt": prompt}
    for a, b in pairs:
        for color_a in COLORS:
            for color_b in COLORS:
                if color_a != color_b:
                    include = [_thing(a, color=color_a), _thing(b, color=color_b)]
                    prompt = f"a photo of {_article(f'{color_a} {a}')} and {_article(f'{color_b} {b}')}"
                    yield {"tag": "color_attr", "include": include, "prompt": prompt}


def prompts(split: str) -> list[Record]:
    """The records of the `train` or the `heldout` split; the two are disjoint and cover the world."""
    generator = np.random.default_rng(SPLIT_SEED)
    chosen: list[Record] = []
    by_tag: dict[str, list[Record]] = {tag: [] for tag in TAGS}
    for record in all_prompts():
        by_tag[str(record["tag"])].append(record)
    for records in by_tag.values():
        order = generator.permutation(len(records))
        held_out = max(HELD_OUT_LEAST, round(HELD_OUT_SHARE * len(records)))
        part = order[:held_out] if split == "heldout" else order[held_out:]
        chosen += [records[index] for index in sorted(part)]
    return chosen
