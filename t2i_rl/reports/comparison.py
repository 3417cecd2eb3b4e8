"""Arms of an experiment side by side, each its finished runs by their seeds: one table, one figure.

What is compared, over the seeds of an arm:

- the held-out score before training and at the last step that every run was evaluated at;
- its mean over the evaluations of the last half of those steps, where they are several: one is few images;
- the difference of both from another arm, the first that has run if none is named, paired: the seeds that both arms
  have, one difference each;
- the held-out score at equal time: when as many seconds had been spent on training steps as the shortest run has in
  all. Evaluation is not counted; between two evaluations the score is taken to change linearly;
- the held-out score of each tag at the last step;
- the standard deviation of the reward inside a group, mean over the run: what a group has to teach;
- the mean weight of the updated tokens, before a running weight: how strongly rewards pull against the KL;
- the metric `kl` (`t2i_rl.training.metrics_log`), in nats, over all tokens, so that arms which update few compare with
  others; mean over the last tenth of the steps. Arms without a reference have none, nor have older runs that updated
  a part of the tokens: they measured it over that part;
- seconds for a step.

What stands behind ± is the standard error of the mean, deviation / sqrt(seeds), without a t quantile; there is none for
one seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import sqrt
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
    reward_std: None where groups are single images.
    weight: None for a run from before it was measured.
    kl: None where there is no reference, or where an older run measured it over a part of the tokens.
    """

    heldout: Mapping[int, float]
    seconds: Mapping[int, float]
    tags: Mapping[str, float]
    reward_std: float | None
    weight: float | None
    kl: float | None
    seconds_per_step: float

    def at_time(self, seconds: float) -> float:
        """The held-out score after that much training."""
        return float(np.interp(seconds, list(self.seconds.values()), list(self.heldout.values())))

    def over(self, steps: Sequence[int]) -> float:
        """The mean held-out score of these evaluations."""
        return fmean(self.heldout[step] for step in steps)


Arms = Mapping[str, Mapping[int, Finished]]  # by arm, then by seed


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
    spreads = [row["reward_std"] for row in trained if "reward_std" in row]
    # A step whose groups were all left out has no divergence and no weight.
    divergences = [row["kl"] for row in trained[-max(1, steps // 10) :] if reference and "kl" in row]
    weights = [row["credit_weight"] for row in trained if "credit_weight" in row]
    return Finished(
        heldout={int(row["step"]): row["heldout"] for row, _ in evaluated},
        seconds={int(row["step"]): now for row, now in evaluated},
        tags={name.partition("/")[2]: score for name, score in rows[-1].items() if name.startswith("heldout/")},
        reward_std=fmean(spreads) if spreads else None,
        weight=fmean(weights) if weights else None,
        kl=fmean(divergences) if divergences else None,
        seconds_per_step=float(spent[-1]) / len(trained),
    )


def all_runs(arms: Arms) -> list[Finished]:
    return list(chain.from_iterable(runs.values() for runs in arms.values()))


def common_steps(arms: Arms) -> list[int]:
    """The steps at which every run was evaluated."""
    found = [set(run.heldout) for run in all_runs(arms)]
    return sorted(set.intersection(*found)) if found else []


def last_half(steps: Sequence[int]) -> list[int]:
    """The steps in the last half of the way to the last of them."""
    return [step for step in steps if step > steps[-1] / 2 or step == steps[-1]]


def shortest(arms: Arms) -> float | None:
    """The training time that every run has reached; None before the first run."""
    return min((max(run.seconds.values()) for run in all_runs(arms)), default=None)


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of two or more values."""
    return stdev(values) / sqrt(len(values))


def spread(values: Sequence[float], digits: int = 3, signed: bool = False) -> str:
    """Mean and, from two values on, its standard error; empty without values."""
    if not values:
        return ""
    mean = f"{fmean(values):{'+' if signed else ''}.{digits}f}"
    return mean + (f" ± {standard_error(values):.{digits}f}" if len(values) > 1 else "")


def paired(runs: Mapping[int, Finished], others: Mapping[int, Finished], steps: Sequence[int]) -> list[float]:
    """By seed that both arms have, how much more the first scores over these evaluations."""
    return [runs[seed].over(steps) - others[seed].over(steps) for seed in runs if seed in others]


def table(arms: Arms, against: str | None = None) -> str:
    """Markdown, one row per arm; arms without a finished run are empty.

    against: the arm that differences are taken from; if not given, the first that has run.
    """
    against = against or next((arm for arm, runs in arms.items() if runs), None)
    steps, time = common_steps(arms), shortest(arms)
    tags = list(dict.fromkeys(tag for run in all_runs(arms) for tag in run.tags))
    first, late = steps[:1] if len(steps) > 1 else [], last_half(steps)
    ends = {f"step {steps[-1]}": steps[-1:]} if steps else {}
    if len(late) > 1:
        ends[f"mean of steps {late[0]} to {late[-1]}"] = late
    head = ["arm", "seeds", *(f"step {step}" for step in first), *chain.from_iterable((end, "Δ") for end in ends)]
    head += [*([] if time is None else [f"{time:.0f} s"]), *tags, "reward std", "weight", "KL", "s/step"]
    lines = [head, ["---"] * len(head)]
    for arm, found in arms.items():
        runs, others = list(found.values()), {} if against in (None, arm) else arms[against]
        line = [arm, str(len(runs)), *(spread([run.heldout[step] for run in runs]) for step in first)]
        for end in ends.values():
            line += [spread([run.over(end) for run in runs]), spread(paired(found, others, end), signed=True)]
        line += [] if time is None else [spread([run.at_time(time) for run in runs])]
        line += [spread([run.tags[tag] for run in runs if tag in run.tags]) for tag in tags]
        line += [
            spread([run.reward_std for run in runs if run.reward_std is not None]),
            spread([run.weight for run in runs if run.weight is not None], digits=2),
            spread([run.kl for run in runs if run.kl is not None], digits=4),
            spread([run.seconds_per_step for run in runs], digits=2),
        ]
        lines.append(line)
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    if against is None:
        return text
    return (
        f"{text}\nMeans over seeds ± standard error (deviation / √seeds, without a t quantile). Δ: the column before "
        f"it less that of {against}, over the seeds that both have, paired by seed.\n"
    )


def draw(arms: Arms, path: Path, against: str | None = None) -> None:
    """One panel per arm, the others grey behind it; below, all arms at equal steps and at equal time.

    against: the arm that is dashed in every panel; if not given, the first that has run.
    """
    columns = min(COLUMNS, len(arms))
    rows = -(-len(arms) // columns)
    heights = 2.1 * rows, 1.2 + 0.24 * len(arms)
    figure = new_figure(max(7.5, 2.7 * columns), sum(heights), layout="constrained")
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).flat
    steps, time = common_steps(arms), shortest(arms)
    means = {
        arm: [fmean(run.heldout[step] for run in runs.values()) for step in steps] for arm, runs in arms.items() if runs
    }
    baseline = against if against in means else next(iter(means), None)
    panels = list(upper.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes, arm in zip(panels, arms, strict=False):
        axes.set_title(arm, fontsize=9)
        axes.grid(alpha=0.3)
        for other, scores in means.items():
            if other not in (arm, baseline):
                axes.plot(steps, scores, color=OTHERS, linewidth=0.8)
        for run in arms[arm].values():
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
    lower.suptitle("dot: mean, bar: its standard error, ticks: seeds", fontsize=9)
    left, right = lower.subplots(1, 2, sharey=True, sharex=True)
    if steps and time is not None:
        at_last = {arm: [run.heldout[steps[-1]] for run in runs.values()] for arm, runs in arms.items()}
        at_time = {arm: [run.at_time(time) for run in runs.values()] for arm, runs in arms.items()}
        _dots(left, arms, at_last, baseline)
        _dots(right, arms, at_time, baseline)
        left.set_xlabel(f"held-out score at step {steps[-1]}", fontsize=9)
        right.set_xlabel(f"held-out score after {time:.0f} s of training", fontsize=9)
    save_figure(figure, path, 150)


def _dots(axes: Any, arms: Arms, scores: Mapping[str, Sequence[float]], baseline: str | None) -> None:
    """One line per arm: its seeds, their mean and its standard error; the baseline's mean as a line across."""
    for place, arm in enumerate(arms):
        values = scores[arm]
        if values:
            axes.plot(values, [place] * len(values), "|", color=ARM, alpha=0.5)
            error = standard_error(values) if len(values) > 1 else 0
            axes.errorbar(fmean(values), place, xerr=error, fmt="o", color=ARM, markersize=4, linewidth=1.2)
    if baseline is not None:
        axes.axvline(fmean(scores[baseline]), linestyle="--", color=BASELINE, linewidth=1)
    axes.set(yticks=range(len(arms)), ylim=(len(arms) - 0.5, -0.5))
    axes.set_yticklabels(list(arms), fontsize=8)
    axes.grid(alpha=0.3, axis="x")
