"""What a reward server and its clients say to each other: version 4.

    GET  /health    -> Health
    GET  /metrics   -> Prometheus text
    POST /check     Question (JSON)                -> Accepted, or Problem
    POST /score     a score request, see below     -> Answer, or Problem

A score request is one body of three parts, without padding:

    4 bytes         length of the envelope, unsigned, most significant byte first
    the envelope    `Envelope` as JSON in UTF-8
    the images      their bytes one after another, as many of each as the envelope says

An image is `raw` (RGB, 8 bits a channel, row by row from the top) or an RGB file in a lossless format that Pillow
reads: `png` or `webp`. Its header holds the SHA-256 of its pixels as `raw` has them: what was damaged on the way is not
scored. Answers in text, for rewards that score these, stand in the envelope, without images. Everything is JSON or
pixels: reading it cannot run anything. What a request may hold is bounded by `Limits`, checked on the numbers of the
envelope and of the file headers, before any image is decoded.

Every answer says what it answers, by the SHA-256 of the question or envelope, and what scored (`Scorer`): it belongs to
no other request, and no other scorer's numbers are taken for those of the one that a run began with.

Problems come with the status 400 (not arrived as it was sent, try again), 401 (token), 408 (sent too slowly), 413 (too
large), 422 (refused: as it stands no server can score it), 500 (the scorer failed) or 503 (busy, try again after the
seconds of the header `retry-after`).

Version 1 had no `sha256` and no `cut`, version 2 no `request` and no `scorer`, version 3 no `answers`.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from rewards.cut import Cut
from rewards.errors import RewardError
from rewards.files.pictures import PictureError, opened
from rewards.reward import Sample

VERSION = 4
PREFIX = struct.Struct(">I")
# What a message has beside its prompts and records, at most: in all, and for each of them (an image's header).
FRAME, HEADER = 256, 256

Message = TypeVar("Message", bound=BaseModel)


@dataclass(frozen=True)
class Limits:
    """What one request may hold.

    images: how many, or how many answers.
    pixels: of one image.
    bytes: of the whole body, and of all its images once decoded.
    envelope: bytes of the envelope, answers included, and of a `Question`.
    """

    images: int = 64
    pixels: int = 2048 * 2048
    bytes: int = 64 * 2**20
    envelope: int = 2**20


class TooLargeError(RewardError):
    """A request beyond the limits."""


class DamagedError(RewardError):
    """An image that is not the one that was sent."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Versioned(BaseModel):
    """What the messages of every version share."""

    version: int


class ImageHeader(_Strict):
    """One image of a score request: its format, its size in pixels, and how many bytes of the body are its own.

    sha256: of its pixels, as `raw` has them, in hexadecimal digits.
    """

    format: Literal["raw", "png", "webp"]
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Question(_Strict):
    """Could the reward score these prompts? One metadata record each."""

    version: int
    reward: str
    prompts: list[str]
    metadata: list[dict[str, Any]]


class Envelope(Question):
    """What is to be scored: one prompt, one metadata record and one header per image, or one answer."""

    images: list[ImageHeader] = []
    answers: list[str] = []


class Scorer(_Strict):
    """What scores: the same of two servers, or of one at two times, give the same scores.

    reward: its name in the registry. model: what it calls itself.
    weights: the SHA-256 of what it was read from; "" where it was read from nothing.
    """

    reward: str
    model: str
    weights: str


class Reply(_Strict):
    """What every answer has. request: the SHA-256 of the question, or of the envelope, that it answers."""

    version: int
    request: str
    scorer: Scorer


class Accepted(Reply):
    """Every prompt can be scored.

    cut: the scorers that read the beginning of some only, each with the tokens that it reads and how many these are.
    """

    prompts: int
    cut: list[Cut]


class Answer(Reply):
    """One number, and one reason (possibly empty), per image.

    failures: why an image has no score, by its index; its numbers are 0 and mean nothing.
    """

    total: list[float]
    parts: dict[str, list[float]]
    reasons: list[str]
    failures: dict[int, str]


class Problem(_Strict):
    """Why there is no answer, in one sentence."""

    version: int
    error: str


class Health(_Strict):
    """The state of a server.

    ready: it takes requests.
    waiting: images that it has accepted and not scored yet. busy: seconds that the present batch has taken so far.
    """

    version: int
    ready: bool
    scorer: Scorer
    device: str
    waiting: int
    busy: float


def read(kind: type[Message], data: bytes) -> Message:
    """A message out of JSON. Raises RewardError with the first complaint."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the JSON"
        raise RewardError(f"{place}: {first['msg']}: see {kind.__name__} in rewards/http/wire.py") from None


def read_question(kind: type[Message], data: bytes) -> Message:
    """What a client asks. Raises RewardError, first of all for another version, whose messages may have other parts."""
    version = read(Versioned, data).version
    if version != VERSION:
        raise RewardError(f"version {version} of the messages, not {VERSION}: use the same t2i-rl on both sides")
    return read(kind, data)


def request_id(message: bytes) -> str:
    """What an answer calls a question, or the envelope of a score request, which holds its images' SHA-256."""
    return hashlib.sha256(message).hexdigest()


def envelope_of(body: bytes, most: int = Limits.envelope) -> bytes:
    """The envelope of a score request. Raises TooLargeError for more bytes, RewardError where they are not there."""
    if len(body) < PREFIX.size:
        raise RewardError("the body ends before the length of its envelope: see rewards/http/wire.py")
    (length,) = PREFIX.unpack_from(body)
    if length > most:
        raise TooLargeError(f"an envelope of {length} bytes: at most {most} go together")
    text = body[PREFIX.size : PREFIX.size + length]
    if length > len(text):
        raise RewardError(f"the envelope should have {length} bytes, but only {len(text)} came: send the whole body")
    return text


def record_size(prompt: str, record: Mapping[str, Any], sample: Sample = "") -> int:
    """The bytes that a prompt, its record and an answer add to a message, at most.

    Raises TooLargeError, which names the prompt, for what no message holds.
    """
    answer = sample if isinstance(sample, str) else ""
    size, most = len(to_json([prompt, record, answer])) + HEADER, Limits().envelope - FRAME
    if size > most:
        raise TooLargeError(
            f'the prompt "{prompt[:80]}{"..." * (len(prompt) > 80)}" and its record{" and answer" * bool(answer)} take '
            f"{size} bytes, of which reward servers read at most {most}: shorten them, or use the reward unserved"
        )
    return size


def pack(
    reward: str,
    samples: Sequence[Sample],
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
) -> bytes:
    """A score request with answers or raw images: nothing to encode, and nothing is lost."""
    rows = [np.ascontiguousarray(sample) for sample in samples if not isinstance(sample, str)]
    envelope = Envelope(
        version=VERSION,
        reward=reward,
        prompts=list(prompts),
        metadata=[dict(record) for record in metadata],
        images=[
            ImageHeader(
                format="raw",
                height=image.shape[0],
                width=image.shape[1],
                bytes=image.size,
                sha256=_digest(image),
            )
            for image in rows
        ],
        answers=[sample for sample in samples if isinstance(sample, str)],
    )
    text = envelope.model_dump_json().encode()
    return b"".join([PREFIX.pack(len(text)), text, *(image.data for image in rows)])


def _digest(image: UInt8[ndarray, "H W 3"]) -> str:
    return hashlib.sha256(image.data).hexdigest()


def unpack(body: bytes, limits: Limits) -> tuple[Envelope, Sequence[Sample]]:
    """The envelope and the decoded images, or the answers, of a score request.

    Raises TooLargeError beyond the limits, DamagedError for an image of another SHA-256 than it was sent with, else
    RewardError for whatever is not as this module says.
    """
    text = envelope_of(body, limits.envelope)
    envelope, rest = read_question(Envelope, text), memoryview(body)[PREFIX.size + len(text) :]
    _check_sizes(envelope, len(rest), limits)
    images, start = [], 0
    for index, header in enumerate(envelope.images):
        images.append(_decode(rest[start : start + header.bytes], header, f"image {index}"))
        start += header.bytes
    return envelope, images or envelope.answers


def _check_sizes(envelope: Envelope, rest: int, limits: Limits) -> None:
    """Everything that the numbers alone decide."""
    headers, answers = envelope.images, envelope.answers
    prompts, records = len(envelope.prompts), len(envelope.metadata)
    what, count = ("answers", len(answers)) if answers else ("images", len(headers))
    if not 1 <= count == prompts == records or (headers and answers):
        also = f" and {len(headers)} images" if headers and answers else ""
        raise RewardError(
            f"{count} {what}{also}, {prompts} prompts and {records} metadata records do not go together: "
            "send one prompt and one record per image, and at least one image, or answers in place of images"
        )
    if count > limits.images:
        raise TooLargeError(f"{count} {what}: at most {limits.images} go together")
    for index, header in enumerate(headers):
        pixels = header.height * header.width
        if pixels > limits.pixels:
            raise TooLargeError(f"image {index} has {pixels} pixels: at most {limits.pixels} are scored")
        if header.format == "raw" and header.bytes != pixels * 3:
            raise RewardError(
                f"image {index} is raw and {header.height} x {header.width}, which takes {pixels * 3} bytes, "
                f"not {header.bytes}: send RGB with 8 bits a channel"
            )
    decoded = sum(header.height * header.width * 3 for header in headers)
    if decoded > limits.bytes:
        raise TooLargeError(f"images of {decoded} bytes in all: at most {limits.bytes} go together")
    announced = sum(header.bytes for header in headers)
    if announced != rest:
        raise RewardError(f"the images should have {announced} bytes in all, but {rest} came: send the whole body")


def _decode(data: memoryview, header: ImageHeader, where: str) -> UInt8[ndarray, "H W 3"]:
    """The pixels, which are compared with their SHA-256; of a file the size is, before anything is decoded."""
    if header.format == "raw":
        pixels = np.frombuffer(data, dtype=np.uint8).reshape(header.height, header.width, 3).copy()
    else:
        pixels = _decode_file(data, header, where)
    if _digest(pixels) != header.sha256:
        raise DamagedError(f"{where} is not the one that was sent (its pixels have another SHA-256): send it again")
    return pixels


def _decode_file(data: memoryview, header: ImageHeader, where: str) -> UInt8[ndarray, "H W 3"]:
    """The pixels; the file's own header is compared with what was announced before the rest is decoded."""
    try:
        with opened(bytes(data), (header.format.upper(),), header.height * header.width) as image:
            if image.size != (header.width, header.height):
                raise RewardError(
                    f"{where} is {image.height} x {image.width}, but its header says {header.height} x {header.width}: "
                    "announce its true size"
                )
            if image.mode != "RGB":
                raise RewardError(f"{where} has the mode {image.mode}: convert it to RGB")
            return np.array(image)
    except PictureError as error:
        raise RewardError(f"{where} is no {header.format} file that can be read ({error}): send it again") from error
