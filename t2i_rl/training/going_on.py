"""How a run that was stopped on its way goes on, in words."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rewards.errors import RewardError
from t2i_rl.outputs import naming
from t2i_rl.training.metrics_log import read_metrics
from t2i_rl.training.run_folder import CHECKPOINTS, latest, step_of


@contextmanager
def resumable(run: Path) -> Iterator[None]:
    """What stops a run says where it writes, and how it goes on; one that fails in its first step leaves no folder."""
    try:
        with naming(run):
            yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(going_on(run)) from stop
    except RewardError as error:
        raise RewardError(f"{error}; {going_on(run)}" if last_step(run) else str(error)) from error


def going_on(run: Path) -> str:
    """From which step, and how many of those that were done are lost."""
    checkpoint, done = latest(run / CHECKPOINTS), last_step(run)
    if checkpoint is None:
        return f"t2i-rl train --resume {run} begins it anew, for it has no checkpoint yet"
    lost = done - step_of(checkpoint)
    again = f" (to be done again: {lost} of {done} steps)" if lost > 0 else ""
    return f"t2i-rl train --resume {run} goes on after step {step_of(checkpoint)}{again}"


def last_step(run: Path) -> int:
    """The last step that was done; 0 before the first."""
    return max((int(row["step"]) for row in read_metrics(run)), default=0)
