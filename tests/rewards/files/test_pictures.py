"""Picture files: whole ones give their pixels whatever lies beside them, damaged ones give an error."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from rewards.files.pictures import PASSES, SIGNATURE, PictureError, opened, read_rgb, rgb

NOISE = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
PICTURE = Image.fromarray(NOISE)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, held: bytes) -> bytes:
    return struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))


def png(rows: bytes, interlaced: int = 0, more: bytes = b"") -> bytes:
    """A PNG of 12 x 9 grey pixels with whatever rows."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 12, 9, 8, 0, 0, 0, interlaced))
    return SIGNATURE + header + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pixels(data: bytes) -> np.ndarray:
    with opened(data) as image:
        return rgb(image)


GREY = NOISE[..., 0]
ROWS = b"".join(b"\0" + row.tobytes() for row in GREY)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_whole_files_are_read_as_pillow_reads_them(mode: str) -> None:
    image = PICTURE.convert(mode)
    np.testing.assert_array_equal(pixels(saved(image)), np.array(image.convert("RGB")))


def test_rows_in_seven_passes() -> None:
    parts = [GREY[y::down, x::across] for x, y, across, down in PASSES]
    rows = b"".join(b"\0" + row.tobytes() for part in parts for row in part if row.size)
    np.testing.assert_array_equal(pixels(png(rows, interlaced=1))[..., 0], GREY)
    with pytest.raises(PictureError, match="do not fill"):
        pixels(png(rows[:-1], interlaced=1))


def test_of_sixteen_bits_the_upper_eight_count() -> None:
    ramp = np.linspace(0, 65535, 12 * 9).astype(np.uint16).reshape(9, 12)
    found = pixels(saved(Image.fromarray(ramp)))
    np.testing.assert_array_equal(found, np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_are_upright(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    assert pixels(saved(PICTURE, kind, exif=exif)).shape == (12, 9, 3)


def text() -> PngImagePlugin.PngInfo:
    found = PngImagePlugin.PngInfo()
    found.add_text("workflow", "x" * 2_000_000, zip=True)
    found.add_itxt("more", "x" * 2_000_000, zip=True)
    return found


@pytest.mark.parametrize("options", [{"pnginfo": text()}, {"icc_profile": bytes(2_000_000)}])
def test_what_lies_beside_the_pixels_does_no_harm(options: dict[str, Any]) -> None:
    np.testing.assert_array_equal(pixels(saved(PICTURE, **options)), NOISE)


def outcome(data: bytes) -> np.ndarray | None:
    try:
        return pixels(data)
    except PictureError as error:
        assert str(error) and "\n" not in str(error)
        return None


def test_no_bit_of_a_png_can_flip_unseen() -> None:
    whole = saved(PICTURE)
    for place in range(8 * len(whole)):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        assert outcome(bytes(data)) is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_lost_end_is_seen(kind: str) -> None:
    whole = saved(PICTURE, kind)
    assert outcome(whole) is not None
    assert all(outcome(whole[:end]) is None for end in range(0, len(whole) - 2, 7))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (png(ROWS[: 4 * 13]), "its pixels do not fill its size"),
        (png(ROWS[:-1]), "do not fill"),
        (png(ROWS + ROWS), "do not fill"),
        (png(b""), "do not fill"),
        (SIGNATURE + chunk(b"IEND", b""), "does not begin"),
        (png(ROWS).replace(zlib.compress(ROWS), b"x" * len(zlib.compress(ROWS))), "part IDAT is wrong"),
        (png(ROWS, more=b"\0\0\0\1tEXtx\0\0\0\0"), "part tEXt is wrong"),
        (saved(PICTURE, "TIFF"), "no picture in the format PNG or JPEG or WEBP"),
        (saved(PICTURE, "BMP"), "no picture"),
        (saved(PICTURE.convert("L"), "EPS"), "no picture"),
        (b"", "no picture"),
    ],
)
def test_what_is_no_whole_picture(data: bytes, why: str) -> None:
    with pytest.raises(PictureError, match=why):
        pixels(data)


def test_a_picture_may_be_only_so_large(tmp_path: Path) -> None:
    for kind in ("PNG", "WEBP"):
        with (
            pytest.raises(PictureError, match="12 x 9 pixels, of which at most 107"),
            opened(saved(PICTURE, kind), pixels=107),
        ):
            pass
    with pytest.raises(PictureError, match="No such file"):
        read_rgb(tmp_path / "absent.png")


def test_a_file_of_countless_parts_is_refused() -> None:
    """Each is twelve bytes on the disk, and ten times as many in memory."""
    assert (pixels(png(ROWS, more=chunk(b"tIME", b"") * 1000)) == GREY[..., None]).all()
    with pytest.raises(PictureError, match="more than 65536 parts"):
        pixels(png(ROWS, more=chunk(b"tIME", b"") * 2**16))
