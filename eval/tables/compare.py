"""Evaluations side by side, with how far they are sure: bootstrap over prompts, paired between runs.

A prompt is the unit: its images are averaged first. Prompts are drawn with replacement inside each category, so that
every category keeps its number of prompts, and the same draws are made for every run: what two runs differ by is
measured on the same prompts. Intervals are percentiles of the drawn figures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from eval.benchmark import OVERALL
from eval.records.manifest import MANIFEST, SCORES, SUMMARY, Ledger, Shard, read_object
from t2i_rl.errors import UserError

DRAWS = 2000
LEVEL = 0.95
SAME = ("benchmark", "prompts_sha256", "rules")  # of the settings; runs that differ there are not compared


@dataclass(frozen=True)
class Interval:
    """A figure and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Finished:
    """A finished evaluation.

    means: by metric and category, the mean over the images of each prompt, in the order of the prompts.
    mean_of: by metric, what its overall figure is a mean of: `images` or `categories`.
    judged_by: by metric, the key of its scorer among `scorers`.
    """

    name: str
    settings: Mapping[str, Any]
    scorers: Mapping[str, str]
    means: Mapping[str, Mapping[str, Float[ndarray, " P"]]]
    mean_of: Mapping[str, str]
    judged_by: Mapping[str, str]


def read_run(folder: Path) -> Finished:
    """A finished evaluation. Raises UserError for a folder that holds none."""
    summary = read_object(folder / SUMMARY)
    shard = Shard()
    try:
        settings = {**summary["settings"], "benchmark": summary["benchmark"]}
        metrics, scorers = summary["metrics"], summary["scorers"]
        manifest = Ledger(folder / MANIFEST, shard).rows()
        ledgers = {name: Ledger(folder / SCORES / f"{name}.jsonl", shard).rows() for name in scorers}
        means: dict[str, dict[str, ndarray]] = {}
        for name, metric in metrics.items():
            by_category: dict[str, dict[int, list[float]]] = {}
            for key, image in manifest.items():
                values = ledgers[metric["scorer"]][key]["values"]
                one = sum(weight * values[part] for part, weight in metric["values"].items())
                by_category.setdefault(image["category"], {}).setdefault(key[0], []).append(one)
            means[name] = {
                category: np.array([np.mean(prompts[index]) for index in sorted(prompts)])
                for category, prompts in by_category.items()
            }
        for name, metric in metrics.items():
            _check_overall(folder, name, metric, means[name])
        mean_of = {name: metric["mean_of"] for name, metric in metrics.items()}
        judged_by = {name: metric["scorer"] for name, metric in metrics.items()}
        return Finished(str(folder), settings, scorers, means, mean_of, judged_by)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{folder} holds no finished evaluation ({error!r}): run t2i-rl eval again") from error


def _check_overall(
    folder: Path, name: str, metric: Mapping[str, Any], means: Mapping[str, Float[ndarray, " P"]]
) -> None:
    """Raise UserError unless the lines give the figure that the summary states: they were changed afterwards."""
    every = [values.mean() for values in means.values()] if metric["mean_of"] == "categories" else [*means.values()]
    found = float(np.mean(np.hstack(every)))
    if not math.isclose(found, metric["overall"], rel_tol=1e-6, abs_tol=1e-9):
        raise UserError(
            f"{folder}: the lines of {SCORES} give {found:.4f} for {name}, but {SUMMARY} {metric['overall']:.4f}: one "
            "of them was changed, so judge it again"
        )


def check_alike(runs: Sequence[Finished]) -> None:
    """Raise UserError unless the runs were judged alike: same prompts, same rules, same scorers."""
    first = runs[0]
    for run in runs[1:]:
        for key in SAME:
            if run.settings[key] != first.settings[key]:
                raise UserError(f"{first.name} and {run.name} have another {key}: their figures cannot be compared")
        for name in first.scorers.keys() & run.scorers.keys():
            if first.scorers[name] != run.scorers[name]:
                raise UserError(
                    f"{first.name} was judged by {first.scorers[name]} and {run.name} by {run.scorers[name]}: judge "
                    "one of them again"
                )
    if not shared_metrics(runs):
        raise UserError(
            f"{', '.join(run.name for run in runs)} have no figure in common: judge them by the same scorers"
        )


def shared_metrics(runs: Sequence[Finished]) -> list[str]:
    """The figures that all runs have, in the order of the first."""
    return [name for name in runs[0].means if all(name in run.means for run in runs)]


def drawn(
    means: Mapping[str, Float[ndarray, " P"]], mean_of: str, draws: int, seed: int
) -> dict[str, Float[ndarray, " draws+1"]]:
    """By category and `overall`: the figure itself, then as many of prompts drawn anew.

    The draws depend on the numbers of prompts alone, so they are the same for every run of a benchmark.
    """
    random = np.random.default_rng(seed)
    figures: dict[str, ndarray] = {}
    for category, values in means.items():
        rows = random.integers(len(values), size=(draws, len(values)))
        figures[category] = np.concatenate([[values.mean()], values[rows].mean(1)])
    sizes = np.array([len(values) for values in means.values()])
    weights = np.ones(len(sizes)) / len(sizes) if mean_of == "categories" else sizes / sizes.sum()
    return {OVERALL: weights @ np.stack(list(figures.values())), **figures}


def interval(figures: Float[ndarray, " draws+1"], level: float = LEVEL) -> Interval:
    """The first figure, between the percentiles of the others."""
    low, high = np.quantile(figures[1:], [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(figures[0]), float(low), float(high))


@dataclass(frozen=True)
class Comparison:
    """Figures of every run, and what each run has more than the first. Keys: metric, then category or `overall`."""

    runs: Mapping[str, Mapping[tuple[str, str], Interval]]
    differences: Mapping[str, Mapping[tuple[str, str], Interval]]


def compare(runs: Sequence[Finished], draws: int = DRAWS, seed: int = 0) -> Comparison:
    """Raises UserError for runs that cannot be compared."""
    check_alike(runs)
    found: list[dict[tuple[str, str], ndarray]] = []
    for run in runs:
        found.append({})
        for metric in shared_metrics(runs):
            for place, figures in drawn(run.means[metric], run.mean_of[metric], draws, seed).items():
                found[-1][metric, place] = figures
    names = [run.name for run in runs]
    return Comparison(
        {name: {key: interval(one) for key, one in held.items()} for name, held in zip(names, found, strict=True)},
        {
            f"{name} - {names[0]}": {key: interval(one - found[0][key]) for key, one in held.items()}
            for name, held in zip(names[1:], found[1:], strict=True)
        },
    )
