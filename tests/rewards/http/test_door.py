"""Who is let into a reward server, what it holds of them, and for whom it works."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fastapi import Request

from rewards.errors import RewardError
from rewards.http.door import Door, RefusedError
from rewards.http.service import Service
from rewards.http.token import VARIABLE, secret
from rewards.http.wire import Health, pack, read
from rewards.server import serve
from tests.rewards.servers import IMAGES, PROMPTS, RECORDS, Brightness, serving

BODY = pack("shapes", IMAGES[:1], PROMPTS[:1], RECORDS[:1])


class Sent(Request):
    """A request whose pieces come as they are put; an empty one is its end."""

    def __init__(self) -> None:
        super().__init__({"type": "http", "headers": []})
        self.pieces: asyncio.Queue[bytes] = asyncio.Queue()

    async def stream(self) -> AsyncIterator[bytes]:
        while piece := await self.pieces.get():
            yield piece


def test_bodies_on_their_way_share_their_room_and_hold_no_place() -> None:
    async def main() -> None:
        door, until = Door(None, 60, places=1, arriving=300), asyncio.Event()

        async def status(request: Request) -> int:
            try:
                async with door.entered(request, 1000, "images"):
                    await until.wait()
            except RefusedError as error:
                return error.status
            return 200

        requests = [Sent() for _ in range(4)]
        tasks = [asyncio.create_task(status(one)) for one in requests]
        for one in requests:
            one.pieces.put_nowait(b"x" * 100)
        assert await tasks[0] == 408
        assert door.inside == 0 and list(door.on_their_way.values()) == [100] * 3
        requests[2].pieces.put_nowait(b"")
        while not door.inside:
            await asyncio.sleep(0)
        requests[1].pieces.put_nowait(b"")
        assert await tasks[1] == 503
        until.set()
        requests[3].pieces.put_nowait(b"x" * 901)
        assert (await tasks[2], await tasks[3]) == (200, 413)
        assert (door.inside, door.on_their_way) == (0, {})

    asyncio.run(main())


def test_64_clients_of_8_places_are_served_in_the_end() -> None:
    statuses: list[int] = []

    def ask(client: int) -> None:
        while (reply := http.post(f"{address}/score", content=BODY)).status_code == 503:
            statuses.append(503)
            time.sleep(float(reply.headers["retry-after"]) / 10)
        statuses.append(reply.status_code)

    with (
        serving(Brightness(lambda: time.sleep(0.02)), places=8) as address,
        httpx.Client(trust_env=False, timeout=20) as http,
        ThreadPoolExecutor(64) as pool,
    ):
        list(pool.map(ask, range(64)))
    assert statuses.count(200) == 64 and set(statuses) == {200, 503}


def test_who_has_left_is_not_worked_for() -> None:
    began, go = threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        assert go.wait(10)

    reward = Brightness(wait)
    with serving(reward, places=4) as address, ThreadPoolExecutor(1) as pool:
        first = pool.submit(httpx.post, f"{address}/score", content=BODY, trust_env=False, timeout=20)
        assert began.wait(10)
        for _ in range(5):  # more than there are places: each is free again
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{address}/score", content=BODY, trust_env=False, timeout=0.2)
        noticed = 'reward_requests_total{path="/score",status="499"} 5.0'
        while noticed not in httpx.get(f"{address}/metrics", trust_env=False).text:
            time.sleep(0.01)
        go.set()
        assert first.result().status_code == 200
        assert httpx.post(f"{address}/score", content=BODY, trust_env=False).status_code == 200
        health = read(Health, httpx.get(f"{address}/health", trust_env=False).content)
    assert reward.batches == [1, 1] and health.waiting == 0


@pytest.mark.parametrize(
    ("token", "why"), [("", "is empty"), (" x", "blanks"), ("a\nb", "printed"), ("\udcff", "printed")]
)
def test_a_token_that_is_none_is_refused(token: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, token)
    with pytest.raises(RewardError, match=f"{VARIABLE} .*{why}"):
        secret()
    with pytest.raises(RewardError, match=f"{VARIABLE} .*{why}"):
        serve(Service("shapes", host="0.0.0.0", port=0))
