"""A vision-language model as a reward: it is asked about each image over an OpenAI-compatible endpoint (vLLM, SGLang).

What it is asked and how its answer is read is data, a `Form`. Its grade lies in 1..5 and is the score. It comes from a
number in its answer, or, finer, from the probabilities of its first word: the expected grade over the form's words.

An endpoint that fails is asked again (`rewards.patience`); what it answers without a grade is no score: the image is
among the `failures`, never graded 0.
"""

import asyncio
import base64
import io
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx
import torch
from anyio.from_thread import start_blocking_portal
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image
from pydantic import BaseModel, Field, ValidationError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from rewards.client import Fault
from rewards.errors import RewardError
from rewards.judge_forms import Choice, Form, UngradedError, Verdict, quoted, verdict
from rewards.patience import Patience
from rewards.reward import Scores
from rewards.wire import Limits

AT_ONCE = 32  # questions under way; the endpoint batches them
TOP_TOKENS = 20  # the most that vLLM and others tell the probabilities of
ANSWER_BYTES = 2**20
PATIENT = Patience()

Answer = TypeVar("Answer", bound=BaseModel)


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
    token: str | None = field(default=None, repr=False)

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
        return cls(address, os.environ.get(f"{variable}_MODEL"), os.environ.get(f"{variable}_TOKEN"))


class Judge:
    """The judge of that name. `parts["mass"]`, for words: the probability that the answer was one of them at all."""

    def __init__(self, name: str, form: Form, endpoint: Endpoint, patience: Patience = PATIENT) -> None:
        self.judge, self.form, self.endpoint, self.patience = name, form, endpoint, patience
        self.model = endpoint.model
        self.name = f"{name} ({self.model or 'the model'} at {endpoint.address})"

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Refuse an endpoint that does not answer or lacks the model; every text can be asked about."""
        with start_blocking_portal() as portal:
            portal.call(self._check)

    def score(
        self,
        images: Sequence[UInt8[ndarray, "H W 3"]],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Scores:
        with start_blocking_portal() as portal:
            return portal.call(self._score, images, prompts)

    async def _check(self) -> None:
        async with self._http() as http:
            await self._find_model(http)

    async def _find_model(self, http: httpx.AsyncClient) -> None:
        try:
            models = [one.id for one in (await self._request(http, "/models", None, _Models)).data]
        except (Fault, UngradedError) as error:
            raise RewardError(f"the judge at {self.endpoint.address} {error}: start it, or mend its address") from error
        if self.model is None and len(models) == 1:
            self.model = models[0]
            self.name = f"{self.judge} ({self.model} at {self.endpoint.address})"
        if self.model not in models:
            wanted = f"lacks the model {self.model!r}" if self.model else "has no one model"
            raise RewardError(
                f"the judge at {self.endpoint.address} {wanted} (it has: {', '.join(models) or 'none'}): name one of "
                "them in the variable that ends in _MODEL"
            )

    async def _score(self, images: Sequence[UInt8[ndarray, "H W 3"]], prompts: Sequence[str]) -> Scores:
        room, faults = asyncio.Semaphore(AT_ONCE), Counter[str]()
        async with self._http() as http:
            if self.model is None:
                await self._find_model(http)

            async def ask(image: UInt8[ndarray, "H W 3"], prompt: str) -> Verdict | str:
                async with room:
                    return await self._ask(http, image, prompt, faults)

            found = await asyncio.gather(*map(ask, images, prompts))
        verdicts = [one if isinstance(one, Verdict) else Verdict(0.0, 0.0) for one in found]
        return Scores(
            total=torch.tensor([one.grade for one in verdicts]),
            parts={"mass": torch.tensor([one.mass for one in verdicts])} if self.form.words else {},
            reasons=tuple(one.reason for one in verdicts),
            failures={row: one for row, one in enumerate(found) if isinstance(one, str)},
            faults=dict(faults),
        )

    async def _ask(
        self, http: httpx.AsyncClient, image: UInt8[ndarray, "H W 3"], prompt: str, faults: Counter[str]
    ) -> Verdict | str:
        """The verdict, or why there is none."""
        if image.shape[0] * image.shape[1] > Limits().pixels:
            return f"an image of {image.shape[0]} x {image.shape[1]} pixels is not sent: at most {Limits().pixels}"
        patience, body = self.patience, self._question(image, prompt)

        async def attempt() -> _Completion:
            try:
                return await self._request(http, "/chat/completions", body, _Completion)
            except Fault as fault:
                faults[fault.kind] += 1
                raise

        try:
            answer: _Completion = await AsyncRetrying(
                retry=retry_if_exception_type(Fault),
                stop=stop_after_attempt(patience.attempts),
                wait=wait_exponential_jitter(patience.pause, patience.longest, jitter=patience.pause),
                reraise=True,
            )(attempt)
            return verdict(self.form, answer.choices[0])
        except Fault as fault:
            return f"the judge gave no answer in {patience.attempts} attempts, the last: {fault}"
        except UngradedError as error:
            faults["image"] += 1
            return f"the judge {error}"

    def _question(self, image: UInt8[ndarray, "H W 3"], prompt: str) -> bytes:
        """The request about one image, deterministic as far as the endpoint is."""
        form = self.form
        picture = {"type": "image_url", "image_url": {"url": data_url(image, form.side)}}
        text = {"type": "text", "text": form.question.replace("{prompt}", prompt)}
        content = [picture, text] if form.image_first else [text, picture]
        asked: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": form.tokens,
        }
        if form.opening:
            asked["messages"].append({"role": "assistant", "content": form.opening})
            asked |= {"add_generation_prompt": False, "continue_final_message": True}
        if form.words:
            asked |= {"logprobs": True, "top_logprobs": TOP_TOKENS}
        return json.dumps(asked).encode()

    async def _request(self, http: httpx.AsyncClient, path: str, body: bytes | None, kind: type[Answer]) -> Answer:
        """One request. Raises Fault for what may pass, UngradedError for a question refused, RewardError else."""
        seconds = self.patience.connect if body is None else self.patience.timeout
        try:
            async with (
                asyncio.timeout(seconds),
                http.stream("GET" if body is None else "POST", self.endpoint.address + path, content=body) as response,
            ):
                data = bytearray()
                async for piece in response.aiter_raw():
                    data += piece
                    if len(data) > ANSWER_BYTES:
                        raise Fault("malformed", f"sends more than {ANSWER_BYTES} bytes")
        except (TimeoutError, httpx.TimeoutException):
            raise Fault("timeout", f"did not answer {path} within {seconds:g} s") from None
        except httpx.HTTPError as error:
            raise Fault("connection", f"cannot be reached ({type(error).__name__})") from error
        if response.status_code != 200:
            self._refuse(path, response.status_code, data.decode(errors="replace"))
        try:
            return kind.model_validate_json(bytes(data))
        except ValidationError as error:
            raise Fault("malformed", f"answers {path} with what no OpenAI-compatible endpoint says") from error

    def _refuse(self, path: str, status: int, said: str) -> None:
        """Raise what stands for an answer of that status; what it says may show the token, which is taken out."""
        said = quoted(said.replace(self.endpoint.token, "...") if self.endpoint.token else said)
        if status in (429, 503):
            raise Fault("busy", f"is busy (status {status})")
        if status >= 500 or status == 408:
            raise Fault("server", f"fails with the status {status}: {said}")
        if status in (400, 413, 422):
            raise UngradedError(f"refuses the question (status {status}): {said}")
        raise RewardError(
            f"the judge at {self.endpoint.address} refuses {path} (status {status}): {said}: mend its address, model "
            "or token"
        )

    @asynccontextmanager
    async def _http(self) -> AsyncIterator[httpx.AsyncClient]:
        """Connections for one call, through no proxy. The token travels in a header and is shown nowhere."""
        headers = {"accept-encoding": "identity", "content-type": "application/json"}
        if self.endpoint.token:
            headers["authorization"] = f"Bearer {self.endpoint.token}"
        timeout = httpx.Timeout(self.patience.timeout, connect=self.patience.connect)
        async with httpx.AsyncClient(headers=headers, timeout=timeout, trust_env=False) as http:
            yield http


def data_url(image: UInt8[ndarray, "H W 3"], side: int | None) -> str:
    """The image as PNG inside of a URL."""
    picture, buffer = Image.fromarray(image), io.BytesIO()
    (picture.resize((side, side)) if side else picture).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
