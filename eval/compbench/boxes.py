"""What T2I-CompBench's detectors return: labelled boxes of an image that is first brought to their size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float, UInt8
from numpy import ndarray

SHORT_SIDE, LONG_SIDE = 479, 480  # pixels of the picture that the detector sees; distances are measured there


@dataclass(frozen=True)
class Labelled:
    """One object: its label, its box `(x1, y1, x2, y2)` in pixels of the scaled picture, its confidence in 0..1."""

    label: str
    box: Float[ndarray, "4"]
    score: float


class LabelDetector(Protocol):
    """Finds labelled objects in RGB images that already have the size of `detector_size`.

    name: says which weights it has: reported figures carry it.
    vocabulary: every label it can give; None where it looks for the words that it is asked for.
    """

    @property
    def name(self) -> str: ...

    @property
    def vocabulary(self) -> frozenset[str] | None: ...

    def detect(self, images: Sequence[UInt8[ndarray, "H W 3"]], words: Sequence[Sequence[str]]) -> list[list[Labelled]]:
        """Per image its objects in the detector's own order; `words` are those that its prompt asks for."""
        ...


def detector_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of what the detector sees: the same ratio, within `SHORT_SIDE` and `LONG_SIDE`."""
    scale = min(SHORT_SIDE / min(height, width), LONG_SIDE / max(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def area(box: Float[ndarray, "4"], last_pixel: int = 0) -> float:
    """Of a box; with `last_pixel` 1 its sides count their last pixel. An inverted box has none."""
    return float(max(box[2] - box[0] + last_pixel, 0) * max(box[3] - box[1] + last_pixel, 0))


def overlap(a: Float[ndarray, "4"], b: Float[ndarray, "4"], last_pixel: int = 0) -> float:
    """The area that two boxes share."""
    sides = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + last_pixel for i in (0, 1))
    width, height = (max(float(side), 0.0) for side in sides)
    return width * height


def iou(a: Float[ndarray, "4"], b: Float[ndarray, "4"], last_pixel: int = 0) -> float:
    """Shared over united area; 0 where both are empty."""
    common = overlap(a, b, last_pixel)
    union = area(a, last_pixel) + area(b, last_pixel) - common
    return common / union if union else 0.0
