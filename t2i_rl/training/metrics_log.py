"""Where the numbers of a run go: `metrics.jsonl` (one object a step), TensorBoard, the terminal, `reward.png`.

Names in `metrics.jsonl`:

| name | meaning |
|---|---|
| step | 1 after the first update; 0 is the untrained policy's evaluation |
| reward, reward_std | mean over all scored groups; of groups of several, the mean standard deviation inside one |
| reward/NAME | mean of a reward's part |
| zero_variance | share of groups whose images all scored the same: they teach nothing |
| groups_dropped, groups_resampled | groups left out of the update; groups of further prompts (when filtered) |
| groups_lost | groups that lack a score and count nowhere else (with on-reward-failure drop_group) |
| groups_scored | the others (likewise) |
| reward_faults/KIND | how often a reward server failed (kinds: `rewards.http.client`), whether a retry helped or not |
| kl | mean divergence from the reference over all tokens, in the method's form, in nats; none without a reference |
| kl_updated | the same over the updated tokens |
| entropy | mean entropy of the sampled distribution, in nats |
| length, truncated | mean tokens of an answer, its stop token among them; share of answers that the limit cut off |
| contrast_same | share of questions that the negative prompt leaves as they are: all their tokens weigh the same |
| clip_fraction | share of updated tokens at which the clipped product was the smaller one |
| policy_loss, grad_norm | of the last optimizer step; the norm before clipping |
| learning_rate | of the last optimizer step |
| updated_tokens | share of tokens that carry gradient |
| credit_weight | mean weight of the updated tokens, before a running weight: how strongly rewards pull against the KL |
| logprob_gap | largest difference between the sampler's and the trainer's log-probability of a token, in nats |
| seconds/PHASE | wall time of sample, decode, reference (if there is one), score_wait (for the last scores), update |
| seconds/score | how long the scorer worked, most of it while the step went on sampling: no phase of its own |
| seconds/step | wall time of the step |
| images_per_second, answers_per_second | sampled images or answers over the wall time of the step |
| heldout, heldout/TAG | score on the held-out prompts, where the step was evaluated |
| also/NAME | what a further reward gives the same images (evaluation.also) |
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from t2i_rl.outputs import write_atomically
from t2i_rl.training.trackers import Tracker

METRICS = "metrics.jsonl"
RECENT = 10  # steps that the pace is read from
SLOWER = 0.1  # a change of the pace that is worth a word
Metrics = Mapping[str, float]
T = TypeVar("T")


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The steps of a run so far; a line without its end was being written when the run was killed.

    A damaged line, such as the NULs that a power failure leaves, is left out with a warning.
    """
    path, rows, damaged = run / METRICS, list[dict[str, float]](), list[str]()
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            int(row["step"])
            rows.append(_as_named_today(row))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            damaged.append(str(number))
    if damaged:
        print(f"warning: left out what is damaged of {path}: line {', '.join(damaged)}", file=sys.stderr)
    return rows


def _as_named_today(row: dict[str, float]) -> dict[str, float]:
    """In older runs `kl` was over the updated tokens alone: `kl_updated` now, and `kl` only where these were all."""
    if "kl" not in row or "kl_updated" in row:
        return row
    everywhere = row.get("updated_tokens") == 1
    return {name: value for name, value in row.items() if name != "kl" or everywhere} | {"kl_updated": row["kl"]}


def step_seconds(row: Metrics) -> float:
    """Wall time of a step; 0 for an evaluation alone. Older runs have phases only, none beside another."""
    phases = sum(value for name, value in row.items() if name.startswith("seconds/"))
    return row.get("seconds/step", phases)


def pace(rows: Sequence[Metrics], steps: int) -> str:
    """How long the last step took, how that has changed, and how long the rest will take; evaluations come on top."""
    each = [spent for row in rows if (spent := step_seconds(row))]
    if not each or not step_seconds(rows[-1]):
        return ""
    usual, first = fmean(each[-RECENT:]), fmean(each[:RECENT])
    change = f", {usual / first - 1:+.0%} since the start" if abs(usual / first - 1) > SLOWER else ""
    left = round(usual * (steps - rows[-1]["step"]))
    return f"  {each[-1]:.1f} s{change}" + (f"  {timedelta(seconds=left)} left" if left else "")


class Numbers:
    """The numbers of a run in memory: all that a process has which is not the one that writes.

    done: the last step that stays; 0 begins anew.
    """

    def __init__(self, run: Path, done: int) -> None:
        # What a killed run wrote beyond its last checkpoint will be written again.
        self.kept = [metrics for metrics in read_metrics(run) if metrics["step"] <= done] if done else []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """There is nothing to close."""

    def log(self, metrics: Metrics) -> None:
        """Record one step."""
        self.kept.append(dict(metrics))

    def say(self, text: str) -> None:
        """Nothing: one process speaks for all."""

    def following(self, items: Iterable[T], what: str, total: int) -> Iterator[T]:
        """The items, as they come."""
        return iter(items)


class MetricsLog(Numbers):
    """Writes every step's numbers; on a terminal one live progress line, elsewhere one plain line a step."""

    def __init__(self, run: Path, steps: int, done: int, trackers: Sequence[Tracker] = ()) -> None:
        super().__init__(run, done)
        self.steps, self.trackers = steps, trackers
        write_atomically(run / METRICS, "".join(json.dumps(metrics) + "\n" for metrics in self.kept))
        self.file = (run / METRICS).open("a", encoding="utf-8")
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=done + 1 if done else 0)
        self.console = Console()
        self.progress = Progress(
            TextColumn("{task.description}"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[line]}"),
            console=self.console,
            disable=not sys.stdout.isatty(),
        )
        self.task = self.progress.add_task("step", total=steps, completed=done, line="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        try:
            self.file.close()
        finally:
            self.board.close()
            for tracker in self.trackers:
                tracker.close()

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def following(self, items: Iterable[T], what: str, total: int) -> Iterator[T]:
        """The items, counted in a line of their own for as long as they come; without a terminal one line says what."""
        if self.progress.disable:
            self.say(what)
        task = self.progress.add_task(what, total=total, line="")
        try:
            yield from self.progress.track(items, total, task_id=task)
        finally:
            self.progress.remove_task(task)

    def log(self, metrics: Metrics) -> None:
        super().log(metrics)
        step = int(metrics["step"])
        self.file.write(json.dumps(metrics) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())  # before a checkpoint that leans on it
        for name, value in metrics.items():
            if name != "step":
                self.board.add_scalar(name, value, step)
        for tracker in self.trackers:
            tracker.log(metrics, step)
        line = "  ".join(f"{name} {metrics[name]:.3f}" for name in ("reward", "kl", "heldout") if name in metrics)
        if lost := metrics.get("groups_lost"):
            line += f"  {lost:.0f} of {lost + metrics['groups_scored']:.0f} groups lost"
        self.progress.update(self.task, completed=step, line=line)
        if self.progress.disable:
            self.say(f"step {step}  {line}{pace(self.kept, self.steps)}")
        elif "heldout" in metrics:
            self.say(f"step {step}  held-out {metrics['heldout']:.3f}")
