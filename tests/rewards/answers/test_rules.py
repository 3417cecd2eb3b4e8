"""What is read out of an answer, beside the golden verdicts (`tests/parity/test_reasoning_answers.py`)."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.answers.rules import boxed, mended, well_formed

TEXTS = st.lists(st.sampled_from(["<think>", "</think>", "\\boxed{", "}", "{", "<", "/", " ", "\n", "\x1f", "3"])).map(
    "".join
)


@given(TEXTS)
def test_the_rules_are_the_released_expressions(text: str) -> None:
    assert mended(text) == re.sub(r"\s*(<|>|/)\s*", r"\1", text)
    assert well_formed(text) == bool(re.fullmatch(r"<think>.*</think>.*\\boxed\{.*\}.*", text, re.DOTALL))


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        ("so \\boxed{3}", "3"),
        ("\\boxed{3} or \\boxed{ {4} }", "{4}"),
        ("\\boxed{3} then \\boxed{4", None),
        ("\\boxed{}", ""),
        ("boxed{3}", None),
        ("3}", None),
    ],
)
def test_the_last_box_counts(answer: str, content: str | None) -> None:
    assert boxed(answer) == content


def test_an_answer_that_repeats_itself_costs_no_time() -> None:
    """The released expressions take minutes for these."""
    began = time.process_time()
    assert not well_formed("<think>" + "</think>" * 5000 + "\\boxed{" * 5000)
    assert mended(" " * 200_000) == " " * 200_000
    assert boxed("\\boxed{" * 50_000) is None
    assert time.process_time() - began < 1
