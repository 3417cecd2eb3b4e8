"""A detector for the shapes world: flat coloured shapes on a grey ground, found by classical vision.

Pixels are assigned to the nearest palette colour, connected pixels of one colour form a component, and
a component is the shape whose silhouette it overlaps best. No weights and no randomness, so on the
embedded world the GenEval rules have an exact detector.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray
from scipy import ndimage

from rewards.detectors.base import Detection, Subject

BACKGROUND = (150, 150, 150)
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "yellow": (240, 210, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "black": (30, 30, 30),
    "white": (250, 250, 250),
}

# A silhouette says whether the point (x, y) of the unit square, y downwards, belongs to the shape.
SILHOUETTES: dict[str, Callable[[ndarray, ndarray], ndarray]] = {
    "circle": lambda x, y: (x - 0.5) ** 2 + (y - 0.5) ** 2 <= 0.25,
    "square": lambda x, y: np.ones_like(x, dtype=bool),
    "triangle": lambda x, y: np.abs(x - 0.5) <= y / 2,
    "cross": lambda x, y: (np.abs(x - 0.5) <= 1 / 6) | (np.abs(y - 0.5) <= 1 / 6),
    "ring": lambda x, y: np.abs(np.hypot(x - 0.5, y - 0.5) - 0.375) <= 0.125,
}

MIN_SIDE = 1 / 8  # of the image's longer side; smaller components are decoding noise
MOST = 64  # detections of an image: as many of the smallest as it has room for side by side
# The overlap (IoU with the silhouette) is stretched to a confidence: under LOW it is 0, over HIGH it is 1.
LOW_OVERLAP, HIGH_OVERLAP = 0.5, 0.8
SAMPLES = 16  # silhouettes are compared on a SAMPLES x SAMPLES raster


def silhouette(shape: str, size: int) -> Bool[ndarray, "size size"]:
    """The shape's mask on a square raster of `size` pixels, sampled at the pixel centres."""
    centres = (np.arange(size) + 0.5) / size
    y, x = np.meshgrid(centres, centres, indexing="ij")
    return SILHOUETTES[shape](x, y)


_TEMPLATES = {shape: silhouette(shape, SAMPLES) for shape in SILHOUETTES}
_COLOURS = np.array([BACKGROUND, *PALETTE.values()], dtype=np.int32)


def nearest_colour(image: UInt8[ndarray, "H W 3"]) -> UInt8[ndarray, "H W"]:
    """Index of the nearest colour at each pixel `[H, W]`: 0 is the ground, 1.. the palette in order."""
    nearest = np.zeros(image.shape[:2], dtype=np.uint8)
    least = np.full(image.shape[:2], np.iinfo(np.int32).max, dtype=np.int32)
    for index, colour in enumerate(_COLOURS):  # one by one: together they take a hundred times the image's memory
        distance = ((image - colour) ** 2).sum(-1, dtype=np.int32)
        nearest[distance < least] = index
        np.minimum(least, distance, out=least)
    return nearest


def _classify(components: Int[ndarray, "h w"], number: int) -> tuple[str, float]:
    """The shape that a component, cropped to its sides, overlaps best, and the confidence."""
    rows = ((np.arange(SAMPLES) + 0.5) * components.shape[0] / SAMPLES).astype(int)
    columns = ((np.arange(SAMPLES) + 0.5) * components.shape[1] / SAMPLES).astype(int)
    sampled = components[np.ix_(rows, columns)] == number
    overlaps = {
        shape: float((sampled & template).sum() / (sampled | template).sum()) for shape, template in _TEMPLATES.items()
    }
    shape = max(overlaps, key=overlaps.__getitem__)
    # A shape is as wide as it is high; a merged or a cut one is not.
    aspect = min(components.shape) / max(components.shape)
    confidence = (overlaps[shape] * min(1.0, aspect / 0.8) - LOW_OVERLAP) / (HIGH_OVERLAP - LOW_OVERLAP)
    return shape, float(np.clip(confidence, 0.0, 1.0))


class ShapesDetector:
    """Finds the shapes world's objects and names their colours."""

    name = "shapes"
    min_score = 0.0
    classes = tuple(SILHOUETTES)

    def detect(self, images: Sequence[UInt8[ndarray, "H W 3"]]) -> list[dict[str, list[Detection]]]:
        """Detections of each image by class name, in no particular order."""
        return [self._detect(image) for image in images]

    def _detect(self, image: UInt8[ndarray, "H W 3"]) -> dict[str, list[Detection]]:
        labels = nearest_colour(image)
        smallest = MIN_SIDE * max(labels.shape)
        every = []
        for index in range(1, len(_COLOURS)):
            components, _ = ndimage.label(labels == index)
            components[np.bincount(components.ravel())[components] < smallest] = 0  # specks, of which there may be many
            for number, window in enumerate(ndimage.find_objects(components), start=1):
                rows, columns = window or (slice(0, 0), slice(0, 0))
                if min(rows.stop - rows.start, columns.stop - columns.start) >= smallest:
                    every.append((*_classify(components[window], number), rows, columns, components, number))
        found: dict[str, list[Detection]] = {}
        # A mask is as large as the image: only the most confident have one.
        for shape, confidence, rows, columns, components, number in sorted(every, key=lambda one: -one[1])[:MOST]:
            box = np.array([columns.start, rows.start, columns.stop, rows.stop], dtype=np.float32)
            found.setdefault(shape, []).append(Detection(box, confidence, components == number))
        return found


class PaletteColours:
    """Names an object's colour by the palette entry nearest to its median pixel."""

    name = "palette"

    def classify(self, subjects: Sequence[Subject]) -> list[str]:
        """One colour name per subject. Their detections must carry masks."""
        names = list(PALETTE)
        colours: Float[ndarray, "C 3"] = np.array(list(PALETTE.values()), dtype=np.float32)
        answers = []
        for subject in subjects:
            if subject.detection.mask is None:
                raise ValueError("the palette classifier needs detections with masks")
            median = np.median(subject.image[subject.detection.mask], axis=0)
            answers.append(names[int(((colours - median) ** 2).sum(-1).argmin())])
        return answers
