"""Reading picture files strictly: what comes out is what went in, or there is an error.

Decoders are made to show as much as they can of a damaged file, and to refuse whole ones for what is beside the
picture. Here the pixels alone count: of a PNG every checksum has to hold and every row to be there, while texts,
profiles and times are not read. JPEG and WebP files carry no checksum: of these, only a lost end is found.
"""

import io
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, ImageOps, UnidentifiedImageError

from rewards.errors import RewardError

FORMATS = ("PNG", "JPEG", "WEBP")
PIXELS = 2**26  # of a picture, unless somebody says otherwise: 8192 x 8192

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = struct.Struct(">IIBBBBB")  # width, height, bits, kind of colour, compression, filter, interlacing
CHUNK = struct.Struct(">I4s")  # length of the content, kind; content and checksum (of kind and content) follow
CHECKSUM = 4  # bytes
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by the kind of colour
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # Adam7
NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")  # what pixels and their orientation are made of
CHUNKS = 2**16  # parts of a file; of the 8 KiB that writers make them of, these hold 512 MiB
STEP = 4096  # bytes inflated at once, which makes at most a thousand times as many
ENDS = {SIGNATURE: b"IEND\xaeB`\x82", b"\xff\xd8\xff": b"\xff\xd9", b"GIF8": b";"}  # of files that begin so


class PictureError(Exception):
    """A file is no whole picture; the text says why, in words that can be put in brackets."""


@contextmanager
def opened(data: bytes, formats: tuple[str, ...] = FORMATS, pixels: int = PIXELS) -> Iterator[Image.Image]:
    """The picture of a file, whose pixels are decoded once they are asked for.

    formats: Pillow's names of those that it may have; pixels: how many it may have. Raises PictureError, also for what
    goes wrong with the picture inside of the context.
    """
    if "PNG" in formats and data.startswith(SIGNATURE):
        data = _whole_png(data, pixels)
    with _recognised(data, formats, pixels) as image:
        yield image


def size_of(data: bytes, formats: tuple[str, ...] = FORMATS, pixels: int = PIXELS) -> tuple[int, int]:
    """Width and height by the header of a file. Raises PictureError.

    One that does not end as most formats say is decoded, to see whether it is whole.
    """
    complete = any(data.startswith(begin) and data.endswith(end) for begin, end in ENDS.items())
    with (_recognised if complete else opened)(data, formats, pixels) as image:
        if not complete:
            image.load()
        return image.size


@contextmanager
def _recognised(data: bytes, formats: tuple[str, ...], pixels: int) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            _check_pixels(*image.size, pixels)
            yield image
    except (PictureError, RewardError):
        raise
    except UnidentifiedImageError:
        raise PictureError(f"it is no picture in the format {' or '.join(formats)}") from None
    # Pillow's decoders raise errors of many types on broken files (SyntaxError, ValueError and EOFError among them).
    except Exception as error:
        raise PictureError(str(error) or type(error).__name__) from error


def rgb(image: Image.Image) -> UInt8[ndarray, "H W 3"]:
    """The pixels of a picture, upright; an alpha channel is left out, and of 16 bits the upper 8 count."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # Pillow would make white of all that is above 255
        return np.repeat((np.asarray(upright) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    return np.array(upright.convert("RGB"))


def read_file(path: Path) -> bytes:
    """Raises PictureError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise PictureError(error.strerror or "no such file") from error


def read_rgb(path: Path) -> UInt8[ndarray, "H W 3"]:
    """The pixels of a file. Raises PictureError."""
    with opened(read_file(path)) as image:
        return rgb(image)


def _check_pixels(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise PictureError(f"it has {width} x {height} pixels, of which at most {most} are read")


def _whole_png(data: bytes, pixels: int) -> bytes:
    """The file with what is needed of it. Raises PictureError for a wrong checksum and for rows that lack."""
    chunks = list(_chunks(data))
    kind, header = chunks[0]
    if kind != b"IHDR" or len(header) != CHUNK.size + HEADER.size + CHECKSUM:
        raise PictureError("it does not begin as PNG files do")
    width, height, bits, colour, _, _, interlaced = HEADER.unpack_from(header, CHUNK.size)
    _check_pixels(width, height, pixels)
    if colour not in SAMPLES:
        raise PictureError(f"it has colours of the kind {colour}, which no PNG file has")
    stream = b"".join(chunk[CHUNK.size : -CHECKSUM] for kind, chunk in chunks if kind == b"IDAT")
    _check_rows(stream, _inflated(width, height, bits * SAMPLES[colour], bool(interlaced)))
    return SIGNATURE + b"".join(chunk for kind, chunk in chunks if kind in NEEDED)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every chunk with its kind, up to the one that says the end. Raises PictureError for a wrong checksum."""
    at, kind, number = len(SIGNATURE), b"", 0
    while kind != b"IEND":
        number += 1
        if number > CHUNKS:
            raise PictureError(f"it has more than {CHUNKS} parts")
        length, kind = CHUNK.unpack_from(data, at) if at + CHUNK.size <= len(data) else (len(data), b"")
        chunk = data[at : at + CHUNK.size + length + CHECKSUM]
        if len(chunk) < CHUNK.size + length + CHECKSUM:
            raise PictureError("it ends early")
        if zlib.crc32(chunk[4:-CHECKSUM]) != int.from_bytes(chunk[-CHECKSUM:]):
            raise PictureError(f"the checksum of its part {kind.decode('ascii', 'replace')} is wrong")
        yield kind, chunk
        at += len(chunk)


def _inflated(width: int, height: int, bits: int, interlaced: bool) -> int:
    """The bytes that a PNG's pixels take before they are deflated: each row begins with one for its filter."""

    def rows(wide: int, high: int) -> int:
        return high * (1 + math.ceil(wide * bits / 8)) if wide else 0

    if not interlaced:
        return rows(width, height)
    return sum(rows(-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in PASSES)


def _check_rows(stream: bytes, expected: int) -> None:
    """Raise PictureError unless the stream is whole and inflates to so many bytes; none of them are kept."""
    inflate, found = zlib.decompressobj(), 0
    try:
        for start in range(0, len(stream), STEP):
            found += len(inflate.decompress(stream[start : start + STEP]))
            if found > expected or inflate.eof:
                break
    except zlib.error as error:
        raise PictureError(f"its pixels cannot be inflated ({error})") from error
    if found != expected or not inflate.eof:
        raise PictureError("its pixels do not fill its size")
