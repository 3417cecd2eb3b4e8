"""A run says itself when it does not learn: what each doubt looks for, and that healthy numbers raise none."""

import re
from pathlib import Path

import pytest

from rewards.catalogue import REWARDS, RewardEntry
from t2i_rl.cli import main
from t2i_rl.training.doubts import doubts, history
from tests.t2i_rl.small_runs import Brightness, train_words

HEALTHY = {"reward": 0.5, "zero_variance": 0.1, "grad_norm": 0.8, "clip_fraction": 0.0, "logprob_gap": 1e-5, "kl": 0.01}


def run_of(*changes: dict[str, float], steps: int = 12) -> list[dict[str, float]]:
    """A healthy run whose last steps are changed so."""
    rows = [{"step": 0, "heldout": 0.4}, *({"step": step, **HEALTHY} for step in range(1, steps + 1))]
    for row, change in zip(rows[-len(changes) :], changes, strict=True):
        row.update(change)
    return rows


@pytest.mark.parametrize("steps", [0, 1, 5, 12])
def test_a_healthy_run_raises_none(steps: int):
    assert not doubts([{"step": 0, "heldout": 0.4}, *run_of({}, steps=max(1, steps))[1 : steps + 1]], "float32", 1)


@pytest.mark.parametrize(
    ("change", "name", "says"),
    [
        ({"zero_variance": 1.0, "reward": 0.0}, "equal rewards", r"earned the same \(0\)"),
        ({"zero_variance": 1.0, "reward": 0.25}, "equal rewards", r"earned the same \(0.250 on average\)"),
        ({"grad_norm": 0.0}, "zero gradient", "no weight moved"),
        ({"clip_fraction": 0.02}, "ratio", "2.0% of the tokens were clipped"),
        ({"logprob_gap": 0.3}, "decode gap", "0.3 nats apart"),
        ({"kl": 1.5}, "kl", "1.5 nats a token"),
        ({"kl": 0.3}, "kl", "0.3 nats a token"),  # thirty times what it was
    ],
)
def test_what_one_step_shows(change: dict[str, float], name: str, says: str):
    found = doubts(run_of(change), "float32", 1)
    assert [*found] == [name] and re.search(says, found[name])


def test_what_is_no_doubt():
    assert not doubts(run_of({"clip_fraction": 0.02}), "float32", 2)  # of several updates, ratios move
    assert not doubts(run_of({"logprob_gap": 0.3}), "bfloat16", 1)  # rounding
    assert not doubts(run_of({"kl": 0.05}), "float32", 1)


def test_a_step_that_teaches_behind_many_that_do_not():
    rows = run_of({"kl": 0.01})
    for row in rows[1:-1]:
        del row["kl"]
    assert not doubts(rows, "float32", 1)


def test_groups_that_are_lost_are_looked_at_over_several_steps():
    half, few = ({"groups_lost": lost, "groups_scored": 8 - lost} for lost in (4, 1))
    assert not doubts(run_of(*[few] * 5), "float32", 1) and not doubts(run_of(*[half] * 4), "float32", 1)
    found = doubts(run_of(*[half] * 5), "float32", 1)
    assert [*found] == ["lost groups"] and "20 of the 40 groups of the last 5 steps" in found["lost groups"]


def test_groups_that_teach_nothing_are_looked_at_over_a_window():
    dead = {"zero_variance": 0.9}
    assert not doubts(run_of(*[dead] * 5), "float32", 1)
    assert "90% of the groups of the last 10 steps" in doubts(run_of(*[dead] * 10), "float32", 1)["dead groups"]


def test_held_out_images_that_get_worse_while_the_reward_rises():
    def judged(*scores: float, rise: float = 0.02) -> list[dict[str, float]]:
        rows = [{"step": step, **HEALTHY, "reward": 0.3 + rise * step} for step in range(1, 41)]
        for step, score in zip((10, 20, 30, 40), scores, strict=True):
            rows[step - 1]["heldout"] = score
        return [{"step": 0, "heldout": 0.4}, *rows]

    falling = doubts(judged(0.5, 0.6, 0.55, 0.5), "float32", 1)
    assert "fell from 0.600 (step 20) to 0.500 while the reward rose" in falling["held-out falls"]
    assert not doubts(judged(0.5, 0.6, 0.5, 0.595), "float32", 1)  # it came back
    assert not doubts(judged(0.5, 0.6, 0.55, 0.5, rise=-0.001), "float32", 1)  # the reward fell too: another trouble
    assert not doubts(judged(0.5, 0.55, 0.6, 0.65), "float32", 1)


def test_a_run_in_doubts():
    rows = run_of({"grad_norm": 0.0}, {}, {"grad_norm": 0.0})
    assert history(rows, "float32", 1) == {"zero gradient": ([10, 12], "the gradient was 0, so no weight moved")}


@pytest.fixture
def dull(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dull(Brightness):
        def score(self, images, prompts, metadata):
            scores = super().score(images, prompts, metadata)
            return type(scores)(scores.total * 0, {}, scores.reasons)

    monkeypatch.setitem(REWARDS, "brightness", RewardEntry(lambda device: Dull()))


@pytest.mark.usefixtures("dull")
def test_a_run_shouts_once_and_a_strict_one_ends(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(train_words(model, tmp_path / "run", "cfg", "--steps", "2")) == 0
    said = capsys.readouterr().out
    shout = "warning: step 1: in every group all images earned the same (0), so nothing could be learned"
    assert said.count("earned the same") == 1 and shout in said
    assert main(["report", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run/report.html").read_text()
    assert "equal rewards, in 2 of 2 steps, at last in step 2: in every group" in page
    assert main(train_words(model, tmp_path / "strict", "cfg", "--strict")) == 1
    assert "step 1: in every group" in capsys.readouterr().err
