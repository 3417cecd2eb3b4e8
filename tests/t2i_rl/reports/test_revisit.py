"""A step of a run seen again: the trainer's own images, rewards and credit, from the weights of that step."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rewards.catalogue import REWARDS, RewardEntry
from t2i_rl.cli import main
from t2i_rl.errors import UserError
from t2i_rl.reports.revisit import Seen, seen_maps
from t2i_rl.rollout.groups import Groups
from t2i_rl.training.trainer import Trainer
from tests.t2i_rl.small_runs import Brightness, train_words

Saw = dict[tuple[int, int], dict[str, np.ndarray]]  # by step and row


@pytest.fixture(scope="module")
def watched(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Saw]]:
    """A run of the method `critical` that keeps all its checkpoints, and what its updates were given."""
    saw: Saw = {}
    update = Trainer.update

    def record(self: Trainer, number: int, groups: Groups) -> dict[str, float]:
        rollout, rewards = groups.rollout, groups.rewards
        for row in range(len(rewards)):
            saw[number, row] = {"tokens": rollout.tokens[row].numpy(), "rewards": rewards[row].numpy()}
            saw[number, row]["entropy"] = rollout.statistics["entropy"][row].numpy()
        return update(self, number, groups)

    out = tmp_path_factory.mktemp("watched") / "run"
    more = "--checkpoint.every 2 --checkpoint.keep-last 9 --evaluation.every 9"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REWARDS, "brightness", RewardEntry(lambda device: Brightness()))
        patch.setattr(Trainer, "update", record)
        assert main(train_words(model, out, "critical", *more.split())) == 0
        yield out, saw


def test_what_the_trainer_saw(watched: tuple[Path, Saw], capsys: pytest.CaptureFixture[str], tmp_path: Path):
    run, saw = watched
    for step, row in ((1, 0), (3, 0), (3, 1), (5, 1)):
        found, expected = seen_maps(Seen(run, step, row)), saw[step, row]
        np.testing.assert_array_equal(found.tokens, expected["tokens"])
        np.testing.assert_array_equal(found.maps["entropy"], expected["entropy"])
        assert [f"reward {value:.3f}" for value in expected["rewards"]] == [
            label.split(" · ")[1] for label in found.labels
        ]
        np.testing.assert_array_equal(found.maps["mask"], found.maps["critical"] > 0)
        moved = np.abs(found.maps["divergence"]).max() > 0
        assert moved == (step > 1)
        where = "the model" if step == 1 else f"its checkpoint step-{step - 1:06d}"
        assert f"step {step} of 5, group {row} · sampled again from {where}" in found.source
    capsys.readouterr()
    assert main(["heatmap", "--from-run", str(run), "--step", "4", "--out", str(tmp_path / "maps")]) == 2
    assert capsys.readouterr().err == (
        f"t2i-rl: step 4 of {run} was sampled from the weights of step-000003, which are not there; there are "
        "step-000002, step-000004, step-000005: choose a --step of 1, 3, 5\n"
    )
    assert not (tmp_path / "maps").exists()
    words = ["heatmap", "--from-run", str(run), "--step", "3", "--row", "1", "--maps", "kl", "mask"]
    assert main([*words, "--out", str(tmp_path / "maps")]) == 0
    with np.load(tmp_path / "maps/maps.npz") as saved:
        assert {"kl", "mask"} <= {*saved} and "cfg" not in saved
        np.testing.assert_array_equal(saved["tokens"], saw[3, 1]["tokens"])


def test_what_cannot_be_seen(watched: tuple[Path, Saw], tmp_path: Path):
    run, _ = watched
    with pytest.raises(UserError, match="2 groups in its update: choose a --row from 0, not 2"):
        seen_maps(Seen(run, 3, row=2))
    with pytest.raises(UserError, match="no step 6: choose one from 1 to 5"):
        seen_maps(Seen(run, 6))
    with pytest.raises(UserError, match="is not a run folder"):
        seen_maps(Seen(tmp_path, 1))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--from-run runs/a", "--from-run needs a --step"),
        ("--from-run runs/a --step 1 --seed 3", "--seed does not go with --from-run"),
        ("ring --from-run runs/a --step 1", "a prompt does not go with --from-run"),
        ("ring --step 1", "--step and --row are of a run"),
        ("ring --method ppo", "there is no method 'ppo'"),
    ],
)
def test_flags_that_do_not_go_together(words: str, says: str, capsys: pytest.CaptureFixture[str]):
    assert main(["heatmap", *words.split()]) == 2
    assert says in capsys.readouterr().err


def test_seeing_changes_nothing(watched: tuple[Path, Saw]):
    run, _ = watched
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    seen_maps(Seen(run, 3))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
