"""A detector in an environment of its own, reached over HTTP: what both sides say, and the client.

    GET  /health    -> Health
    POST /detect    Question (JSON; images are PNG files in base64)  -> Answer

Reading any of it cannot run anything. If T2I_RL_REWARD_TOKEN is set, both sides must have the same.
"""

import base64
import io
from collections.abc import Sequence
from typing import TypeVar

import httpx
import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eval.compbench.boxes import Labelled
from rewards.errors import RewardError
from rewards.files.pictures import opened, rgb
from rewards.http.token import HEADER, secret

IMAGES = 16  # in one request
TIMEOUT = 120.0  # seconds
ATTEMPTS = 3

Message = TypeVar("Message", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Health(_Strict):
    """detector: its name, which figures carry; vocabulary: every label it can give."""

    detector: str
    vocabulary: list[str]


class Question(_Strict):
    images: list[str] = Field(min_length=1, max_length=IMAGES)


class Found(_Strict):
    label: str
    box: list[float] = Field(min_length=4, max_length=4)
    score: float


class Answer(_Strict):
    """One list an image, in the detector's own order."""

    objects: list[list[Found]]


def encode(image: UInt8[ndarray, "H W 3"]) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def decode(text: str) -> UInt8[ndarray, "H W 3"]:
    """Raises ValueError for what is no base64, PictureError for what is no whole PNG."""
    with opened(base64.b64decode(text, validate=True), ("PNG",)) as image:
        return rgb(image)


class ServedDetector:
    """Asks a detector elsewhere. Raises RewardError if it cannot be reached or does not answer as it should."""

    def __init__(self, address: str, transport: httpx.BaseTransport | None = None) -> None:
        headers = {b"content-type": b"application/json"}
        if token := secret():
            headers[HEADER.encode()] = token
        self.address = address
        self.client = httpx.Client(
            base_url=address, headers=headers, timeout=TIMEOUT, transport=transport, trust_env=False
        )
        health = self._ask(Health, "GET", "/health")
        self.name, self.vocabulary = health.detector, frozenset(health.vocabulary)

    def detect(self, images: Sequence[UInt8[ndarray, "H W 3"]], words: Sequence[Sequence[str]]) -> list[list[Labelled]]:
        found: list[list[Labelled]] = []
        for start in range(0, len(images), IMAGES):
            question = Question(images=[encode(image) for image in images[start : start + IMAGES]])
            answer = self._ask(Answer, "POST", "/detect", question.model_dump_json())
            if len(answer.objects) != len(question.images):
                raise RewardError(f"{self.address} answered for {len(answer.objects)} of {len(question.images)} images")
            found += [[Labelled(one.label, np.array(one.box), one.score) for one in each] for each in answer.objects]
        return found

    def _ask(self, kind: type[Message], method: str, path: str, body: str | None = None) -> Message:
        for left in reversed(range(ATTEMPTS)):
            try:
                reply = self.client.request(method, path, content=body)
                return kind.model_validate_json(reply.raise_for_status().content)
            except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, ValidationError) as error:
                if left == 0 or not isinstance(error, httpx.TransportError):
                    reason = " ".join(str(error).split())[:200]
                    raise RewardError(
                        f"the detector at {self.address} gives no answer ({reason}): start it with "
                        "python -m eval.compbench.unidet, or take the substitute owlv2 (docs/evaluation.md)"
                    ) from error
        raise AssertionError("the last attempt returns or raises")
