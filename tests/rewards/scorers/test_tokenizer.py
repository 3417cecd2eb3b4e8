"""CLIP's tokens: open_clip's own, whatever is written, in a time that grows with the text."""

import random
import time

import open_clip
import pytest

from rewards.scorers.tokenizer import ClipTokenizer

LETTERS = "etaoinshrdlucmfwypvbgkjqxzéñ漢ไ"


@pytest.fixture(scope="module")
def ours() -> ClipTokenizer:
    return ClipTokenizer(77)


def test_tokens_are_those_of_open_clip(ours: ClipTokenizer):
    theirs, dice = open_clip.SimpleTokenizer(), random.Random(0)
    words = ["".join(dice.choices(LETTERS, k=dice.randrange(1, 30))) for _ in range(2000)]
    words += ["a" * 300, "1234!?", "it's", "&amp;", "<end_of_text>", "ﬁ", "e\u0301"]
    for word in words:
        assert ours.encode(word) == theirs.encode(word), word
    assert (ours(words) == theirs(words)).all()


def test_one_long_word_is_no_more_work_than_many(ours: ClipTokenizer):
    letters = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=50_000)  # open_clip's takes more than a minute
    began = time.perf_counter()
    assert ours.has_more("".join(letters)) and not ours.has_more("a" * 75)
    assert time.perf_counter() - began < 5
