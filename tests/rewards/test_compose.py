"""Several rewards as one, and the text that describes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from rewards.catalogue import REWARDS, RewardEntry
from rewards.compose import Composite, Member
from rewards.errors import RewardError
from rewards.registry import Term, build, parse
from rewards.reward import Scores, score_each, score_images
from tests.rewards.servers import IMAGES, PROMPTS, RECORDS, Brightness


class Height(Brightness):
    """Twenty more than the row, as a scorer with a range of its own would have it; image 3 has no score if `fails`."""

    name = "height"

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails

    def score(self, images: Sequence[Any], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Scores:
        total = torch.tensor([20.0 + record["row"] for record in metadata])
        if self.fails:
            total[3] = float("nan")
        return Scores(total, {"raw": total + 1}, ("low",) * len(images), faults={"timeout": 2})


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REWARDS, "brightness", RewardEntry(lambda device: Brightness()))
    monkeypatch.setitem(REWARDS, "height", RewardEntry(lambda device: Height(), (20.0, 30.0)))


@pytest.mark.usefixtures("named")
def test_the_total_is_the_weighted_sum_of_what_lies_in_0_to_1():
    reward = build("brightness height:0.5")
    scores = score_images(reward, IMAGES, PROMPTS, RECORDS)
    rows = torch.arange(8)
    torch.testing.assert_close(scores.total, rows / 255 + 0.5 * rows / 10)
    assert reward.name == "1 brightness + 0.5 height"
    assert list(scores.parts) == ["brightness", "brightness/double", "height", "height/raw"]
    assert torch.equal(scores.parts["height"], 20.0 + rows)
    assert torch.equal(scores.parts["height/raw"], 21.0 + rows)
    assert scores.reasons[2] == "prompt 2\nlow"
    assert scores.faults == {"height/timeout": 2}


@pytest.mark.usefixtures("named")
def test_an_image_has_the_same_score_whatever_the_batch():
    reward = build("brightness:2 height")
    whole = score_images(reward, IMAGES, PROMPTS, RECORDS).total
    alone = [score_images(reward, IMAGES[r : r + 1], PROMPTS[r : r + 1], RECORDS[r : r + 1]).total for r in range(8)]
    assert torch.equal(whole, torch.cat(alone))


def test_an_image_that_one_reward_fails_on_has_no_score():
    reward = Composite({"a": Member(Brightness(), 1.0, (0, 1)), "b": Member(Height(fails=True), 1.0, (20, 30))})
    scores = score_each(reward, IMAGES, PROMPTS, RECORDS)
    assert scores.failures.keys() == {3} and scores.failures[3].startswith("b: total is nan")
    assert scores.total[3] == 0 and scores.parts["a"][3] == 0
    with pytest.raises(RewardError, match=r"image 3 .* has no score: b: total is nan"):
        score_images(reward, IMAGES, PROMPTS, RECORDS)


def test_every_reward_checks_the_prompts():
    reward = Composite({"a": Member(Height(), 1.0, (0, 1)), "b": Member(Brightness(), 1.0, (0, 1))})
    with pytest.raises(RewardError, match="a record is bad"):
        reward.check(["x"], [{"bad": True}])


@pytest.mark.usefixtures("named")
def test_a_single_name_is_the_reward_itself():
    assert isinstance(build("brightness"), Brightness)
    half = score_images(build("brightness:0.5"), IMAGES, PROMPTS, RECORDS)
    assert torch.equal(half.total, torch.arange(8) / 255 * 0.5)


def test_specifications():
    assert parse("shapes") == [Term("shapes", None, ())]
    assert parse("  shapes:2  shapes-official:-0.5 ") == [
        Term("shapes", 2.0, ()),
        Term("shapes-official", -0.5, ()),
    ]
    assert parse("shapes@http://a:1,https://[::1]:2/") == [Term("shapes", None, ("http://a:1", "https://[::1]:2"))]
    assert parse("shapes:0.5@http://a:1") == [Term("shapes", 0.5, ("http://a:1",))]


@pytest.mark.parametrize(
    ("specification", "says"),
    [
        ("", "no reward is named: choose one of shapes"),
        ("beauty", "no reward named 'beauty': choose one of shapes"),
        ("shapes beauty:1", "no reward named 'beauty'"),
        ("shapes shapes:1", "has 'shapes' more than once"),
        ("shapes:much", "the weight 'much' of 'shapes' is no number: write it as in shapes:0.5"),
        ("shapes:", "the weight '' of"),
        ("shapes:nan", "the weight 'nan' of"),
        ("shapes@", "'' in 'shapes@' is no address of a server"),
        ("shapes@localhost:8100", "'localhost:8100' in 'shapes@localhost:8100' is no address of a server"),
        ("shapes@http://a:port", "no address of a server: write it as http://HOST:PORT"),
        ("shapes@http://a:1/path", "no address of a server"),
        ("shapes@http://me:secret@a:1", "no address of a server"),
        ("http://a:1", "lacks the name of its reward: write NAME@http://a:1"),
    ],
)
def test_a_specification_that_cannot_be_meant_is_refused(specification: str, says: str):
    with pytest.raises(RewardError) as refused:
        parse(specification)
    assert says in str(refused.value) and "\n" not in str(refused.value)
