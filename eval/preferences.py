"""What benchmarks of preference share: every figure is the mean of one reward, by the reward's own name and range."""

import os
from collections.abc import Sequence

from eval.benchmark import TOTAL, Metric
from rewards.catalogue import REWARDS

JUDGES = ("deqa", "unifiedreward", "judge")
SCORERS = ("hpsv2", "imagereward", "pickscore", "clipscore", "aesthetic", *JUDGES)
SCALES = {"hpsv2": 100.0}  # figures are published as a hundred times the cosine


def installed() -> tuple[str, ...]:
    """The scorers that this installation has, and the judges that have an endpoint."""
    return tuple(name for name in SCORERS if not REWARDS[name].endpoint or os.environ.get(REWARDS[name].endpoint))


def metrics(scorers: Sequence[str]) -> tuple[Metric, ...]:
    """One figure a scorer: the mean over all images."""
    return tuple(Metric(name, name, {TOTAL: scale_of(name)}) for name in scorers)


def scale_of(scorer: str) -> float:
    """What a reward's total is multiplied by in a figure."""
    return next((scale for name, scale in SCALES.items() if scorer.startswith(name)), 1.0)
