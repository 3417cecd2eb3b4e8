"""The size that the data gives a picture, before the image processor of a model rounds it to whole patches."""

import math

from PIL import Image


def fitted(width: int, height: int, least: int, most: int) -> tuple[int, int]:
    """Width and height with the same shape, in pixels of which there are about `least` to `most`, rounded down."""
    if width * height > most:
        factor = math.sqrt(most / (width * height))
        width, height = int(width * factor), int(height * factor)
    if width * height < least:
        factor = math.sqrt(least / (width * height))
        width, height = int(width * factor), int(height * factor)
    return width, height


def fit(picture: Image.Image, least: int, most: int) -> Image.Image:
    """The picture in that size, in three colours.

    As released, colours come after resizing: a picture with a palette or one bit is resized without smoothing.
    """
    size = fitted(*picture.size, least, most)
    resized = picture if size == picture.size else picture.resize(size)
    return resized.convert("RGB")
