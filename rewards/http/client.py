"""A reward that is served elsewhere: the interface of `rewards.reward`, `rewards.http.wire` underneath.

Images go out in parts of at most `Patience.images`, within the bytes that servers read (`Limits`), each to the server
with the least work among those that are well. A server that fails is left alone for a while, longer each time, and
asked for its health before it gets work again; the part goes elsewhere after a pause. What no server scores in
`Patience.attempts` is among the `failures` of the scores; how often each kind of fault occurred is in their `faults`:

    connection   no connection, or one that broke        timeout   no whole answer in time
    busy         the server had no room (503)            server    any other status that is no answer
    malformed    not an `Answer`, or of another length   version   an answer of another version of the protocol
    reward       a server of another reward              number    a score that is no finite number
    image        the scorer gave this image no score: a retry would not help
    hedged       no fault: so slow that a second server was asked too (`Patience.hedge`; off unless it is set)

What the servers refuse (`Problem` with a status 4xx, but those of a request that did not arrive whole and unchanged)
is no fault but a mistake of ours, and raises RewardError.
"""

import asyncio
import os
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
from jaxtyping import UInt8
from numpy import ndarray
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from rewards.cut import Cut, added
from rewards.errors import RewardError
from rewards.http.exchange import Fault, exchange
from rewards.http.patience import Patience
from rewards.http.wire import (
    FRAME,
    TOKEN_HEADER,
    TOKEN_VARIABLE,
    VERSION,
    Accepted,
    Answer,
    Health,
    Limits,
    Message,
    Problem,
    Question,
    Versioned,
    pack,
    read,
    record_size,
)
from rewards.reward import Scores, joined

Found = TypeVar("Found")
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
        self.name = reward  # `check` learns what it is made of
        self.dice = random.Random()

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[Cut]:
        """Refuse prompts that the servers' reward refuses, servers of another reward, and no server at all."""
        with start_blocking_portal() as portal:
            self.name, cuts = portal.call(self._check, prompts, metadata)
        return cuts

    def score(
        self,
        images: Sequence[UInt8[ndarray, "H W 3"]],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Scores:
        """The servers' scores, the same to the bit wherever each was computed if the reward is deterministic."""
        # A loop of its own: total timeouts, Ctrl-C at any moment, and callers that are inside a loop themselves.
        with start_blocking_portal() as portal:
            return portal.call(self._score, images, prompts, metadata)

    async def _check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> tuple[str, list[Cut]]:
        faults: Counter[str] = Counter()
        cuts: list[Cut] = []
        async with self._http() as http:
            model = await self._model(http)
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
                    cuts += (await self._ask(http, "/check", body, Accepted, lambda _: None, faults)).cut
                except Fault as error:
                    raise RewardError(f"{self.reward}: the prompts could not be checked: {error}") from error
        return model, added(cuts)

    async def _model(self, http: httpx.AsyncClient) -> str:
        """What the reward is made of, the same on all servers that answer."""
        found = await asyncio.gather(*(self._greet(http, server) for server in self.servers))
        models = {health.model: server.address for server, health in zip(self.servers, found, strict=True) if health}
        if not models:
            addresses = ", ".join(server.address for server in self.servers)
            raise RewardError(
                f"no server of {self.reward!r} answers at {addresses}: start one with t2i-rl serve {self.reward}"
            )
        if len(models) > 1:
            differ = ", ".join(f"{model} at {address}" for model, address in models.items())
            raise RewardError(f"the servers of {self.reward!r} differ ({differ}): start them all alike")
        return next(iter(models))

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
        images: Sequence[UInt8[ndarray, "H W 3"]],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Scores:
        room = asyncio.Semaphore(AT_ONCE * len(self.servers))
        async with self._http() as http:

            async def part(rows: slice) -> Scores:
                async with room:
                    return await self._score_part(http, images[rows], prompts[rows], metadata[rows])

            sizes = [
                (image.size, record_size(prompt, record))
                for image, prompt, record in zip(images, prompts, metadata, strict=True)
            ]
            cut = parts(sizes, self.patience.images, [Limits().bytes, RECORD_BYTES])
            return joined(await asyncio.gather(*map(part, cut)))

    async def _score_part(
        self,
        http: httpx.AsyncClient,
        images: Sequence[UInt8[ndarray, "H W 3"]],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Scores:
        faults: Counter[str] = Counter()
        count = len(images)
        body = pack(self.reward, images, prompts, metadata)
        try:
            answer = await self._ask(
                http, "/score", body, Answer, lambda found: self._check_answer(found, count), faults
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
        if answer.reward != self.reward:
            raise Fault("reward", f"scored {answer.reward!r}, not {self.reward!r}")
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
        kind: type[Message],
        check: Callable[[Message], None],
        faults: Counter[str],
    ) -> Message:
        """The first answer that passes the check; counts the faults. Raises the last if all attempts fail."""
        patience = self.patience

        tried: Counter[str] = Counter()

        async def attempt() -> Message:
            server = await self._well(http, tried, faults)
            tried[server.address] += 1
            async with self._use(server, faults):
                message = await self._request(http, server, path, body, kind)
                check(message)
                server.failed = 0
                return message

        async def hedged() -> Message:
            if not patience.hedge or len(self.servers) == 1:
                return await attempt()
            return await first_of_two(attempt, patience.hedge, lambda: faults.update(["hedged"]))

        return await AsyncRetrying(
            retry=retry_if_exception_type(Fault),
            stop=stop_after_attempt(patience.attempts),
            wait=wait_exponential_jitter(patience.pause, patience.longest, jitter=patience.pause),
            reraise=True,
        )(hedged)

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
            raise Fault(fault.kind, f"{server.address} {fault}") from fault
        finally:
            server.in_flight -= 1

    async def _health(self, http: httpx.AsyncClient, server: Server) -> Health:
        """Raises Fault unless the server is ready to score our reward."""
        health = await self._request(http, server, "/health", None, Health)
        if health.reward != self.reward:
            raise Fault("reward", f"serves the reward {health.reward!r}, not {self.reward!r}")
        if not health.ready:
            raise Fault("busy", "is not ready")
        return health

    async def _request(
        self, http: httpx.AsyncClient, server: Server, path: str, body: bytes | None, kind: type[Message]
    ) -> Message:
        """One request. Raises Fault for a server that fails, RewardError for a request that is refused."""
        status, data = await exchange(http, server.address, path, body, self.patience, ANSWER_BYTES)
        return _message(kind, data) if status == 200 else _refuse(status, data)

    @asynccontextmanager
    async def _http(self) -> AsyncIterator[httpx.AsyncClient]:
        """Connections for one call. They never go through a proxy: reward servers are in the same network."""
        headers = {"accept-encoding": "identity", "content-type": "application/octet-stream"}
        if token := os.environ.get(TOKEN_VARIABLE):
            headers[TOKEN_HEADER] = token
        timeout = httpx.Timeout(self.patience.timeout, connect=self.patience.connect)
        async with httpx.AsyncClient(headers=headers, timeout=timeout, trust_env=False) as http:
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


def _message(kind: type[Message], data: bytes) -> Message:
    """What a server answers. Raises Fault for anything else."""
    try:
        version = read(Versioned, data).version
        if version != VERSION:
            raise Fault("version", f"speaks version {version}, not {VERSION}: use the same t2i-rl on both sides")
        return read(kind, data)
    except RewardError as error:
        raise Fault("malformed", f"answers with what is no {kind.__name__} ({error})") from error


def _refuse(status: int, data: bytes) -> NoReturn:
    """Raise RewardError for a request that is refused, Fault for any other failure."""
    try:
        problem = _message(Problem, data)
    except Fault:
        raise Fault("server", f"answers with the status {status}") from None
    if status == 503:
        raise Fault("busy", f"is busy: {problem.error}")
    if 400 <= status < 500 and status not in (400, 408):  # those say that it did not arrive as it was sent
        raise RewardError(problem.error)
    raise Fault("server", f"fails: {problem.error}")
