"""A reward that is served elsewhere: the interface of `rewards.reward`, `rewards.http.wire` underneath.

Images, or answers, go out in parts of at most `Patience.images`, within the bytes that servers read (`Limits`), each to
the server with the least work among those that are well. A server that fails is left alone for a while, longer each
time, and asked for its health before it gets work again; the part goes elsewhere after a pause. What none scores in
`Patience.attempts` is among the `failures` of the scores; how often each kind of fault occurred is in their `faults`:

    connection   no connection, or one that broke        timeout   no whole answer in time
    busy         the server had no room (503)            server    any other status that is no answer
    malformed    not an `Answer`, or of another length   version   an answer of another version of the protocol
    reward       a server of another reward              scorer    one that is made of something else than at the start
    request      an answer to another request            number    a score that is no finite number
    image        the scorer gave this image no score: a retry would not help
    hedged       no fault: so slow that a second server was asked too (`Patience.hedge`; off unless it is set)

What the servers refuse (`Problem` with a status 4xx, but those of a request that did not arrive whole and unchanged)
is no fault but a mistake of ours, and raises RewardError.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from operator import gt
from typing import Any, NoReturn, TypeVar

import httpx
import torch
from anyio.from_thread import start_blocking_portal

from rewards.cut import Cut, added
from rewards.errors import RewardError
from rewards.files.noted import note
from rewards.http.exchange import Fault, Reply, exchange, retrying
from rewards.http.patience import Patience
from rewards.http.token import HEADER, secret
from rewards.http.wire import (
    FRAME,
    VERSION,
    Accepted,
    Answer,
    Health,
    Limits,
    Message,
    Problem,
    Question,
    Scorer,
    Versioned,
    envelope_of,
    pack,
    read,
    record_size,
    request_id,
)
from rewards.reward import Sample, Scores, joined, size_of

Found = TypeVar("Found")
Replied = TypeVar("Replied", Accepted, Answer)
ANSWER_BYTES = 16 * 2**20
PROMPTS = 1000  # in one question
RECORD_BYTES = Limits().envelope - FRAME  # of prompts and records in one message
AT_ONCE = 2  # parts under way per server: one is scored while the next is sent


@dataclass
class Server:
    """What is known of one address. failed: faults in a row. shunned: until when (monotonic) it gets no work."""

    address: str
    in_flight: int = 0
    failed: int = 0
    shunned: float = 0.0


class RemoteReward:
    """The reward of that name on one or several servers. Between calls, it remembers which of them are well."""

    def __init__(self, reward: str, addresses: Sequence[str], patience: Patience | None = None) -> None:
        self.reward, self.patience = reward, patience or Patience()
        self.servers = [Server(address) for address in addresses]
        self.name = reward  # `check` learns what it calls itself
        self.scorer: Scorer | None = None  # what all answers have to be by: from `check`, else from the first of them
        self.dice = random.Random()

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[Cut]:
        """Refuse prompts that the servers' reward refuses, servers of another reward, and no server at all."""
        with start_blocking_portal() as portal:
            self.scorer, cuts = portal.call(self._check, prompts, metadata)
        self.name = self.scorer.model
        note(self.reward, self.scorer.weights or self.scorer.model)
        return cuts

    def score(
        self,
        images: Sequence[Sample],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Scores:
        """The servers' scores, the same to the bit wherever each was computed if the reward is deterministic."""
        # A loop of its own: total timeouts, Ctrl-C at any moment, and callers that are inside a loop themselves.
        with start_blocking_portal() as portal:
            return portal.call(self._score, images, prompts, metadata)

    async def _check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> tuple[Scorer, list[Cut]]:
        faults: Counter[str] = Counter()
        cuts: list[Cut] = []
        async with self._http() as http:
            self.scorer = scorer = await self._scorers(http)
            sizes = [[record_size(prompt, record)] for prompt, record in zip(prompts, metadata, strict=True)]
            for rows in parts(sizes, PROMPTS, [RECORD_BYTES]):
                asked = Question(
                    version=VERSION,
                    reward=self.reward,
                    prompts=list(prompts[rows]),
                    metadata=[dict(record) for record in metadata[rows]],
                )
                body = asked.model_dump_json().encode()
                try:
                    cuts += (await self._ask(http, "/check", body, body, Accepted, lambda _: None, faults)).cut
                except Fault as error:
                    raise RewardError(f"{self.reward}: the prompts could not be checked: {error}") from error
        return scorer, added(cuts)

    async def _scorers(self, http: httpx.AsyncClient) -> Scorer:
        """What scores, the same on all servers that answer."""
        self.scorer = None  # it may have become another since it was asked for last
        found = await asyncio.gather(*(self._greet(http, server) for server in self.servers))
        scorers = {_shown(health.scorer): health.scorer for health in found if health}
        if not scorers:
            addresses = ", ".join(server.address for server in self.servers)
            raise RewardError(
                f"no server of {self.reward!r} answers at {addresses}: start one with t2i-rl serve {self.reward}"
            )
        if len(scorers) > 1:
            each = zip(self.servers, found, strict=True)
            differ = ", ".join(f"{_shown(health.scorer)} at {server.address}" for server, health in each if health)
            raise RewardError(f"the servers of {self.reward!r} differ ({differ}): start them all alike")
        return next(iter(scorers.values()))

    async def _greet(self, http: httpx.AsyncClient, server: Server) -> Health | None:
        """The health of a server, None if it does not answer now. Raises RewardError if it never will be of use."""
        try:
            async with self._use(server, Counter()):
                return await self._health(http, server)
        except Fault as fault:
            if fault.kind in ("reward", "version"):
                raise RewardError(str(fault)) from fault
            return None

    async def _score(
        self,
        images: Sequence[Sample],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Scores:
        room = asyncio.Semaphore(AT_ONCE * len(self.servers))
        async with self._http() as http:

            async def part(rows: slice) -> Scores:
                async with room:
                    return await self._score_part(http, images[rows], prompts[rows], metadata[rows])

            sizes = [
                (size_of(image), record_size(prompt, record, image))
                for image, prompt, record in zip(images, prompts, metadata, strict=True)
            ]
            cut = parts(sizes, self.patience.images, [Limits().bytes, RECORD_BYTES])
            return joined(await asyncio.gather(*map(part, cut)))

    async def _score_part(
        self,
        http: httpx.AsyncClient,
        images: Sequence[Sample],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Scores:
        faults: Counter[str] = Counter()
        count = len(images)
        body = pack(self.reward, images, prompts, metadata)
        try:
            answer = await self._ask(
                http, "/score", body, envelope_of(body), Answer, lambda found: self._check_answer(found, count), faults
            )
        except Fault as error:
            why = f"no server scored it in {self.patience.attempts} attempts, the last: {error}"
            return Scores(torch.zeros(count), {}, ("",) * count, dict.fromkeys(range(count), why), faults)
        faults.update(["image"] * len(answer.failures))
        return Scores(
            total=torch.tensor(answer.total, dtype=torch.float32),
            parts={name: torch.tensor(values, dtype=torch.float32) for name, values in answer.parts.items()},
            reasons=tuple(answer.reasons),
            failures=answer.failures,
            faults=faults,
        )

    def _check_answer(self, answer: Answer, count: int) -> None:
        """Raise Fault unless the answer has a finite number and a reason for each image."""
        columns = {"total": answer.total, **answer.parts}
        lengths = {"reasons": len(answer.reasons), **{name: len(values) for name, values in columns.items()}}
        for name, length in lengths.items():
            if length != count:
                raise Fault("malformed", f"answers {count} images with {length} entries of {name}")
        if not answer.failures.keys() <= set(range(count)):
            raise Fault("malformed", f"reports failures of images that are not among the {count}")
        # As the float32 that they become: 1e300 is no score either.
        for name, numbers in columns.items():
            if not torch.tensor(numbers, dtype=torch.float32).isfinite().all():
                raise Fault("number", f"answers with a {name} that is no finite number")

    async def _ask(
        self,
        http: httpx.AsyncClient,
        path: str,
        body: bytes,
        named: bytes,
        kind: type[Replied],
        check: Callable[[Replied], None],
        faults: Counter[str],
    ) -> Replied:
        """The first answer that passes the check; counts the faults. Raises the last if all attempts fail.

        named: what of the body its answer names by SHA-256.
        """
        patience, name = self.patience, request_id(named)
        tried: Counter[str] = Counter()

        async def attempt() -> Replied:
            server = await self._well(http, tried, faults)
            tried[server.address] += 1
            async with self._use(server, faults):
                message = await self._request(http, server, path, body, kind)
                if message.request != name:
                    raise Fault("request", "answers another request than this one")
                self._check_scorer(message.scorer)
                check(message)
                self.scorer = message.scorer
                server.failed = 0
                return message

        async def hedged() -> Replied:
            if not patience.hedge or len(self.servers) == 1:
                return await attempt()
            return await first_of_two(attempt, patience.hedge, lambda: faults.update(["hedged"]))

        return await retrying(patience)(hedged)

    async def _well(self, http: httpx.AsyncClient, tried: Counter[str], faults: Counter[str]) -> Server:
        """The least loaded server that is well, rather one that this request has not tried; any of equals.

        Those that failed before have to say that they are ready first. Raises Fault if no server does.
        """
        now = time.monotonic()
        order = sorted(
            self.servers,
            key=lambda one: (tried[one.address], max(one.shunned, now), one.in_flight, self.dice.random()),
        )
        faulty = Fault("connection", "no server")
        for server in order:
            if not server.failed:
                return server
            try:
                async with self._use(server, faults):
                    await self._health(http, server)
                    return server
            except Fault as fault:
                faulty = fault
        raise faulty

    @asynccontextmanager
    async def _use(self, server: Server, faults: Counter[str]) -> AsyncIterator[None]:
        """Keep the books on a server and count the faults, which leave with its address."""
        server.in_flight += 1
        try:
            yield
        except Fault as fault:
            faults[fault.kind] += 1
            server.failed += 1
            alone = min(self.patience.pause * 2**server.failed, self.patience.longest)
            server.shunned = time.monotonic() + alone
            raise Fault(fault.kind, f"{server.address} {fault}", fault.after) from fault
        finally:
            server.in_flight -= 1

    async def _health(self, http: httpx.AsyncClient, server: Server) -> Health:
        """Raises Fault unless the server is ready to score our reward."""
        health = await self._request(http, server, "/health", None, Health)
        self._check_scorer(health.scorer)
        if not health.ready:
            raise Fault("busy", "is not ready")
        return health

    def _check_scorer(self, scorer: Scorer) -> None:
        """Raise Fault for another reward, or one that is made of something else than what scored until now."""
        if scorer.reward != self.reward:
            raise Fault("reward", f"serves the reward {scorer.reward!r}, not {self.reward!r}")
        if self.scorer not in (None, scorer):
            raise Fault("scorer", f"scores with {_shown(scorer)} now, not with {_shown(self.scorer)} as at the start")

    async def _request(
        self, http: httpx.AsyncClient, server: Server, path: str, body: bytes | None, kind: type[Message]
    ) -> Message:
        """One request. Raises Fault for a server that fails, RewardError for a request that is refused."""
        reply = await exchange(http, server.address, path, body, self.patience, ANSWER_BYTES)
        return _message(kind, reply.data) if reply.status == 200 else _refuse(reply)

    @asynccontextmanager
    async def _http(self) -> AsyncIterator[httpx.AsyncClient]:
        """Connections for one call. They never go through a proxy: reward servers are in the same network.

        None is used twice: whatever a server says beyond its answer is gone with the connection.
        """
        headers = {b"accept-encoding": b"identity", b"content-type": b"application/octet-stream"}
        if token := secret():
            headers[HEADER.encode()] = token
        timeout = httpx.Timeout(self.patience.timeout, connect=self.patience.connect)
        once = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(headers=headers, timeout=timeout, limits=once, trust_env=False) as http:
            yield http


async def first_of_two(attempt: Callable[[], Awaitable[Found]], seconds: float, begun: Callable[[], object]) -> Found:
    """What the attempt gives; after so many seconds a second one is `begun`, and who succeeds first counts.

    Raises the last Fault if both fail, any other error at once.
    """
    tasks = [asyncio.ensure_future(attempt())]
    try:
        await asyncio.wait(tasks, timeout=seconds)
        if not tasks[0].done():
            begun()
            tasks.append(asyncio.ensure_future(attempt()))
        for first in asyncio.as_completed(tasks):
            try:
                return await first
            except Fault as error:
                fault = error
        raise fault
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def parts(sizes: Sequence[Sequence[int]], most: int, limits: Sequence[int]) -> list[slice]:
    """Consecutive rows that go into one request each: at most so many, and each of their sizes within its limit in all.

    A row that alone is beyond a limit goes alone.
    """
    slices, start, held = [], 0, [0] * len(limits)
    for row, size in enumerate(sizes):
        sums = [before + more for before, more in zip(held, size, strict=True)]
        if row > start and (row - start == most or any(map(gt, sums, limits))):
            slices.append(slice(start, row))
            start, sums = row, list(size)
        held = sums
    return [*slices, slice(start, len(sizes))]


def _shown(scorer: Scorer) -> str:
    """What a message says of a scorer."""
    return scorer.model + f" of weights {scorer.weights[:8]}" * bool(scorer.weights)


def _message(kind: type[Message], data: bytes) -> Message:
    """What a server answers. Raises Fault for anything else."""
    try:
        version = read(Versioned, data).version
        if version != VERSION:
            raise Fault("version", f"speaks version {version}, not {VERSION}: use the same t2i-rl on both sides")
        return read(kind, data)
    except RewardError as error:
        raise Fault("malformed", f"answers with what is no {kind.__name__} ({error})") from error


def _refuse(reply: Reply) -> NoReturn:
    """Raise RewardError for a request that is refused, Fault for any other failure."""
    status = reply.status
    try:
        problem = _message(Problem, reply.data)
    except Fault:
        raise Fault("server", f"answers with the status {status}") from None
    if status == 503:
        raise Fault("busy", f"is busy: {problem.error}", reply.after)
    if 400 <= status < 500 and status not in (400, 408):  # those say that it did not arrive as it was sent
        raise RewardError(problem.error)
    raise Fault("server", f"fails: {problem.error}")
