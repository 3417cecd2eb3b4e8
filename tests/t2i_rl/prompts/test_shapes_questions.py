"""Questions about pictures of the shapes world, and the shipped model that answers them."""

import numpy as np
import pytest

from models.registry import load
from rewards.answers.rules import boxed, well_formed
from t2i_rl.prompts import shapes_questions as world
from t2i_rl.prompts.prompt import prompts_digest
from t2i_rl.prompts.reading import load_prompts
from t2i_rl.rollout.generate import generate
from t2i_rl.rollout.sampling import Sampling


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_rationale_of_what_is_there_ends_in_the_answer(split: str):
    for asked in world.questions(split)[:200]:
        text = world.rationale(asked.scene, asked, asked.answer)
        assert boxed(text) == asked.answer and well_formed(text)
        counted = [item for item in asked.scene if item.shape == asked.shape and asked.color in ("", item.color)]
        assert asked.answer == (counted[0].color if asked.tag == "color" else str(len(counted)))
        assert list(asked.scene) == sorted(asked.scene, key=lambda item: (item.y // world.ROW, item.x))


def test_the_splits_share_neither_questions_nor_pairs():
    train, heldout = (world.questions(split) for split in ("train", "heldout"))
    assert (len(train), len(heldout)) == (2000, 300)
    assert not {(one.scene, one.text) for one in train} & {(one.scene, one.text) for one in heldout}
    assert {one.pair for one in heldout if one.pair[0]} <= world.HELD_OUT_PAIRS
    assert not {one.pair for one in train} & world.HELD_OUT_PAIRS
    assert {one.tag for one in heldout} == {one.tag for one in train} == set(world.TAGS)
    assert {one.answer for one in train} >= {"0", "1", "2", "3", "red"}


def test_they_are_prompts_that_differ_by_their_pictures():
    prompts = load_prompts("questions:heldout")
    assert all(prompt.text.count("<image>") == len(prompt.pictures) == 1 for prompt in prompts)
    assert len({prompt.key for prompt in prompts}) > len({prompt.text for prompt in prompts})
    assert prompts_digest(prompts) == prompts_digest(load_prompts("questions:heldout"))
    assert prompts_digest(prompts[:1]) != prompts_digest(prompts[1:2])


def test_the_shipped_model_answers_better_than_chance_and_worse_than_it_could():
    policy, prompts = load("tiny-vlm"), load_prompts("questions:heldout")[:60]
    drawn = generate(policy, prompts, 1, Sampling(1.0, temperature=0), 0, 60, max_tokens=40)
    right = [boxed(str(one.image)) == prompt.metadata["answer"] for one, prompt in zip(drawn, prompts, strict=True)]
    assert 0.5 < np.mean(right) < 0.95
