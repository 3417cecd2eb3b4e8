"""What was won and lost between two evaluations of the same samples."""

from math import sqrt

import pytest

from t2i_rl.reports.paired import Paired, paired, standard_errors
from t2i_rl.training.samples import Verdict


def verdicts(tag: str, *scores: float, numbers: tuple[int, ...] = ()) -> list[Verdict]:
    """One for each score; of different prompts, unless their numbers are given."""
    of = numbers or range(len(scores))
    return [Verdict(f"{tag} {n}", tag, n, score, None, "", None) for n, score in zip(of, scores, strict=True)]


def test_prompts_won_and_lost_and_the_error_of_the_change():
    before = verdicts("a", 0, 0, 1, 1) + verdicts("b", 0, 1)
    now = verdicts("a", 1, 0, 0, 1) + verdicts("b", 1, 1)
    # a: changes 1, 0, -1, 0, of mean 0 and variance (2/3)/4; b: 1, 0, of mean 1/2 and variance (1/2)/2
    assert paired(before, now) == Paired(6, 2, 1, pytest.approx(sqrt(1 / 6 + 1 / 4) / 2))


def test_the_samples_of_a_prompt_count_together():
    numbers = (0, 1, 0, 1, 0)
    found = paired(verdicts("a", 0, 0, 0, 1, 1, numbers=numbers), verdicts("a", 1, 1, 0, 0, 1, numbers=numbers))
    # Prompt 0 changes by 1, 0, 0, prompt 1 by 1, -1; the mean of all is 1/5: clusters of 1 - 3/5 and 0 - 2/5.
    assert found == Paired(2, 1, 0, pytest.approx(sqrt((0.4**2 + 0.4**2) * 2 / 25)))


def test_a_single_prompt_says_nothing_of_others():
    assert paired(verdicts("a", 0.2), verdicts("a", 0.4)) == Paired(1, 1, 0, None)


def test_other_samples_are_not_compared():
    assert paired([], []) is None
    assert paired(verdicts("a", 1, 1), verdicts("a", 1)) is None
    assert paired(verdicts("a", 1), verdicts("b", 1)) is None


def test_how_sure_a_score_is():
    """Scores that are no shares have the error that they show, not that of a share."""
    small = verdicts("a", 0.01, 0.03) + verdicts("b", 0.02, 0.02)
    assert standard_errors(small) == pytest.approx({"heldout/a": 0.01, "heldout/b": 0, "heldout": 0.005})
    alone = verdicts("a", 0, 1) + verdicts("b", 1, 0, 0, 0, numbers=(0, 0, 0, 0))
    bound = sqrt(0.25 * 0.75 / 4)
    assert standard_errors(alone) == pytest.approx(
        {"heldout/a": 0.5, "heldout/b": bound, "heldout": sqrt(0.25 + bound**2) / 2}
    )
    assert standard_errors(verdicts("a", 0, 1) + verdicts("b", 7)) == {"heldout/a": 0.5}
    assert standard_errors([]) == {}
