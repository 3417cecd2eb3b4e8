"""The reward server's answers: what `rewards.http.wire` says, as a FastAPI application (`/docs` shows the messages).

Requests are counted, bounded, checked and decoded here; the reward itself runs in one thread (`rewards.http.batcher`).
"""

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from jaxtyping import UInt8
from numpy import ndarray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from rewards.cut import Cut
from rewards.errors import RewardError
from rewards.http.batcher import Batcher, Job
from rewards.http.wire import (
    TOKEN_HEADER,
    VERSION,
    Accepted,
    Answer,
    DamagedError,
    Envelope,
    Health,
    Limits,
    Problem,
    Question,
    TooLargeError,
    read_question,
    unpack,
)
from rewards.reward import Reward, Scores

if TYPE_CHECKING:
    from rewards.http.service import Service

IN_FLIGHT = 32  # requests held in memory at once; further ones are told to come back
BODY_SECONDS = 60.0  # for a request to arrive in full

log = logging.getLogger("rewards.server")


class RefusedError(Exception):
    """A request that gets a `Problem` of this status."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Metrics:
    """What `/metrics` shows. Each server has its own, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        mine: dict[str, Any] = {"registry": self.registry}
        sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256]
        self.requests = Counter("reward_requests", "Requests by path and status.", ["path", "status"], **mine)
        self.images = Counter("reward_images", "Images scored.", **mine)
        self.failures = Counter("reward_image_failures", "Images that got no finite score.", **mine)
        self.waiting = Gauge("reward_waiting_images", "Images accepted and not scored yet.", **mine)
        self.batch = Histogram("reward_batch_images", "Images scored together.", buckets=sizes, **mine)
        self.seconds = Histogram("reward_batch_seconds", "Seconds to score a batch.", **mine)

    def scored(self, images: int, seconds: float) -> None:
        """A batch is done."""
        self.images.inc(images)
        self.batch.observe(images)
        self.seconds.observe(seconds)


def create_app(
    reward: Reward,
    service: "Service",
    token: str | None = None,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    body_seconds: float = BODY_SECONDS,
) -> FastAPI:
    """The application that serves `reward`. token: what clients have to show; None answers everybody."""
    metrics = Metrics()
    batcher = Batcher(reward, service.batch, limits.bytes, metrics.scored)
    metrics.waiting.set_function(lambda: batcher.waiting)
    in_flight = 0

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(batcher.close)

    @asynccontextmanager
    async def admitted(request: Request) -> AsyncIterator[None]:
        """Room for a request of somebody who may ask; whatever is wrong with it becomes a `RefusedError`."""
        nonlocal in_flight
        if token is not None and not hmac.compare_digest(
            request.headers.get(TOKEN_HEADER, "").encode(), token.encode()
        ):
            raise RefusedError(401, f"the header {TOKEN_HEADER} has to hold the server's token: set the client's to it")
        if in_flight >= IN_FLIGHT:
            raise RefusedError(503, f"{in_flight} requests are being answered: try again, or start another server")
        in_flight += 1
        try:
            yield
        except TooLargeError as error:
            raise RefusedError(413, str(error)) from error
        except DamagedError as error:
            raise RefusedError(400, str(error)) from error
        except RewardError as error:
            raise RefusedError(422, str(error)) from error
        finally:
            in_flight -= 1

    async def body(request: Request, limit: int, what: str) -> bytes:
        """What the client sends, no more of it than the limit. what: it sends too much of, beyond."""
        received = bytearray()
        try:
            async with asyncio.timeout(body_seconds):
                async for piece in request.stream():
                    received += piece
                    if len(received) > limit:
                        raise TooLargeError(f"the body has more than {limit} bytes: send fewer {what} at once")
        except TimeoutError:
            raise RefusedError(408, f"the request did not arrive within {body_seconds:g} s: send it faster") from None
        except ClientDisconnect:
            raise RefusedError(400, "the client left before its request was complete") from None
        return bytes(received)

    def check(asked: Question) -> list[Cut]:
        """Raise RewardError unless the reward is ours and can score the prompts; which of them it cuts."""
        if asked.reward != service.reward:
            raise RewardError(f"this server has the reward {service.reward!r}, not {asked.reward!r}: ask another one")
        if len(asked.prompts) != len(asked.metadata):
            raise RewardError(
                f"{len(asked.prompts)} prompts and {len(asked.metadata)} metadata records: send one record per prompt"
            )
        return _check_prompts(reward, asked.prompts, asked.metadata)

    def opened(data: bytes) -> tuple[Envelope, list[UInt8[ndarray, "H W 3"]]]:
        """A score request, checked and decoded."""
        asked, images = unpack(data, limits)
        check(asked)
        return asked, images

    app = FastAPI(title="Reward server", version=str(VERSION), lifespan=lifespan)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        metrics.requests.labels(request.url.path, error.status).inc()
        return _json(Problem(version=VERSION, error=str(error)), error.status)

    @app.get("/health")
    async def health() -> Health:
        """Whether the server takes requests, and how busy it is."""
        return Health(
            version=VERSION,
            ready=batcher.thread.is_alive() and not batcher.closing,
            reward=service.reward,
            model=reward.name,
            device=service.device,
            waiting=batcher.waiting,
            busy=batcher.busy,
        )

    @app.get("/metrics")
    async def prometheus() -> Response:
        """Counts and times in Prometheus' text format."""
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post("/check", response_model=Accepted, responses=PROBLEMS, openapi_extra=_body("application/json", Question))
    async def check_prompts(request: Request) -> Response:
        """Whether the reward could score images of these prompts."""
        async with admitted(request):
            asked = read_question(Question, await body(request, limits.envelope, "prompts"))
            cut = await run_in_threadpool(check, asked)
        metrics.requests.labels("/check", 200).inc()
        return _json(Accepted(version=VERSION, prompts=len(asked.prompts), cut=cut))

    @app.post(
        "/score", response_model=Answer, responses=PROBLEMS, openapi_extra=_body("application/octet-stream", Envelope)
    )
    async def score(request: Request) -> Response:
        """The scores of the images. The body: 4 bytes that say how long the envelope is, the envelope, the images."""
        async with admitted(request):
            asked, images = await run_in_threadpool(
                opened, await body(request, limits.bytes + limits.envelope, "images")
            )
            job = Job(images, asked.prompts, asked.metadata)
            batcher.submit(job)
            try:
                # A job is never cancelled: its batch may be running.
                scores = await asyncio.shield(asyncio.wrap_future(job.scores))
            except Exception as error:
                raise RefusedError(500, f"the scorer failed ({error}): look into the server's log") from error
        metrics.failures.inc(len(scores.failures))
        metrics.requests.labels("/score", 200).inc()
        return _json(_answer(service.reward, scores))

    return app


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem} for status in (400, 401, 408, 413, 422, 500, 503)
}


def _check_prompts(reward: Reward, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[Cut]:
    """`reward.check`, for which metadata of the wrong types are the sender's fault too."""
    try:
        return list(reward.check(prompts, metadata) or ())
    except RewardError:
        raise
    except Exception as error:
        log.warning("metadata that the reward cannot read: %r", error)
        raise RewardError(
            f"the metadata are not what the reward needs ({error!r}): mend the prompts' records"
        ) from error


def _answer(reward: str, scores: Scores) -> Answer:
    return Answer(
        version=VERSION,
        reward=reward,
        total=scores.total.tolist(),
        parts={name: values.tolist() for name, values in scores.parts.items()},
        reasons=list(scores.reasons),
        failures=dict(scores.failures),
    )


def _json(message: BaseModel, status: int = 200) -> Response:
    return Response(message.model_dump_json(), status, media_type="application/json")


def _body(media_type: str, kind: type[BaseModel]) -> dict[str, Any]:
    """What the documentation says of a body that the application reads by itself."""
    schema = kind.model_json_schema()
    if header := schema.pop("$defs", {}).get("ImageHeader"):
        schema["properties"]["images"]["items"] = header
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}
