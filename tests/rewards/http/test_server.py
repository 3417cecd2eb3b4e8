"""The reward server: equal scores, micro-batches, limits, and 2,000 requests that nobody should send."""

import asyncio
import hashlib
import io
import json
import random
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from rewards.catalogue import REWARDS, RewardEntry
from rewards.errors import RewardError
from rewards.http.app import create_app
from rewards.http.service import Service
from rewards.http.token import HEADER
from rewards.http.wire import VERSION, Answer, Envelope, Health, Limits, Problem, Scorer, pack, read, unpack
from rewards.reward import Scores
from rewards.server import listen, serve
from tests.rewards.servers import IMAGES, PROMPTS, RECORDS, Brightness, serving

LIMITS = Limits(images=8, pixels=64, bytes=2000, envelope=2000)
BODY = pack("shapes", IMAGES[:2], PROMPTS[:2], RECORDS[:2])


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(create_app(Brightness(), Service("shapes"), limits=LIMITS)) as client:
        yield client


def request(headers: list[dict[str, Any]], data: bytes, **more: Any) -> bytes:
    """A score request with these image headers."""
    count = len(headers)
    envelope = {"version": VERSION, "reward": "shapes", "prompts": PROMPTS[:count], "metadata": RECORDS[:count]}
    text = json.dumps({**envelope, "images": headers, **more}).encode()
    return struct.pack(">I", len(text)) + text + data


def digest(image: np.ndarray) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def file(image: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, lossless=True)
    return buffer.getvalue()


def problem(answer: httpx.Response, status: int, says: str) -> None:
    assert answer.status_code == status
    error = Problem.model_validate_json(answer.content).error
    assert says in error and "\n" not in error


def test_packing_loses_nothing():
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(6, 4, 3).transpose(1, 0, 2)  # not contiguous
    envelope, images = unpack(pack("shapes", [image], ["ä ☃"], [{"n": [1, None, 0.5]}]), Limits())
    assert (envelope.prompts, envelope.metadata) == (["ä ☃"], [{"n": [1, None, 0.5]}])
    np.testing.assert_array_equal(images[0], image)
    assert images[0].flags.writeable


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_files_give_the_scores_of_raw_images(client: TestClient, kind: str):
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    data = file(noise, kind)
    header = {"format": kind, "height": 4, "width": 6, "bytes": len(data), "sha256": digest(noise)}
    from_file = client.post("/score", content=request([header], data))
    raw = client.post("/score", content=pack("shapes", [noise], PROMPTS[:1], RECORDS[:1]))
    assert from_file.status_code == 200
    ours, theirs = (read(Answer, found.content) for found in (from_file, raw))
    assert ours == theirs.model_copy(update={"request": ours.request}) and ours.request != theirs.request


def test_an_answer_has_every_number_and_reason(client: TestClient):
    answer = Answer.model_validate_json(client.post("/score", content=BODY).content)
    assert answer.version == VERSION and answer.scorer == Scorer(reward="shapes", model="brightness", weights="")
    assert answer.request == hashlib.sha256(BODY[4 : 4 + int.from_bytes(BODY[:4])]).hexdigest()
    expected = torch.tensor([0.0, 1.0]) / 255
    assert torch.equal(torch.tensor(answer.total), expected)
    assert torch.equal(torch.tensor(answer.parts["double"]), 2 * expected)
    assert answer.reasons == PROMPTS[:2] and answer.failures == {}


def test_an_image_without_a_finite_score_does_not_fail_the_others():
    class Sometimes(Brightness):
        def score(self, *asked: Any) -> Scores:
            scores = super().score(*asked)
            scores.total[1] = float("nan")
            return scores

    with TestClient(create_app(Sometimes(), Service("shapes"))) as client:
        answer = Answer.model_validate_json(client.post("/score", content=BODY).content)
        assert answer.failures.keys() == {1} and "nan" in answer.failures[1]
        assert answer.total == [0.0, 0.0]
        assert "reward_image_failures_total 1.0" in client.get("/metrics").text


def test_requests_that_wait_are_scored_together_and_answered_apart():
    started, go = threading.Event(), threading.Event()

    def wait() -> None:
        started.set()
        assert go.wait(10)

    reward = Brightness(wait)
    with TestClient(create_app(reward, Service("shapes", batch=4))) as client, ThreadPoolExecutor(6) as pool:
        first = pool.submit(client.post, "/score", content=pack("shapes", IMAGES[:1], PROMPTS[:1], RECORDS[:1]))
        assert started.wait(10)
        others = [
            pool.submit(
                client.post, "/score", content=pack("shapes", IMAGES[row : row + 1], PROMPTS[row : row + 1], [{}])
            )
            for row in range(1, 6)
        ]
        while (health := Health.model_validate_json(client.get("/health").content)).waiting < 6:
            time.sleep(0.01)
        assert health.ready and health.busy > 0
        go.set()
        totals = [Answer.model_validate_json(one.result().content).total for one in (first, *others)]
    assert reward.batches == [1, 4, 1]
    assert torch.equal(torch.tensor(totals).flatten(), torch.arange(6) / 255)


def test_a_request_beyond_the_batch_is_scored_in_several():
    reward = Brightness()
    with TestClient(create_app(reward, Service("shapes", batch=3))) as client:
        answer = Answer.model_validate_json(
            client.post("/score", content=pack("shapes", IMAGES, PROMPTS, RECORDS)).content
        )
    assert reward.batches == [3, 3, 2]
    assert answer.reasons == PROMPTS and torch.equal(torch.tensor(answer.total), torch.arange(8) / 255)


def test_a_request_that_breaks_the_scorer_fails_alone():
    started, go = threading.Event(), threading.Event()

    class Fragile(Brightness):
        def score(self, images: Any, prompts: Any, metadata: Any) -> Scores:
            started.set()
            assert go.wait(10)
            if "break" in prompts:
                raise RuntimeError("out of memory")
            return super().score(images, prompts, metadata)

    with TestClient(create_app(Fragile(), Service("shapes"))) as client, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(client.post, "/score", content=BODY)]
        assert started.wait(10)
        asked += [
            pool.submit(client.post, "/score", content=pack("shapes", IMAGES[:1], [prompt], [{}]))
            for prompt in ("break", "prompt 0")
        ]
        while Health.model_validate_json(client.get("/health").content).waiting < 4:
            time.sleep(0.01)
        go.set()
        ours, broken, neighbour = (one.result() for one in asked)
        assert ours.status_code == neighbour.status_code == 200
        problem(broken, 500, "out of memory")


def test_what_is_accepted_is_answered_before_the_server_stops():
    started, go = threading.Event(), threading.Event()

    def wait() -> None:
        started.set()
        assert go.wait(10)

    with ThreadPoolExecutor(2) as pool:
        with serving(Brightness(wait)) as address:
            asked = pool.submit(httpx.post, f"{address}/score", content=BODY, timeout=20, trust_env=False)
            assert started.wait(10)
            pool.submit(lambda: (time.sleep(0.3), go.set()))  # while the server is being stopped
        assert asked.result().status_code == 200


def test_the_token_is_asked_for():
    with TestClient(create_app(Brightness(), Service("shapes"), token="öpen sesame".encode())) as client:
        problem(client.post("/score", content=BODY), 401, HEADER)
        problem(client.post("/score", content=BODY, headers={HEADER: "open"}), 401, HEADER)
        problem(client.post("/check", content=b"{}"), 401, HEADER)
        assert client.post("/score", content=BODY, headers={HEADER: "öpen sesame".encode()}).status_code == 200
        assert client.get("/health").status_code == 200


def test_a_server_that_is_full_says_so():
    with TestClient(create_app(Brightness(), Service("shapes"), places=0)) as client:
        found = client.post("/score", content=BODY)
    problem(found, 503, "try again")
    assert found.headers["retry-after"] == "1"


def test_prompts_are_checked_ahead(client: TestClient):
    question = {"version": VERSION, "reward": "shapes", "prompts": ["a"], "metadata": [{}]}
    found = client.post("/check", json=question).json()
    assert found == {
        "version": VERSION,
        "request": found["request"],
        "scorer": {"reward": "shapes", "model": "brightness", "weights": ""},
        "prompts": 1,
        "cut": [],
    }
    problem(client.post("/check", json={**question, "metadata": [{"bad": 1}]}), 422, "a record is bad")
    problem(client.post("/check", json={**question, "metadata": []}), 422, "one record per prompt")
    problem(client.post("/check", json={**question, "version": 1}), 422, "version 1 of the messages, not 4")
    problem(client.post("/check", json={**question, "reward": "beauty"}), 422, "this server has the reward 'shapes'")
    problem(client.post("/check", content=b"x" * 3000), 413, "more than 2000 bytes")


RAW = {"format": "raw", "height": 4, "width": 6, "bytes": 72, "sha256": hashlib.sha256(b"x" * 72).hexdigest()}
OLD = {key: value for key, value in RAW.items() if key != "sha256"}
PNG = file(IMAGES[0], "png")
REFUSED = [
    (b"", 422, "ends before the length"),
    (b"\x00\x00\xff\xff" + BODY[4:], 413, "an envelope of 65535 bytes"),
    (BODY[:40], 422, "should have"),
    (BODY[:-1], 422, "should have 144 bytes in all, but 143 came"),
    (BODY + b"x", 422, "but 145 came"),
    (BODY + b"x" * 4000, 413, "more than 4000 bytes"),
    (request([], b""), 422, "at least one image"),
    (request([RAW] * 9, b"x" * 72 * 9, prompts=["a"] * 9, metadata=[{}] * 9), 413, "9 images: at most 8"),
    (request([RAW], b"x" * 72, prompts=[]), 422, "1 images, 0 prompts and 1 metadata"),
    (request([RAW], b"x" * 72, metadata=[1]), 422, "metadata.0"),
    (request([RAW], b"x" * 72, version=5), 422, "version 5 of the messages, not 4"),
    (request([OLD], b"x" * 72, version=1), 422, "version 1 of the messages, not 4"),
    (request([OLD], b"x" * 72), 422, "images.0.sha256"),
    (request([{**RAW, "sha256": "X" * 64}], b"x" * 72), 422, "images.0.sha256"),
    (request([RAW, RAW], b"x" * 143 + b"y"), 400, "image 1 is not the one that was sent"),
    (request([RAW], b"x" * 72, reward="../../etc/passwd"), 422, "not '../../etc/passwd'"),
    (request([RAW], b"x" * 72, more=1), 422, "more: Extra inputs"),
    (request([{**RAW, "format": "jpeg"}], b"x" * 72), 422, "images.0.format"),
    (request([{**RAW, "height": -4}], b"x" * 72), 422, "images.0.height"),
    (request([{**RAW, "height": "4"}], b"x" * 72), 422, "images.0.height"),
    (request([{**RAW, "height": 5}], b"x" * 72), 422, "takes 90 bytes, not 72"),
    (request([{**RAW, "height": 10**9, "width": 10**9}], b""), 413, "pixels: at most 64"),
    (request([{**RAW, "format": "png"}], b"x" * 72), 422, "no png file that can be read"),
    (request([{**RAW, "format": "webp"}], b"x" * 72), 422, "no webp file that can be read"),
    (request([{**RAW, "format": "png", "bytes": len(PNG)}], PNG[:-20] + b"x" * 20), 422, "no png file"),
    (request([{**RAW, "format": "png", "height": 5, "bytes": len(PNG)}], PNG), 422, "announce its true size"),
    (request([{**RAW, "format": "webp", "bytes": len(PNG)}], PNG), 422, "no webp file"),
    (request([RAW], b"x" * 72, metadata=[{"bad": True}]), 422, "a record is bad"),
]


@pytest.mark.parametrize(("body", "status", "says"), REFUSED)
def test_what_cannot_be_scored_is_refused(client: TestClient, body: bytes, status: int, says: str):
    problem(client.post("/score", content=body), status, says)


def png(width: int, height: int, rows: bytes) -> bytes:
    """A file that says it is so large, whatever its rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(rows, 0)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("damage", ["pixels", "rows", "another picture"])
def test_a_damaged_picture_is_not_scored(client: TestClient, damage: str):
    rows = b"".join(b"\0" + row.tobytes() for row in IMAGES[7])
    whole, header = png(6, 4, rows), {**RAW, "format": "png", "sha256": digest(IMAGES[7])}
    data, status, says = {
        "pixels": (
            whole.replace(rows[:6], rows[:5] + b"x", 1),
            422,
            "image 1 is no png file that can be read (the checksum",
        ),
        "rows": (png(6, 4, rows[:38]), 422, "image 1 is no png file that can be read (its pixels do not fill"),
        "another picture": (png(6, 4, bytes(76)), 400, "image 1 is not the one that was sent"),
    }[damage]
    first = {**header, "bytes": len(whole)}
    assert client.post("/score", content=request([first] * 2, whole * 2)).status_code == 200
    problem(client.post("/score", content=request([first, {**header, "bytes": len(data)}], whole + data)), status, says)


def test_a_decompression_bomb_is_refused_by_its_header():
    bomb = png(30000, 30000, bytes(10**6))
    header = {**RAW, "format": "png", "height": 30000, "width": 30000, "bytes": len(bomb)}
    with TestClient(create_app(Brightness(), Service("shapes"))) as client:
        problem(client.post("/score", content=request([header], bomb)), 413, "pixels: at most")
        lying = {**header, "height": 4, "width": 6}
        problem(client.post("/score", content=request([lying], bomb)), 422, "image 0")


def malformed(dice: random.Random) -> bytes:
    """One of many ways to send something else than a request."""
    body = bytearray(BODY)
    way = dice.randrange(8)
    if way == 0:  # truncated
        return bytes(body[: dice.randrange(len(body))])
    if way == 1:  # bits flipped in the length or the envelope
        (length,) = struct.unpack_from(">I", body)
        for _ in range(dice.randrange(1, 8)):
            body[dice.randrange(4 + length)] ^= 1 << dice.randrange(8)
        return bytes(body)
    if way == 2:  # noise
        return dice.randbytes(dice.randrange(200))
    if way == 3:  # a pickle
        return b"\x80\x04\x95" + dice.randbytes(40) + b"."
    if way == 4:  # broken files
        data = bytearray(file(IMAGES[0], dice.choice(["png", "webp"])))
        for _ in range(dice.randrange(1, 20)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        kind = dice.choice(["png", "webp", "raw"])
        return request([{**RAW, "format": kind, "bytes": len(data)}], bytes(data))
    odd = [None, -1, 0, 1.5, 10**30, "../../x", "\x00", [], {}, [[[]]], True, "9" * 400, float("inf"), {"a": {"b": []}}]
    if way == 5:  # wrong types in the header of an image
        return request([{**RAW, dice.choice([*RAW, "extra"]): dice.choice(odd)}], b"x" * 72)
    if way == 6:  # wrong types in the envelope
        key = dice.choice(["version", "reward", "prompts", "metadata", "images", "path"])
        return request([RAW], b"x" * 72, **{key: dice.choice(odd)})
    depth = dice.randrange(1, 900)  # nested deeply
    text = b"[" * depth
    return struct.pack(">I", len(text)) + text


def test_2000_malformed_requests_leave_the_server_healthy():
    dice = random.Random(0)
    seen: Counter[int] = Counter()
    app = create_app(Brightness(), Service("shapes"), limits=LIMITS)

    async def ask() -> None:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as client,
        ):
            before = await client.post("/score", content=BODY)
            for _ in range(2000):
                body = malformed(dice)
                answer = await client.post(dice.choice(["/score", "/score", "/check"]), content=body)
                seen[answer.status_code] += 1
                if answer.status_code == 200:  # the damage was in pixels or texts
                    assert len(read(Answer, answer.content).total) == len(unpack(body, LIMITS)[1])
                else:
                    problem(answer, answer.status_code, "")
            health = read(Health, (await client.get("/health")).content)
            assert health.ready and health.waiting == 0
            assert (await client.post("/score", content=BODY)).content == before.content

    asyncio.run(ask())
    assert seen.keys() <= {200, 400, 413, 422} and seen[422] > 1000


def test_health_and_metrics_and_documentation(client: TestClient):
    assert read(Health, client.get("/health").content) == Health(
        version=VERSION,
        ready=True,
        scorer=Scorer(reward="shapes", model="brightness", weights=""),
        device="auto",  # `serve` says which that is
        waiting=0,
        busy=0.0,
    )
    client.post("/score", content=BODY)
    client.post("/score", content=b"")
    lines = client.get("/metrics").text.splitlines()
    assert 'reward_requests_total{path="/score",status="200"} 1.0' in lines
    assert 'reward_requests_total{path="/score",status="422"} 1.0' in lines
    assert "reward_images_total 2.0" in lines
    posts = client.get("/openapi.json").json()["paths"]["/score"]["post"]
    assert posts["requestBody"]["content"]["application/octet-stream"]["schema"]["title"] == Envelope.__name__


@pytest.mark.parametrize(("there", "asked", "meant"), [(1, "auto", "cuda"), (0, "auto", "cpu"), (1, "cpu", "cpu")])
def test_it_serves_on_a_gpu_where_there_is_one_and_says_so(
    there: int, asked: str, meant: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    made: list[str] = []

    def make(device: str) -> Brightness:
        made.append(device)
        return Brightness()

    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    monkeypatch.setitem(REWARDS, "brightness", RewardEntry(make))
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    serve(Service("brightness", port=0, device=asked))
    assert made == [meant] and f"brightness (brightness) on {meant} at http://127.0.0.1:" in capsys.readouterr().out
    assert Service("brightness").device == "auto"


def test_a_port_in_use_is_one_sentence():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RewardError, match=f"cannot listen on port {port} of 127.0.0.1 .*: stop what uses it"):
            serve(Service("shapes", port=port))


def test_an_address_that_is_not_there_is_one_sentence():
    with pytest.raises(RewardError, match=r"of no.such.host.invalid .*: stop what uses it, or choose another"):
        serve(Service("shapes", host="no.such.host.invalid"))
