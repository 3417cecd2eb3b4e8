"""The reward server as a FastAPI application: what `rewards.http.wire` says (`/docs` shows the messages).

Who may come in, and with how much, is the affair of `rewards.http.door`; what is answered, of `rewards.http.scoring`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from prometheus_client import generate_latest
from pydantic import BaseModel

from rewards.http.door import BODY_SECONDS, PLACES, Door, RefusedError
from rewards.http.metrics import Metrics
from rewards.http.scoring import Scoring
from rewards.http.wire import VERSION, Accepted, Answer, Envelope, Health, Limits, Problem, Question
from rewards.reward import Reward

if TYPE_CHECKING:
    from rewards.http.service import Service

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem} for status in (400, 401, 408, 413, 422, 500, 503)
}


def create_app(
    reward: Reward,
    service: "Service",
    token: bytes | None = None,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    body_seconds: float = BODY_SECONDS,
    places: int = PLACES,
    weights: str = "",
    answers: bool = False,
) -> FastAPI:
    """The application that serves `reward`.

    token: what clients have to show; None answers everybody. weights: what tells those of the reward from others.
    answers: whether the reward scores answers in text, and no pictures.
    """
    metrics = Metrics()
    scoring, door = Scoring(reward, service, limits, metrics, weights, answers), Door(token, body_seconds, places)
    metrics.waiting.set_function(lambda: scoring.batcher.waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(scoring.batcher.close)

    app = FastAPI(title="Reward server", version=str(VERSION), lifespan=lifespan)
    _add_state(app, scoring, metrics)
    _add_questions(app, scoring, door, metrics, limits)
    return app


def _add_state(app: FastAPI, scoring: Scoring, metrics: Metrics) -> None:
    """What anybody may ask."""

    @app.get("/health")
    async def health() -> Health:
        """Whether the server takes requests, and how busy it is."""
        return scoring.health()

    @app.get("/metrics")
    async def prometheus() -> Response:
        """Counts and times in Prometheus' text format."""
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_questions(app: FastAPI, scoring: Scoring, door: Door, metrics: Metrics, limits: Limits) -> None:
    """What the door stands before."""

    def answered(path: str, message: BaseModel, status: int = 200, after: int = 0) -> Response:
        metrics.requests.labels(path, status).inc()
        headers = {"retry-after": str(after)} if after else None
        return Response(message.model_dump_json(), status, headers, "application/json")

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return answered(request.url.path, Problem(version=VERSION, error=str(error)), error.status, error.after)

    @app.post("/check", response_model=Accepted, responses=PROBLEMS, openapi_extra=_body("application/json", Question))
    async def check(request: Request) -> Response:
        """Whether the reward could score images of these prompts."""
        async with door.entered(request, limits.envelope, "prompts") as data:
            return answered("/check", await scoring.check(data))

    @app.post(
        "/score", response_model=Answer, responses=PROBLEMS, openapi_extra=_body("application/octet-stream", Envelope)
    )
    async def score(request: Request) -> Response:
        """The scores of the images. The body: 4 bytes that say how long the envelope is, the envelope, the images."""
        async with door.entered(request, limits.bytes + limits.envelope, "images") as data:
            answer = await scoring.score(data, request)
        metrics.failures.inc(len(answer.failures))
        return answered("/score", answer)


def _body(media_type: str, kind: type[BaseModel]) -> dict[str, Any]:
    """What the documentation says of a body that the application reads by itself."""
    schema = kind.model_json_schema()
    if header := schema.pop("$defs", {}).get("ImageHeader"):
        schema["properties"]["images"]["items"] = header
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}
