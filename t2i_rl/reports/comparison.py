"""Arms of an experiment side by side, each a list of finished runs that differ by their seed: one table, one figure.

What is compared, over the seeds of an arm:

- the held-out score at equal steps: those at which every run was evaluated;
- the held-out score at equal time: when as many seconds had been spent on training steps as the shortest run has in
  all. Evaluation is not counted; between two evaluations the score is taken to change linearly;
- the held-out score of each tag at the last step;
- the standard deviation of the reward inside a group, mean over the run: what a group has to teach;
- the divergence from the reference in nats, in the form of the arm's method and over the tokens that it updates, mean
  over the last tenth of the steps. Arms without a reference have none;
- seconds for a step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from t2i_rl.pictures.figures import new_figure, save_figure
from t2i_rl.training.metrics_log import read_metrics, step_seconds

ARM, BASELINE, OTHERS = "#0072B2", "black", "0.8"  # told apart without colour vision, and in print
COLUMNS = 4  # panels in a row


@dataclass(frozen=True)
class Finished:
    """What a finished run measured.

    heldout: the score at each evaluated step. seconds: training time until there.
    tags: the score of each tag at the last step.
    kl: None where there is no reference.
    """

    heldout: Mapping[int, float]
    seconds: Mapping[int, float]
    tags: Mapping[str, float]
    reward_std: float
    kl: float | None
    seconds_per_step: float

    def at_time(self, seconds: float) -> float:
        """The held-out score after that much training."""
        return float(np.interp(seconds, list(self.seconds.values()), list(self.heldout.values())))


Arms = Mapping[str, Sequence[Finished]]


def read_run(run: Path, steps: int, reference: bool) -> Finished | None:
    """A run's measurements up to the last of its steps; None where that has not been evaluated yet.

    reference: whether the run has a reference to diverge from.
    """
    rows = [row for row in read_metrics(run) if row["step"] <= steps]
    if not rows or rows[-1]["step"] != steps or "heldout" not in rows[-1]:
        return None
    spent = np.cumsum([step_seconds(row) for row in rows])
    evaluated = [(row, float(now)) for row, now in zip(rows, spent, strict=True) if "heldout" in row]
    trained = [row for row in rows if row["step"] > 0]
    # A step whose groups were all left out has no divergence.
    divergences = [row["kl"] for row in trained[-max(1, steps // 10) :] if reference and "kl" in row]
    return Finished(
        heldout={int(row["step"]): row["heldout"] for row, _ in evaluated},
        seconds={int(row["step"]): now for row, now in evaluated},
        tags={name.partition("/")[2]: score for name, score in rows[-1].items() if name.startswith("heldout/")},
        reward_std=fmean(row["reward_std"] for row in trained),
        kl=fmean(divergences) if divergences else None,
        seconds_per_step=float(spent[-1]) / len(trained),
    )


def common_steps(arms: Arms) -> list[int]:
    """The steps at which every run was evaluated."""
    found = [set(run.heldout) for run in chain(*arms.values())]
    return sorted(set.intersection(*found)) if found else []


def shortest(arms: Arms) -> float | None:
    """The training time that every run has reached; None before the first run."""
    return min((max(run.seconds.values()) for run in chain(*arms.values())), default=None)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and, from two values on, their standard deviation; empty without values."""
    if not values:
        return ""
    return f"{fmean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def table(arms: Arms) -> str:
    """Markdown, one row per arm: mean ± standard deviation over its runs; arms without a finished run are empty."""
    steps, time = common_steps(arms), shortest(arms)
    shown = sorted({steps[0], steps[len(steps) // 2], steps[-1]}) if steps else []
    tags = list(dict.fromkeys(tag for run in chain(*arms.values()) for tag in run.tags))
    head = ["arm", "seeds", *(f"step {step}" for step in shown), *([] if time is None else [f"{time:.0f} s"])]
    lines = [[*head, *tags, "reward std", "KL", "s/step"]]
    for arm, runs in arms.items():
        at_steps = [spread([run.heldout[step] for run in runs]) for step in shown]
        at_time = [] if time is None else [spread([run.at_time(time) for run in runs])]
        by_tag = [spread([run.tags[tag] for run in runs if tag in run.tags]) for tag in tags]
        others = [
            spread([run.reward_std for run in runs]),
            spread([run.kl for run in runs if run.kl is not None], digits=4),
            spread([run.seconds_per_step for run in runs], digits=2),
        ]
        lines.append([arm, str(len(runs)), *at_steps, *at_time, *by_tag, *others])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def draw(arms: Arms, path: Path) -> None:
    """One panel per arm, the others grey behind it; below, all arms at equal steps and at equal time.

    The first arm that has run is the baseline, dashed in every panel.
    """
    columns = min(COLUMNS, len(arms))
    rows = -(-len(arms) // columns)
    heights = 2.1 * rows, 1.2 + 0.24 * len(arms)
    figure = new_figure(max(7.5, 2.7 * columns), sum(heights), layout="constrained")
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).flat
    steps, time = common_steps(arms), shortest(arms)
    means = {arm: [fmean(run.heldout[step] for run in runs) for step in steps] for arm, runs in arms.items() if runs}
    baseline = next(iter(means), None)
    panels = list(upper.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes, arm in zip(panels, arms, strict=False):
        axes.set_title(arm, fontsize=9)
        axes.grid(alpha=0.3)
        for other, scores in means.items():
            if other not in (arm, baseline):
                axes.plot(steps, scores, color=OTHERS, linewidth=0.8)
        for run in arms[arm]:
            axes.plot(list(run.heldout), list(run.heldout.values()), color=ARM, linewidth=0.7, alpha=0.5)
        if baseline is not None:
            axes.plot(steps, means[baseline], "--", color=BASELINE, linewidth=1)
        if arm in means:
            axes.plot(steps, means[arm], "o-", color=ARM, linewidth=2, markersize=3)
        else:
            place = {"x": 0.05, "y": 0.9, "va": "top", "transform": axes.transAxes}
            axes.text(s="not run", color="0.4", fontsize=8, **place)
    for axes in panels[len(arms) - columns : len(arms)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
    for axes in panels[len(arms) :]:
        axes.set_axis_off()
    upper.supxlabel("step", fontsize=9)
    upper.supylabel("held-out score", fontsize=9)
    upper.suptitle(
        f"thick: mean of the arm, thin: its seeds, grey: the other arms, dashed: {baseline or 'the first arm'}",
        fontsize=9,
    )
    lower.suptitle("dot: mean, bar: standard deviation, ticks: seeds", fontsize=9)
    left, right = lower.subplots(1, 2, sharey=True, sharex=True)
    if steps and time is not None:
        _dots(left, arms, {arm: [run.heldout[steps[-1]] for run in runs] for arm, runs in arms.items()}, baseline)
        _dots(right, arms, {arm: [run.at_time(time) for run in runs] for arm, runs in arms.items()}, baseline)
        left.set_xlabel(f"held-out score at step {steps[-1]}", fontsize=9)
        right.set_xlabel(f"held-out score after {time:.0f} s of training", fontsize=9)
    save_figure(figure, path, 150)


def _dots(axes: Any, arms: Arms, scores: Mapping[str, Sequence[float]], baseline: str | None) -> None:
    """One line per arm: its seeds, their mean and standard deviation; the baseline's mean as a line across."""
    for place, arm in enumerate(arms):
        values = scores[arm]
        if values:
            axes.plot(values, [place] * len(values), "|", color=ARM, alpha=0.5)
            deviation = stdev(values) if len(values) > 1 else 0
            axes.errorbar(fmean(values), place, xerr=deviation, fmt="o", color=ARM, markersize=4, linewidth=1.2)
    if baseline is not None:
        axes.axvline(fmean(scores[baseline]), linestyle="--", color=BASELINE, linewidth=1)
    axes.set(yticks=range(len(arms)), ylim=(len(arms) - 0.5, -0.5))
    axes.set_yticklabels(list(arms), fontsize=8)
    axes.grid(alpha=0.3, axis="x")
