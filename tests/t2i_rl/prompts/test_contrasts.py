"""Negative prompts where no golden number says it: questions without pictures, without an instruction, of any text."""

import numpy as np
import pytest

from models.question import Question
from t2i_rl.errors import UserError
from t2i_rl.prompts.contrasts import CONTRASTS, NOTE, contrast, positive

PICTURES = tuple(np.random.default_rng(seed).integers(1, 255, (30, 45, 3), dtype=np.uint8) for seed in range(2))
ASKED = Question(" <image> Is it the same as <image>?\n", PICTURES)
PLAIN = Question("What is 2 + 3?")


def noise() -> np.random.Generator:
    return np.random.default_rng(7)


def test_the_default_asks_for_a_wrong_answer():
    asked = contrast("wrong-answer", ASKED, "Think.", noise())
    assert asked.text == f"<image> Is it the same as <image>?\n\nThink.\n\n{NOTE}"
    assert asked.pictures is ASKED.pictures


def test_without_an_instruction_nothing_trails():
    assert positive(ASKED, "").text == "<image> Is it the same as <image>?"
    assert contrast("no-image", ASKED, "", noise()).text == "Is it the same as ?"
    assert contrast("wrong-answer-released", PLAIN, "", noise()).text == f"What is 2 + 3?\n\n{NOTE}"


def test_a_question_without_pictures_under_a_contrast_of_pictures_is_the_positive_one():
    for name in ("no-image", "blank-image", "masked-image"):
        assert contrast(name, PLAIN, "Think.", noise()).key == positive(PLAIN, "Think.").key
    assert contrast("neutral", PLAIN, "Think.", noise()).key == "Answer the question."


def test_only_pixels_differ_and_the_question_stays_as_it_is():
    before = [picture.copy() for picture in PICTURES]
    blank, masked = (contrast(name, ASKED, "Think.", noise()) for name in ("blank-image", "masked-image"))
    assert blank.text == masked.text == positive(ASKED, "Think.").text
    for picture, white, hidden, kept in zip(PICTURES, blank.pictures, masked.pictures, before, strict=True):
        assert white.shape == hidden.shape == picture.shape and white.dtype == hidden.dtype == np.uint8
        assert (white == 255).all() and np.array_equal(picture, kept)
        black = (hidden == 0).all(-1)
        assert np.array_equal(hidden[~black], picture[~black]) and 0.2 < black.mean() < 0.8


def test_the_mask_is_the_noise_and_nothing_else_is_random():
    one, same = (contrast("masked-image", ASKED, "", noise()) for _ in range(2))
    other = contrast("masked-image", ASKED, "", np.random.default_rng(8))
    assert one.key == same.key != other.key
    assert not np.array_equal(one.pictures[0] == 0, one.pictures[1] == 0)  # a mask for each
    for name in CONTRASTS.keys() - {"masked-image"}:
        assert contrast(name, ASKED, "", noise()).key == contrast(name, ASKED, "", np.random.default_rng(8)).key


def test_any_text_has_the_pictures_that_it_marks():
    assert contrast("text:Say no.", ASKED, "Think.", noise()).key == "Say no."
    assert contrast("text:<image><image>!", ASKED, "Think.", noise()).pictures == PICTURES
    with pytest.raises(UserError, match=r"'<image>' has 1 mark\(s\) <image>, but .* has 2 picture\(s\): write one"):
        contrast("text:<image>", ASKED, "Think.", noise())


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"'wrong': choose no-prompt, no-image, .*wrong-answer-released or text:\.\.\."):
        contrast("wrong", ASKED, "", noise())
