"""Questions to a model behind an OpenAI-compatible endpoint (vLLM, SGLang), several under way at once.

An endpoint that fails is asked again (`rewards.http.patience`); what a question was and what its answer says is the
affair of those who ask (`rewards.judges.judge`, `rewards.judges.pairwise`).
"""

import asyncio
import base64
import io
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx
from anyio.from_thread import start_blocking_portal
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from rewards.errors import RewardError
from rewards.http.exchange import Fault, Reply, exchange, retrying
from rewards.http.patience import Patience
from rewards.http.token import secret
from rewards.http.wire import Limits

AT_ONCE = 32  # questions under way; the endpoint batches them
ANSWER_BYTES = 2**20
QUOTED = 200  # characters of an answer that an error shows

Question = Mapping[str, Any]  # of a request all but the model
Answered = TypeVar("Answered", bound=BaseModel)
Read = TypeVar("Read")


class UnansweredError(Exception):
    """A question that the endpoint does not take, or an answer that says nothing; asking again would not help."""


class Token(BaseModel):
    token: str
    logprob: float


class Position(BaseModel):
    top_logprobs: list[Token]


class Logprobs(BaseModel):
    content: list[Position]


class Message(BaseModel):
    content: str | None = None


class Choice(BaseModel):
    """An answer: its text and, if asked for, the likeliest tokens at each position."""

    message: Message
    logprobs: Logprobs | None = None


class _Completion(BaseModel):
    choices: list[Choice] = Field(min_length=1)


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


@dataclass(frozen=True)
class Endpoint:
    """Where a judge answers. model: None asks the endpoint, which then must have exactly one."""

    address: str
    model: str | None = None
    token: bytes | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls, variable: str) -> Self:
        """`$variable` is the address, `_MODEL` and `_TOKEN` behind it the rest. Raises RewardError."""
        address = os.environ.get(variable, "").rstrip("/")
        form = f"set {variable} to the endpoint, as in {variable}=http://HOST:8000/v1"
        if not address:
            raise RewardError(f"{variable} is not set, so there is no judge to ask: {form}")
        try:
            parts = urlsplit(address)
            holds = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            plain = not (parts.query or parts.fragment or parts.username)
        except ValueError:  # a port that is no number
            holds = plain = False
        if not (holds and plain):
            raise RewardError(f"{variable} is no address of an endpoint: {form} (a token goes into {variable}_TOKEN)")
        return cls(address, os.environ.get(f"{variable}_MODEL"), secret(f"{variable}_TOKEN"))


class Chat:
    """The model of an endpoint. Its name is asked for at the first use, where it is not given."""

    def __init__(self, endpoint: Endpoint, patience: Patience) -> None:
        self.endpoint, self.patience, self.model = endpoint, patience, endpoint.model

    def __str__(self) -> str:
        return f"{self.model or 'the model'} at {self.endpoint.address}"

    def check(self) -> None:
        """Raise RewardError where nothing answers, or not that model."""
        with start_blocking_portal() as portal:
            portal.call(self._check)

    def ask(
        self, questions: Sequence[Question], read: Callable[[Choice], Read]
    ) -> tuple[list[Read | str], Counter[str]]:
        """What every answer says or why there is none, and how often the endpoint failed, by kind of fault.

        read: may raise UnansweredError.
        """
        with start_blocking_portal() as portal:
            return portal.call(self._ask_all, questions, read)

    async def _check(self) -> None:
        async with self._http() as http:
            await self._find_model(http)

    async def _find_model(self, http: httpx.AsyncClient) -> None:
        try:
            models = [one.id for one in (await self._request(http, "/models", None, _Models)).data]
        except (Fault, UnansweredError) as error:
            raise RewardError(f"the judge at {self.endpoint.address} {error}: start it, or mend its address") from error
        if self.model is None and len(models) == 1:
            self.model = models[0]
        if self.model not in models:
            wanted = f"lacks the model {self.model!r}" if self.model else "has no one model"
            raise RewardError(
                f"the judge at {self.endpoint.address} {wanted} (it has: {', '.join(models) or 'none'}): name one of "
                "them in the variable that ends in _MODEL"
            )

    async def _ask_all(
        self, questions: Sequence[Question], read: Callable[[Choice], Read]
    ) -> tuple[list[Read | str], Counter[str]]:
        room, faults = asyncio.Semaphore(AT_ONCE), Counter[str]()
        async with self._http() as http:
            if self.model is None:
                await self._find_model(http)

            async def ask(question: Question) -> Read | str:
                async with room:
                    return await self._ask(http, question, read, faults)

            return list(await asyncio.gather(*map(ask, questions))), faults

    async def _ask(
        self, http: httpx.AsyncClient, question: Question, read: Callable[[Choice], Read], faults: Counter[str]
    ) -> Read | str:
        patience, body = self.patience, json.dumps({"model": self.model, **question}).encode()

        async def attempt() -> _Completion:
            try:
                return await self._request(http, "/chat/completions", body, _Completion)
            except Fault as fault:
                faults[fault.kind] += 1
                raise

        try:
            answer: _Completion = await retrying(patience)(attempt)
            return read(answer.choices[0])
        except Fault as fault:
            return f"the judge gave no answer in {patience.attempts} attempts, the last: {fault}"
        except UnansweredError as error:
            faults["image"] += 1
            return f"the judge {error}"

    async def _request(self, http: httpx.AsyncClient, path: str, body: bytes | None, kind: type[Answered]) -> Answered:
        """One request. Raises Fault for what may pass, UnansweredError for a question refused, RewardError else."""
        reply = await exchange(http, self.endpoint.address, path, body, self.patience, ANSWER_BYTES)
        if reply.status != 200:
            self._refuse(path, reply)
        try:
            return kind.model_validate_json(reply.data)
        except ValidationError as error:
            raise Fault("malformed", f"answers {path} with what no OpenAI-compatible endpoint says") from error

    def _refuse(self, path: str, reply: Reply) -> None:
        """Raise what stands for an answer of that status; what it says may show the token, which is taken out."""
        status, token = reply.status, self.endpoint.token
        said = quoted((reply.data.replace(token, b"...") if token else reply.data).decode(errors="replace"))
        if status in (429, 503):
            raise Fault("busy", f"is busy (status {status})", reply.after)
        if status >= 500 or status == 408:
            raise Fault("server", f"fails with the status {status}: {said}")
        if status in (400, 413, 422):
            raise UnansweredError(f"refuses the question (status {status}): {said}")
        raise RewardError(
            f"the judge at {self.endpoint.address} refuses {path} (status {status}): {said}: mend its address, model "
            "or token"
        )

    @asynccontextmanager
    async def _http(self) -> AsyncIterator[httpx.AsyncClient]:
        """Connections for one call, through no proxy. The token travels in a header and is shown nowhere."""
        headers = {b"accept-encoding": b"identity", b"content-type": b"application/json"}
        if self.endpoint.token:
            headers[b"authorization"] = b"Bearer " + self.endpoint.token
        timeout = httpx.Timeout(self.patience.timeout, connect=self.patience.connect)
        async with httpx.AsyncClient(headers=headers, timeout=timeout, trust_env=False) as http:
            yield http


def picture(image: UInt8[ndarray, "H W 3"], side: int | None = None) -> dict[str, Any]:
    """The image as part of a question, a PNG inside of a URL; side: of the square to which it is resized.

    Raises RewardError for one too large to be sent.
    """
    if image.shape[0] * image.shape[1] > Limits().pixels:
        raise RewardError(
            f"an image of {image.shape[0]} x {image.shape[1]} pixels is not sent to a judge: draw at most "
            f"{Limits().pixels}"
        )
    shown, buffer = Image.fromarray(image), io.BytesIO()
    (shown.resize((side, side)) if side else shown).save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def quoted(text: str) -> str:
    """What an error shows of an answer."""
    text = " ".join(text.split())
    return repr(text if len(text) <= QUOTED else text[:QUOTED] + "...")
