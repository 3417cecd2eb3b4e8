"""T2I-CompBench's scores of two objects' places: in the plane (category spatial), and in depth (category 3d_spatial).

Both add what the detector is sure of and how well the relation holds: `0.25 (s1 + s2) + 0.5 P`.

Differences of `fixed` from the released code, which is what is computed otherwise:

- "on top of" is scored as "on the top of"; released, it is recognised and then never holds;
- the depth of a box is read at its rows and columns; released, they are exchanged.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from eval.compbench.boxes import Labelled, iou

NEARBY = ("on side of", "next to", "near")
TOP = "on the top of"
LATE_TOP = "on top of"
RELATIONS = ("on side of", "next to", "near", "on the left of", "on the right of", "on the bottom of", TOP, LATE_TOP)
RELATIONS_3D = ("in front of", "behind", "hidden")  # hidden: behind
PEOPLE = ("girl", "boy", "man", "woman")
NEAR = 150.0  # pixels of the scaled picture
FREE = 0.1  # IoU up to which boxes do not stand in each other's way
CLOSE = 0.5  # IoU over which one object may hide the other
LOWEST = 0.5  # plane: lower scores are 0


def relation_of(prompt: str, relations: Sequence[str] = RELATIONS) -> str | None:
    """The first of the relations, in their order, that is part of the prompt's text."""
    return next((relation for relation in relations if relation in prompt), None)


def person(noun: str) -> str:
    """The detector's word for a girl, boy, man or woman; other nouns as they are."""
    return "person" if noun in PEOPLE else noun


def plane_relation(relation: str | None, a: Float[ndarray, "4"], b: Float[ndarray, "4"], fixed: bool = False) -> float:
    """How well "a RELATION b" holds, 0..1; y grows downwards.

    Nearby: 1 within `NEAR` pixels in x or in y, less beyond. A side: it must be the larger of the two offsets; then
    1, or less where the boxes overlap. 0 without a relation.
    """
    if relation == LATE_TOP and fixed:
        relation = TOP
    x, y = (float((b[i] + b[i + 2]) / 2 - (a[i] + a[i + 2]) / 2) for i in (0, 1))
    if relation in NEARBY:
        return 1.0 if min(abs(x), abs(y)) < NEAR else NEAR / max(abs(x), abs(y))
    holds = {
        "on the left of": x > 0 and abs(x) > abs(y),
        "on the right of": x < 0 and abs(x) > abs(y),
        TOP: y > 0 and abs(y) > abs(x),
        "on the bottom of": y < 0 and abs(y) > abs(x),
    }
    if relation is None or not holds.get(relation, False):
        return 0.0
    shared = iou(a, b)
    return 1.0 if shared < FREE else FREE / shared


def plane_score(prompt: str, nouns: tuple[str, str], found: Sequence[Labelled], fixed: bool = False) -> float:
    """The score of one image. nouns: the prompt's first and last.

    An object is the first detection that is labelled exactly so. One of two found: a quarter of its confidence. What
    is below `LOWEST` becomes 0.
    """
    objects = [next((one for one in found if one.label == person(noun)), None) for noun in nouns]
    seen = [one for one in objects if one is not None]
    score = 0.25 * sum(one.score for one in seen)
    if len(seen) == 2:
        score += 0.5 * plane_relation(relation_of(prompt), seen[0].box, seen[1].box, fixed)
    return score if score >= LOWEST else 0.0


def mean_depth(depth: Float[ndarray, "H W"], box: Float[ndarray, "4"], fixed: bool = False) -> float:
    """The mean over a box, large where near; NaN where the box covers no pixel."""
    left, top, right, bottom = (int(side) for side in box)
    pixels = depth[top:bottom, left:right] if fixed else depth[left:right, top:bottom]
    return float(pixels.mean()) if pixels.size else math.nan


def depth_relation(
    relation: str | None,
    a: Float[ndarray, "4"],
    b: Float[ndarray, "4"],
    depth: Float[ndarray, "H W"],
    fixed: bool = False,
) -> float:
    """How well "a RELATION b" holds in depth, 0..1: only where boxes overlap, fully from an IoU over `CLOSE` on."""
    nearer = mean_depth(depth, a, fixed) - mean_depth(depth, b, fixed)
    holds = nearer > 0 if relation == "in front of" else nearer < 0
    if relation is None or not holds:
        return 0.0
    shared = iou(a, b)
    if shared > CLOSE:
        return 1.0
    return shared / CLOSE if shared < CLOSE else 0.0


def depth_score(
    prompt: str,
    nouns: tuple[str, str],
    found: Sequence[Labelled],
    depth: Float[ndarray, "H W"],
    fixed: bool = False,
) -> float:
    """The score of one image. nouns: the prompt's first and last; depth: of the scaled picture, in 0..1.

    A detection is the object if its label contains the noun. One object found: a quarter of the confidence of its
    first detection. Both found: each is its last detection up to the one that makes both found.
    """
    rows = [[row for row, one in enumerate(found) if person(noun) in one.label] for noun in nouns]
    seen = [of_noun for of_noun in rows if of_noun]
    if len(seen) < 2:
        return 0.25 * sum(found[of_noun[0]].score for of_noun in seen)
    both_known = max(of_noun[0] for of_noun in seen)
    first, second = (found[max(row for row in of_noun if row <= both_known)] for of_noun in seen)
    relation = depth_relation(relation_of(prompt, RELATIONS_3D), first.box, second.box, depth, fixed)
    return 0.25 * (first.score + second.score) + 0.5 * relation


def quantised(depth: Float[ndarray, "H W"]) -> Float[ndarray, "H W"]:
    """A depth map in 0..1 by its own smallest and largest value, in steps of 1/255: as read back from a picture.

    A map without any difference is 0 everywhere.
    """
    low, high = depth.min(), depth.max()
    scaled = (depth - low) / (high - low) if high > low else np.zeros_like(depth)
    return (scaled * 255).astype(np.uint8).astype(np.float32) / np.float32(255)
