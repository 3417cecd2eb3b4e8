"""The reward behind a server: requests are checked and decoded, and scored in one thread (`rewards.http.batcher`)."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from rewards.cut import Cut
from rewards.errors import RewardError
from rewards.http.batcher import Batcher, Job
from rewards.http.door import RefusedError
from rewards.http.metrics import Metrics
from rewards.http.wire import (
    VERSION,
    Accepted,
    Answer,
    Health,
    Limits,
    Question,
    Scorer,
    envelope_of,
    read_question,
    request_id,
    unpack,
)
from rewards.reward import Reward, Scores

if TYPE_CHECKING:
    from rewards.http.service import Service

log = logging.getLogger("rewards.server")


class Scoring:
    """What a server answers.

    weights: the SHA-256 of what the reward was read from (`rewards.files.noted`). answers: whether it scores these.
    """

    def __init__(
        self, reward: Reward, service: "Service", limits: Limits, metrics: Metrics, weights: str, answers: bool
    ) -> None:
        self.reward, self.service, self.limits, self.weights = reward, service, limits, weights
        self.answers = answers
        self.batcher = Batcher(reward, service.batch, limits.bytes, metrics.scored)

    @property
    def scorer(self) -> Scorer:
        return Scorer(reward=self.service.reward, model=self.reward.name, weights=self.weights)

    def health(self) -> Health:
        batcher = self.batcher
        return Health(
            version=VERSION,
            ready=batcher.thread.is_alive() and not batcher.closing,
            scorer=self.scorer,
            device=self.service.device,
            waiting=batcher.waiting,
            busy=batcher.busy,
        )

    async def check(self, data: bytes) -> Accepted:
        """Raises RewardError for prompts that the reward cannot score."""
        asked = read_question(Question, data)
        cut = await run_in_threadpool(self._check, asked)
        return Accepted(
            version=VERSION, request=request_id(data), scorer=self.scorer, prompts=len(asked.prompts), cut=cut
        )

    async def score(self, data: bytes, request: Request) -> Answer:
        """Raises RewardError for what cannot be scored, RefusedError where the scorer fails or the client leaves."""
        job = await run_in_threadpool(self._job, data)
        self.batcher.submit(job)
        scores = await _unless_left(job, request)
        return Answer(
            version=VERSION,
            request=request_id(envelope_of(data)),
            scorer=self.scorer,
            total=scores.total.tolist(),
            parts={name: values.tolist() for name, values in scores.parts.items()},
            reasons=list(scores.reasons),
            failures=dict(scores.failures),
        )

    def _job(self, data: bytes) -> Job:
        """A score request, checked and decoded."""
        asked, samples = unpack(data, self.limits)
        self._check(asked)
        if bool(asked.answers) != self.answers:
            scored, sent = ("answers", "pictures") if self.answers else ("pictures", "answers")
            raise RewardError(f"the reward {self.service.reward!r} scores {scored}, and {sent} came: ask another one")
        return Job(samples, asked.prompts, asked.metadata)

    def _check(self, asked: Question) -> list[Cut]:
        """Raise RewardError unless the reward is ours and can score the prompts; which of them it cuts."""
        ours = self.service.reward
        if asked.reward != ours:
            raise RewardError(f"this server has the reward {ours!r}, not {asked.reward!r}: ask another one")
        if len(asked.prompts) != len(asked.metadata):
            raise RewardError(
                f"{len(asked.prompts)} prompts and {len(asked.metadata)} metadata records: send one record per prompt"
            )
        return _check_prompts(self.reward, asked.prompts, asked.metadata)


async def _unless_left(job: Job, request: Request) -> Scores:
    """The scores of a job, which is not begun for a client that has left. Raises RefusedError."""
    scores, left = asyncio.wrap_future(job.scores), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((scores, left), return_when=asyncio.FIRST_COMPLETED)
        if scores.done():
            return await scores
        scores.cancel()  # one that is being scored goes on, with its neighbours in the batch
        raise RefusedError(499, "the client left before it was answered")
    except RefusedError:
        raise
    except Exception as error:
        raise RefusedError(500, f"the scorer failed ({error}): look into the server's log") from error
    finally:
        left.cancel()


async def _left(request: Request) -> None:
    """Returns when the client has left, once its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


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
