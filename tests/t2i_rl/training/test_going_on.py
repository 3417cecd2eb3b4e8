"""What ends a run on its way says from where it goes on, and what is lost."""

import json
from pathlib import Path

import pytest

from rewards.catalogue import REWARDS, RewardEntry
from rewards.errors import RewardError
from t2i_rl.cli import main
from t2i_rl.training.going_on import going_on
from tests.t2i_rl.small_runs import Brightness, train_words


def run_of(folder: Path, steps: int, *checkpoints: int) -> Path:
    rows = "".join(json.dumps({"step": step}) + "\n" for step in range(steps + 1))
    (folder / "metrics.jsonl").write_text(rows)
    for step in checkpoints:
        (folder / f"checkpoints/step-{step:06d}").mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("steps", "checkpoints", "says"),
    [
        (7, (2, 4), "goes on after step 4 (to be done again: 3 of 7 steps)"),
        (4, (4,), "goes on after step 4"),
        (3, (), "begins it anew, for it has no checkpoint yet"),
    ],
)
def test_from_where(tmp_path: Path, steps: int, checkpoints: tuple[int, ...], says: str):
    assert going_on(run_of(tmp_path, steps, *checkpoints)) == f"t2i-rl train --resume {tmp_path} {says}"


@pytest.mark.parametrize(
    ("calls", "says"),
    [
        (1, "the server is gone"),  # in the first step, which leaves no folder
        (2, "the server is gone; t2i-rl train --resume {run} begins it anew, for it has no checkpoint yet"),
        (4, "the server is gone; t2i-rl train --resume {run} goes on after step 2 (to be done again: 1 of 3 steps)"),
    ],
)
def test_a_reward_that_fails_on_the_way(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    calls: int,
    says: str,
):
    class Mortal(Brightness):
        asked = 0

        def score(self, *given):
            self.asked += 1
            if self.asked == calls:
                raise RewardError("the server is gone")
            return super().score(*given)

    monkeypatch.setitem(REWARDS, "brightness", RewardEntry(lambda device: Mortal()))
    run = tmp_path / "run"
    assert main(train_words(model, run, "grpo", "--evaluation.every", "0")) == 2
    assert capsys.readouterr().err == f"t2i-rl: {says.format(run=run)}\n"
    assert run.exists() == ("resume" in says)
