"""What is read out of answers, and what two graders say of them, against the released functions."""

import json

import pytest

from rewards.answers.reward import AnswerReward
from rewards.answers.rules import boxed, mended, well_formed
from tests.parity.golden import golden_folder

ROWS = json.loads((golden_folder("reasoning") / "verdicts.json").read_text(encoding="utf-8"))
NONE = "None"  # what the released code calls an answer without a box


def test_what_is_read() -> None:
    for row in ROWS:
        text = mended(row["response"])
        assert text == row["normalised"]
        assert boxed(text) == (None if row["boxed"] == NONE and "{None}" not in text else row["boxed"])
        assert well_formed(text) == bool(row["format"])


@pytest.mark.parametrize(("grader", "column"), [("mathruler", "accuracy"), ("math-verify", "math_verify")])
def test_what_is_right(grader: str, column: str) -> None:
    reward = AnswerReward(grader, grader)
    for row, verdict in zip(ROWS, reward.workers.grade([pair(row, reward.whole) for row in ROWS]), strict=True):
        assert (verdict.right, verdict.trouble) == (bool(row[column]), ""), row


def pair(row: dict, whole: bool) -> tuple[str, str]:
    return (row["response"] if whole else row["boxed"]), row["ground_truth"]
