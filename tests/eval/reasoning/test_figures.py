"""avg@n, its standard error and pass@k against what they mean."""

from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.reasoning.figures import SCORER, by_question, pass_at, standard_error, summary


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_share_of_all_choices_that_hold_a_right_one(right: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(right)))
    assert pass_at(len(right), sum(right), k) == pytest.approx(fmean(any(some) for some in combinations(right, k)))


def test_the_error_is_over_questions() -> None:
    assert standard_error([0.0, 1.0]) == pytest.approx(0.5)
    assert standard_error([1.0]) == 0.0


def rows(verdicts: list[list[int]]) -> tuple[list[dict], dict[str, list[dict]]]:
    """The manifest and the scores of questions with these answers; answer j has j + 1 tokens, of question 0 all cut."""
    keys = [(index, sample) for index, found in enumerate(verdicts) for sample in range(len(found))]
    about = {"category": "all", "metadata": {"answer": "A", "id": "x"}}
    manifest = [{"index": i, "sample": j, "tokens": j + 1, "truncated": i == 0, **about} for i, j in keys]
    graded = [{"values": {"accuracy": float(verdicts[i][j]), "ungraded": float(i == 1 and j == 0)}} for i, j in keys]
    return manifest, {SCORER: graded}


def test_what_is_said_of_all_questions() -> None:
    found = summary(*rows([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]))
    answers = found["answers"]
    assert answers["avg@4"] == answers["pass@1"] == pytest.approx(100 * 5 / 12)
    assert answers["pass@2"] == pytest.approx(100 * (0.5 + 0 + 1) / 3)
    assert answers["pass@4"] == pytest.approx(100 * 2 / 3)
    assert answers["standard_error"] == pytest.approx(100 * standard_error([0.25, 0, 1]))
    assert (answers["truncated"], answers["ungraded"]) == pytest.approx((100 / 3, 100 / 12))
    assert answers["tokens"] == 2.5
    assert found["lines"] == [
        "avg@4 41.7 ± 30.0 % (standard error over questions)",
        "pass@1 41.7 %, pass@2 50.0 %, pass@4 66.7 %",
        "2 tokens an answer; 33.3 % cut off, 8.3 % without a verdict, which count as wrong",
    ]


def test_a_line_for_every_question() -> None:
    first, second = by_question(*rows([[1, 0, 1], [0, 0, 0]]))
    assert first == {
        "index": 0, "id": "x", "category": "all", "answer": "A", "right": [1, 0, 1], "tokens": [1, 2, 3],
        "truncated": 3, "ungraded": 0, "accuracy": pytest.approx(2 / 3),
    }  # fmt: skip
    assert (second["ungraded"], second["accuracy"]) == (1, 0)


def test_six_answers_are_counted_by_powers_of_two_and_whole() -> None:
    answers = summary(*rows([[1, 0, 0, 0, 0, 0]]))["answers"]
    assert [name for name in answers if name.startswith("pass@")] == ["pass@1", "pass@2", "pass@4", "pass@6"]
