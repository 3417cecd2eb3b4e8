"""The client of reward servers: the same scores as in process, and patience with those that fail."""

import asyncio
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from rewards.errors import RewardError
from rewards.http.client import Patience, RemoteReward, first_of_two, parts
from rewards.http.exchange import Fault
from rewards.http.token import VARIABLE as TOKEN_VARIABLE
from rewards.http.wire import VERSION, Problem
from rewards.registry import build
from rewards.reward import Reward, Scores, score_each, score_images
from t2i_rl.prompts.shapes_world import prompts, render, scene_for
from tests.rewards.servers import IMAGES, PROMPTS, RECORDS, Brightness, answering, nobody, serving

QUICK = Patience(timeout=30, connect=30, attempts=3, pause=0.01, longest=0.05, images=3)


def remote(*addresses: str, patience: Patience = QUICK) -> RemoteReward:
    return RemoteReward("shapes", addresses, patience)


def same(ours: Scores, theirs: Scores) -> None:
    """Equal to the bit."""
    assert ours.total.numpy().tobytes() == theirs.total.numpy().tobytes()
    assert ours.parts.keys() == theirs.parts.keys()
    for name, values in ours.parts.items():
        assert values.numpy().tobytes() == theirs.parts[name].numpy().tobytes()
    assert (ours.reasons, ours.failures) == (theirs.reasons, theirs.failures)


@pytest.mark.parametrize("name", ["shapes", "shapes-official", "shapes-partial-released"])
def test_scores_over_http_are_those_in_process(name: str):
    generator = np.random.default_rng(0)
    records: list[Any] = list(prompts("heldout"))[:24]
    images = [render(scene_for(record, generator)) for record in records]
    images[::3] = images[::-3]  # some that do not show what they should
    texts = [record["prompt"] for record in records]
    local = build(name)
    with serving(local, name) as first, serving(build(name), name) as second:
        away = build(f"{name}@{first},{second}")
        away.check(texts, records)
        assert away.name == local.name
        theirs = score_images(away, images, texts, records)
    ours = score_images(local, images, texts, records)
    assert len(set(ours.total.tolist())) > 1
    same(ours, theirs)


def test_what_float32_holds_arrives_to_the_bit():
    odd = torch.tensor([1 / 3, 1e-45, -3.4e38, 0.1, -0.0, 7.0], dtype=torch.float32)

    class Odd(Brightness):
        def score(self, images: Sequence[Any], *_: Any) -> Scores:
            rows = [int(image[0, 0, 0]) for image in images]
            return Scores(odd[rows], {}, ("ä\n☃",) * len(rows))

    with serving(Odd()) as address:
        scores = remote(address).score(IMAGES[:6], PROMPTS[:6], RECORDS[:6])
    assert scores.total.numpy().tobytes() == odd.numpy().tobytes()
    assert scores.reasons == ("ä\n☃",) * 6


def test_images_go_out_in_parts_and_come_back_in_order():
    first, second = Brightness(), Brightness()
    with serving(first) as one, serving(second) as two:
        scores = remote(one, two).score(IMAGES, PROMPTS, RECORDS)
    assert torch.equal(scores.total, torch.arange(8) / 255)
    assert sum(first.batches) + sum(second.batches) == 8
    assert max(*first.batches, *second.batches) <= 6
    assert first.batches and second.batches


def test_parts_keep_within_the_count_and_the_bytes():
    assert parts([[1]] * 7, 3, [100]) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert parts([[1]], 3, [100]) == [slice(0, 1)]
    assert parts([[30]] * 3 + [[1]], 8, [64]) == [slice(0, 2), slice(2, 4)]
    assert parts([[100], [1]], 8, [64]) == [slice(0, 1), slice(1, 2)]  # the server refuses it with a sentence
    assert parts([[30, 1], [30, 8], [1, 2], [1, 9]], 8, [64, 10]) == [slice(0, 2), slice(2, 3), slice(3, 4)]


LONG = 'a ☃ in the snow, "quoted" \n and \x01 ' * 100  # what JSON writes in more bytes than it has signs


def test_long_captions_go_out_in_more_parts():
    """600 of 15 kB each are more than a question holds by bytes, though not by number; 16 are in a score request."""
    texts = [f"{LONG} {row}" for row in range(600)]
    records = [{"prompt": text, "nested": [{"ä": text}]} for text in texts]
    local = Brightness()
    with serving(Brightness()) as address:
        away = remote(address, patience=replace(QUICK, images=64))
        away.check(texts, records)
        images = [IMAGES[row % 8] for row in range(100)]
        same(local.score(images, texts[:100], records[:100]), away.score(images, texts[:100], records[:100]))


def test_a_record_that_no_message_holds_is_named():
    record = {"rows": ["x" * 1000] * 1100}
    with serving(Brightness()) as address:
        away = remote(address)
        for ask in (away.check, lambda *asked: away.score(IMAGES[:2], *asked)):
            with pytest.raises(
                RewardError, match=r'the prompt "a ring" and its record take 11\d+ bytes.*: shorten them'
            ):
                ask(["a dog", "a ring"], [{}, record])
            with pytest.raises(RewardError, match=r'the prompt "x{80}\.\.\." and its record'):
                ask(["x" * 2**20, "a dog"], [{}, {}])


@pytest.mark.parametrize("more", range(0, 700, 100))
def test_what_fits_by_our_count_fits_the_server(more: int):
    """Messages about as large as the limit."""
    text = "y" * ((2**20 - 1000) // 16 + more // 16)
    with serving(Brightness()) as address:
        away = remote(address, patience=replace(QUICK, images=16))
        away.check([text] * 32, [{}] * 32)
        assert away.score(IMAGES * 4, [text] * 32, [{}] * 32).failures == {}


def test_it_works_inside_an_event_loop():
    async def notebook(reward: Reward) -> Scores:
        return reward.score(IMAGES[:1], PROMPTS[:1], RECORDS[:1])

    with serving(Brightness()) as address:
        assert asyncio.run(notebook(remote(address))).reasons == ("prompt 0",)


def test_a_server_that_is_busy_is_asked_again():
    busy = Problem(version=VERSION, error="full: try again").model_dump_json().encode()
    statuses: list[str] = []
    with serving(Brightness()) as good:

        def answer(path: str, body: bytes) -> tuple[int, bytes]:
            statuses.append(path)
            return 503, busy

        with answering(answer) as full:
            reward = remote(full, good)
            counts: Counter[str] = Counter()
            while not counts:  # which of the two is asked first is chance
                scores = score_images(reward, IMAGES, PROMPTS, RECORDS)
                counts.update(scores.faults)
                assert torch.equal(scores.total, torch.arange(8) / 255)
    assert counts.keys() == {"busy"} and statuses


def test_what_was_damaged_on_its_way_is_sent_again():
    with serving(Brightness()) as good:
        asked: list[bytes] = []

        def answer(path: str, body: bytes) -> tuple[int, bytes]:
            asked.append(body)
            damaged = body[:-1] + b"x" if len(asked) == 1 else body
            reply = (
                httpx.post(good + path, content=damaged, trust_env=False)
                if body
                else httpx.get(good + path, trust_env=False)
            )
            return reply.status_code, reply.content

        with answering(answer) as address:
            scores = remote(address).score(IMAGES[:2], PROMPTS[:2], RECORDS[:2])
    assert scores.faults == {"server": 1} and torch.equal(scores.total, torch.arange(2) / 255)
    assert asked[0] == asked[-1]


@pytest.mark.parametrize("status", [401, 413, 422])
def test_what_a_server_refuses_is_not_tried_again(status: int):
    asked: list[str] = []

    def answer(path: str, body: bytes) -> tuple[int, bytes]:
        asked.append(path)
        return status, Problem(version=VERSION, error="this will not do: mend it").model_dump_json().encode()

    with answering(answer) as address, pytest.raises(RewardError, match="this will not do: mend it"):
        remote(address).score(IMAGES[:1], PROMPTS[:1], RECORDS[:1])
    assert asked == ["/score"]


def test_metadata_that_the_reward_refuses_stop_the_run_before_it_begins():
    with serving(Brightness()) as address:
        remote(address).check(PROMPTS * 200, RECORDS * 200)
        with pytest.raises(RewardError, match="a record is bad: mend it"):
            remote(address).check(PROMPTS * 200, [*RECORDS * 199, *RECORDS[:-1], {"bad": True}])


def test_a_run_begins_with_one_server_that_is_right():
    with serving(Brightness()) as good, serving(Brightness(), "shapes-official") as other:
        away = remote(nobody(), good)
        away.check(PROMPTS, RECORDS)
        assert away.name == "brightness"
        with pytest.raises(RewardError, match=f"{other} serves the reward 'shapes-official', not 'shapes'"):
            remote(good, other).check(PROMPTS, RECORDS)
    with pytest.raises(
        RewardError, match=r"no server of 'shapes' answers at http.*: start one with t2i-rl serve shapes"
    ):
        remote(nobody(), nobody()).check(PROMPTS, RECORDS)


def test_servers_of_one_name_are_made_of_the_same():
    class Another(Brightness):
        name = "something else"

    with serving(Brightness()) as one, serving(Another()) as two, pytest.raises(RewardError, match="differ"):
        remote(one, two).check(PROMPTS, RECORDS)


def test_the_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    with serving(Brightness(), token="öpen sesame".encode()) as address:
        with pytest.raises(RewardError, match="has to hold the server's token"):
            remote(address).score(IMAGES, PROMPTS, RECORDS)
        monkeypatch.setenv(TOKEN_VARIABLE, "öpen sesame")
        assert remote(address).score(IMAGES, PROMPTS, RECORDS).reasons == tuple(PROMPTS)


def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTP_PROXY", nobody())
    monkeypatch.setenv("ALL_PROXY", nobody())
    with serving(Brightness()) as address:
        assert not remote(address).score(IMAGES, PROMPTS, RECORDS).faults


def test_an_image_that_the_scorer_fails_on_is_not_tried_again():
    class Sometimes(Brightness):
        def score(self, images: Sequence[Any], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Scores:
            scores = super().score(images, prompts, metadata)
            scores.total[torch.tensor([int(image[0, 0, 0]) == 4 for image in images])] = float("inf")
            return scores

    with serving(Sometimes()) as address:
        reward = remote(address)
        scores = score_each(reward, IMAGES, PROMPTS, RECORDS)
        assert scores.failures.keys() == {4} and "inf" in scores.failures[4]
        assert scores.faults == {"image": 1}
        assert torch.equal(scores.total, torch.tensor([0, 1, 2, 3, 0, 5, 6, 7]) / 255)
        with pytest.raises(RewardError, match=r'image 4 \("prompt 4"\) has no score: total is inf'):
            score_images(reward, IMAGES, PROMPTS, RECORDS)


def test_a_slow_server_is_not_waited_for_if_another_may_be_asked():
    go = threading.Event()
    slow, quick = Brightness(lambda: go.wait(30)), Brightness()
    with serving(slow) as one, serving(quick) as two:
        reward = remote(one, two, patience=replace(QUICK, images=8, hedge=0.05))
        reward.servers[1].in_flight += 1  # so that the slow one is asked first
        scores = score_images(reward, IMAGES, PROMPTS, RECORDS)
        go.set()
    assert torch.equal(scores.total, torch.arange(8) / 255) and scores.faults == {"hedged": 1}
    assert [server.in_flight for server in reward.servers] == [0, 1] and not any(one.failed for one in reward.servers)


def test_who_succeeds_first_counts_and_only_two_faults_are_one():
    async def after(seconds: float, answer: str | Fault) -> str:
        await asyncio.sleep(seconds)
        if isinstance(answer, Fault):
            raise answer
        return answer

    def asked(*attempts: tuple[float, str | Fault]) -> tuple[str, int]:
        told, waiting = list[int](), iter(attempts)
        found = asyncio.run(first_of_two(lambda: after(*next(waiting)), 0.02, lambda: told.append(1)))
        return found, len(told)

    broken = Fault("server", "broken")
    assert asked((0, "one")) == ("one", 0)
    assert asked((30, "one"), (0, "two")) == ("two", 1)
    assert asked((0.1, "one"), (0, broken)) == ("one", 1)
    assert asked((0.1, broken), (0.2, "two")) == ("two", 1)
    with pytest.raises(Fault, match="broken"):
        asked((0, broken), (0, "two"))
    with pytest.raises(Fault, match="the second"):
        asked((0.1, broken), (0.2, Fault("server", "the second")))


class Darkness(Brightness):
    name = "darkness"


def test_a_server_that_comes_back_as_another_scorer_is_not_believed():
    address = nobody()
    with serving(Brightness()) as good:
        away = remote(good, address)
        away.check(PROMPTS, RECORDS)
        with serving(Darkness(), port=int(address.rpartition(":")[2])):
            faults: Counter[str] = Counter()
            while not faults["scorer"]:  # until it has been asked
                away.servers[1].shunned = 0.0
                scores = score_images(away, IMAGES, PROMPTS, RECORDS)
                assert torch.equal(scores.total, torch.arange(8) / 255)
                faults.update(scores.faults)
            with pytest.raises(RewardError, match=r"differ \(brightness at .*, darkness at "):
                away.check(PROMPTS, RECORDS)


def passed_on(server: str, path: str, body: bytes) -> tuple[int, bytes]:
    """What a server answers."""
    with httpx.Client(base_url=server, trust_env=False, verify=False) as http:
        reply = http.post(path, content=body) if body else http.get(path)
    return reply.status_code, reply.content


def test_an_answer_belongs_to_its_request():
    """A server that says what it should have said the time before, as if all answers were shifted by one."""
    last: dict[str, tuple[int, bytes]] = {}
    with serving(Brightness()) as good:

        def answer(path: str, body: bytes) -> tuple[int, bytes]:
            now = passed_on(good, path, body)
            before, last[path] = last.get(path, now), now
            return before if path == "/score" else now

        with answering(answer) as late:
            away = remote(late, patience=replace(QUICK, images=1, attempts=5))
            faults: Counter[str] = Counter()
            for row in range(4):
                scores = score_images(away, IMAGES[row : row + 1], PROMPTS[row : row + 1], RECORDS[row : row + 1])
                assert scores.total.tolist() == pytest.approx([row / 255])
                faults.update(scores.faults)
    assert faults == {"request": 3}


def test_who_is_told_to_come_back_does():
    """More often than a request is tried where something fails."""
    asked: list[str] = []
    busy = Problem(version=VERSION, error="full").model_dump_json().encode()
    with serving(Brightness()) as good:

        def answer(path: str, body: bytes) -> tuple[int, bytes]:
            asked.append(path)
            return (503, busy) if path == "/score" and asked.count(path) <= 6 else passed_on(good, path, body)

        with answering(answer, {"retry-after": "1"}) as address:
            patience = replace(QUICK, attempts=2, pause=0.001, longest=0.002)
            scores = remote(address, patience=patience).score(IMAGES[:1], PROMPTS[:1], RECORDS[:1])
    assert scores.faults == {"busy": 6} and not scores.failures


@pytest.mark.parametrize("host", ["a..b", "xn--a", "☃.\u200b", "\x7f"])
def test_a_name_that_no_host_has_is_one_sentence(host: str):
    with pytest.raises(RewardError, match=r"no address of a server|no server of 'shapes' answers"):
        build(f"shapes@http://{host}:8100", patience=QUICK).check([], [])


def test_what_a_server_says_beyond_its_answer_is_not_the_next_answer():
    """The same images over and over, so that every answer fits every request."""
    with serving(Brightness()) as good:

        def answer(path: str, body: bytes) -> tuple[int, bytes]:
            return passed_on(good, path, body)

        with answering(answer, surplus=lambda data: data.replace(b"[0.0]", b"[0.99]")) as talkative:
            away = remote(talkative, patience=replace(QUICK, images=1))
            scores = score_images(away, IMAGES[:1] * 12, PROMPTS[:1] * 12, RECORDS[:1] * 12)
    assert not scores.total.any()
