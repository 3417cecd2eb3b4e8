"""A step of a model that answers in text: its parts, and what they must not depend on."""

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from t2i_rl.configuration.config import RolloutConfig
from t2i_rl.methods.catalogue import METHODS, find_method
from t2i_rl.prompts.contrasts import CONTRASTS
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.names import CONTRASTS as SECOND_BRANCH
from t2i_rl.training.update import even_parts
from tests.models.small_qwen_vl import KINDS
from tests.t2i_rl.training.answering import MOST, PROMPTS, Kept, ShareOfWord, policy, settings, trainer, weights

ON_TEXT = [name for name, method in METHODS.items() if not method.credit.places and method.objective.unit != "row"]


@pytest.mark.parametrize("method", ON_TEXT)
def test_every_method_of_tokens_takes_a_step(method: str, tmp_path: Path):
    config = settings(updates_per_rollout=1 + (METHODS[method].source == "current"))
    metrics = trainer(method, config, tmp_path).step(1)
    assert all(np.isfinite(value) for value in metrics.values()) and metrics["grad_norm"] > 0
    assert 1 < metrics["length"] < MOST and 0 <= metrics["truncated"] < 1
    assert metrics["logprob_gap"] < 1e-4 and "answers_per_second" in metrics
    assert ("contrast_same" in metrics) == bool(SECOND_BRANCH & {*METHODS[method].credit.statistics})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["cfg-text", "dapo", "gspo", "vppo[objective=cfg-text]", "dr-grpo"])
def test_micro_batches_padding_and_order_do_not_matter(method: str, kind: str, tmp_path: Path):
    """A rollout in rows of other companions: the same answers, and the same gradient up to float32's rounding."""
    ends = []
    for update_micro, rollout_micro in ((16, 4), (1, 1), (5, 3)):
        found = trainer(method, settings(update_micro, rollout_micro, learning_rate=0.1), tmp_path, kind)
        found.optimizer = torch.optim.SGD([*found.policy.trainable_parameters()])
        found.step(1)
        ends.append((found.updated.rollout, weights(found)))
    (whole, moved), *others = ends
    assert len(set(whole.lengths.flatten().tolist())) > 3
    for rollout, other in others:
        assert torch.equal(rollout.tokens, whole.tokens)
        for name in moved:
            torch.testing.assert_close(other[name], moved[name], rtol=0, atol=2e-6)


def test_what_stands_behind_an_end_is_never_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    method, config = "cfg-text", settings(learning_rate=0.1)
    plain = trainer(method, config, tmp_path)
    wider = trainer(method, config, tmp_path)
    choose = type(wider.collector).choose

    def with_rubbish(collector: Any, collected: Any) -> Any:
        groups = choose(collector, collected)
        tokens, rollout = groups.rollout.tokens.clone(), groups.rollout
        assert (~rollout.valid).any()
        tokens[~rollout.valid] = 9
        statistics = {name: values.masked_fill(~rollout.valid, 77.0) for name, values in rollout.statistics.items()}
        stops = rollout.lengths
        spoilt = Rollout(rollout.condition, tokens, statistics, rollout.stop_tokens)
        assert torch.equal(spoilt.lengths, stops)
        return dataclasses.replace(groups, rollout=spoilt)

    plain.step(1)
    monkeypatch.setattr(type(wider.collector), "choose", with_rubbish)
    wider.step(1)
    assert all(torch.equal(value, weights(wider)[name]) for name, value in weights(plain).items())


@pytest.mark.parametrize("contrast", [*CONTRASTS, "text:are there <image> ?"])
def test_every_negative_prompt(contrast: str, tmp_path: Path):
    config = settings(contrast=contrast)
    if contrast.startswith("text:"):
        config = dataclasses.replace(config, rollout=RolloutConfig(1, 4))
        found = Kept(config, policy(KINDS[0], tmp_path), find_method("cfg-text"), ShareOfWord(), PROMPTS[:1])
    else:
        found = trainer("cfg-text[filter_zero_std=off]", config, tmp_path)
    metrics = found.step(1)
    divergence = found.updated.rollout.statistics["kl_cond_uncond"]
    pictures = contrast in ("blank-image", "masked-image", "no-image")
    for prompt, values in zip(found.updated.records, divergence, strict=True):
        differs = bool(prompt.pictures) or not pictures
        assert (values.max() > 1e-6) == differs
    assert metrics["contrast_same"] == (0.25 if pictures else 0)


def test_parts_of_a_rollout(tmp_path: Path):
    """Several optimizer steps, each on other questions; from the second on, ratios are those to the first policy."""
    assert even_parts(4, 3) == [slice(0, 1), slice(1, 2), slice(2, 4)] and even_parts(1, 3) == [slice(0, 1)]
    seen = []

    class Watched(Kept):
        def credit(self, rollout: Rollout, context: Any) -> Any:
            seen.append((rollout.tokens, weights(self)))
            return super().credit(rollout, context)

    config = settings(mini_batches=2, updates_per_rollout=2)
    found = Watched(config, policy(KINDS[0], tmp_path), find_method("cfg-text-released"), ShareOfWord(), PROMPTS)
    metrics = found.step(1)
    assert len(seen) == 4 and metrics["logprob_gap"] < 1e-4 and metrics["clip_fraction"] >= 0
    groups = found.updated.rollout.tokens
    for (tokens, _), rows in zip(seen, even_parts(len(groups), 2) * 2, strict=True):
        assert torch.equal(tokens, groups[rows])
    heads = [found["lm_head.weight"] for _, found in seen]
    assert all(not torch.equal(before, after) for before, after in pairwise(heads))


def test_it_learns(tmp_path: Path):
    learner = trainer("cfg-text", settings(learning_rate=5e-3), tmp_path)
    rewards = [learner.step(number)["reward"] for number in range(1, 16)]
    assert sum(rewards[-4:]) > 1.5 * sum(rewards[:4])
