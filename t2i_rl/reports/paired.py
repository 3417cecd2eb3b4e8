"""How sure a held-out score is, and two evaluations of the same samples, by prompt: what was won, what was lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean

from t2i_rl.training.samples import Verdict


@dataclass(frozen=True)
class Paired:
    """Of so many prompts, those with a higher mean score than before and those with a lower one.

    error: the standard error, over prompts, of the change of the held-out score, which is the mean over tags; None
        where a tag has a single prompt.
    """

    prompts: int
    won: int
    lost: int
    error: float | None


def paired(before: Sequence[Verdict], now: Sequence[Verdict]) -> Paired | None:
    """None where the two are not of the same samples, or are of none."""
    if not before or [(one.number, one.prompt) for one in before] != [(one.number, one.prompt) for one in now]:
        return None
    by_tag = _by_tag(now, [last.score - first.score for first, last in zip(before, now, strict=True)])
    changes = [fmean(found) for prompts in by_tag.values() for found in prompts.values()]
    variances = [_variance([*prompts.values()]) for prompts in by_tag.values()]
    known = [variance for variance in variances if variance is not None]
    error = sqrt(sum(known)) / len(by_tag) if len(known) == len(variances) else None
    return Paired(len(changes), sum(one > 0 for one in changes), sum(one < 0 for one in changes), error)


def standard_errors(found: Sequence[Verdict]) -> dict[str, float]:
    """Over prompts, of the held-out score and of each tag's, by their names in the metrics.

    A tag with a single prompt has the most that its error can be, if its scores lie in 0..1; else none, and neither has
    the held-out score.
    """
    by_tag = _by_tag(found, [one.score for one in found])
    variances = {tag: _variance([*prompts.values()]) for tag, prompts in by_tag.items()}
    for tag, prompts in by_tag.items():
        scores = [score for some in prompts.values() for score in some]
        if len(prompts) == 1 and all(0 <= score <= 1 for score in scores):
            variances[tag] = fmean(scores) * (1 - fmean(scores)) / len(scores)
    known = {tag: variance for tag, variance in variances.items() if variance is not None}
    errors = {f"heldout/{tag}": sqrt(variance) for tag, variance in known.items()}
    if by_tag and len(known) == len(by_tag):
        errors["heldout"] = sqrt(sum(known.values())) / len(by_tag)
    return errors


def _by_tag(found: Sequence[Verdict], values: Sequence[float]) -> dict[str, dict[int, list[float]]]:
    """What belongs to each sample, by the tag and the number of its prompt."""
    by_tag: dict[str, dict[int, list[float]]] = {}
    for one, value in zip(found, values, strict=True):
        by_tag.setdefault(one.tag, {}).setdefault(one.number, []).append(value)
    return by_tag


def _variance(values: Sequence[Sequence[float]]) -> float | None:
    """Of the mean over all samples of a tag, which its prompts share as clusters: sum_i (n_i (d_i - d))^2 m/(m-1) / n^2
    for the mean d_i of the n_i samples of prompt i of m.
    """
    prompts, samples = len(values), sum(map(len, values))
    if prompts == 1:
        return None
    mean = sum(map(sum, values)) / samples
    squares = sum((sum(one) - len(one) * mean) ** 2 for one in values)
    return squares * prompts / (prompts - 1) / samples**2
