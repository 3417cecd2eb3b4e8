"""What every object detector offers to the GenEval rules."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Bool, Float, UInt8
from numpy import ndarray


@dataclass(frozen=True)
class Detection:
    """One object: box `(x1, y1, x2, y2)` in pixels, confidence in 0..1, and its mask where there is one."""

    box: Float[ndarray, "4"]
    score: float
    mask: Bool[ndarray, "H W"] | None = None


@dataclass(frozen=True)
class Subject:
    """An object whose colour is asked for: the image it is in, where, and what it is called."""

    image: UInt8[ndarray, "H W 3"]
    detection: Detection
    class_name: str


class Detector(Protocol):
    """Finds objects in RGB images.

    name: says which weights it has: reported figures carry it.
    classes: the objects that it can find.
    min_score: only detections that score more are returned; no threshold of the rules may be lower.
    """

    name: str
    classes: tuple[str, ...]
    min_score: float

    def detect(self, images: Sequence[UInt8[ndarray, "H W 3"]]) -> list[dict[str, list[Detection]]]:
        """Per image the detections by class name, in the detector's own order."""
        ...


class ColorClassifier(Protocol):
    """Names the colour of detected objects."""

    name: str

    def classify(self, subjects: Sequence[Subject]) -> list[str]:
        """One colour name per subject; they may come from several images."""
        ...
