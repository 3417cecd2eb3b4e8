"""The distribution pass in chunks against whole logits, forward and backward, in both log-prob modes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.janus.policy import JanusPolicy
from t2i_rl.rollout.distribution import filtered, mix
from t2i_rl.rollout.log_probs import (
    CONDITIONAL,
    Replay,
    TokenDistribution,
    frozen_replay,
    log_probs,
    micro_batches,
    replay,
)
from t2i_rl.rollout.measure import measure
from t2i_rl.rollout.noise import Noise
from t2i_rl.rollout.sampler import encode, sample_group
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.rollout.statistics import STATISTICS, entropy, kl_divergence
from tests.conftest import random_janus

PROMPTS = ["a photo of a ring", "a photo of two crosses and a red square", "a ring"]
DRAWN = Sampling(guidance_scale=3.0, temperature=0.8, top_k=20, top_p=0.9)
GUIDED = TokenDistribution("cfg", Sampling(guidance_scale=3.0, temperature=0.8))
SCORINGS = [CONDITIONAL, GUIDED, replace(GUIDED, unconditional_gradient=False), TokenDistribution("cfg", DRAWN)]


def drawn_tokens() -> Tensor:
    return torch.randint(0, 32, (3, 16), generator=torch.Generator().manual_seed(0))


def whole(policy: JanusPolicy, distribution: TokenDistribution, tokens: Tensor) -> Tensor:
    """The log-probabilities of all codes, without chunks."""
    conditional, unconditional = policy.head(policy.hidden(policy.encode(PROMPTS), tokens, 2))
    if distribution.mode == "cond":
        return conditional.log_softmax(-1)
    if not distribution.unconditional_gradient:
        unconditional = unconditional.detach()
    mixed = mix(conditional, unconditional, distribution.sampling.guidance_scale)
    return filtered(mixed, distribution.sampling, keep=tokens).log_softmax(-1)


def gradient(policy: JanusPolicy, value: Tensor) -> Tensor:
    found = torch.autograd.grad(value, list(policy.trainable_parameters()), allow_unused=True)
    return torch.cat([part.flatten() for part in found if part is not None])


@pytest.mark.parametrize("distribution", SCORINGS, ids=["cond", "cfg", "cfg-stopped", "cfg-cut"])
@pytest.mark.parametrize("chunk", [5, 48, 1000])
def test_chunks_equal_the_whole(policy: JanusPolicy, distribution: TokenDistribution, chunk: int):
    """Values and gradients of log-probability, entropy and exact KL together, each with random weights."""
    reference, tokens = random_janus(seed=1).reference(), drawn_tokens()
    pulls = torch.randn(3, 3, 16, generator=torch.Generator().manual_seed(1))
    cut = distribution.sampling.top_k > 0  # then the KL is infinite where the two cut differently
    compared = None if cut else reference

    log_p = whole(policy, distribution, tokens)
    wanted = [log_p.gather(-1, tokens[..., None])[..., 0], entropy(log_p)]
    if not cut:
        wanted.append(kl_divergence(log_p, whole(reference, distribution, tokens).detach()))
        assert (wanted[2] > 0).all()
    pulled = sum((pull * values).sum() for pull, values in zip(pulls, wanted, strict=False))

    found = replay(policy, policy.encode(PROMPTS), tokens, distribution, True, compared, chunk)
    parts = [found.lp, found.entropy] if cut else [found.lp, found.entropy, found.kl]
    for part, values in zip(parts, wanted, strict=True):
        torch.testing.assert_close(part, values, rtol=1e-4, atol=1e-5)
    chunked = sum((pull * values).sum() for pull, values in zip(pulls, parts, strict=False))
    torch.testing.assert_close(gradient(policy, chunked), gradient(policy, pulled), rtol=1e-3, atol=1e-4)


def test_tokens_without_gradient_are_not_computed_again(policy: JanusPolicy, monkeypatch: pytest.MonkeyPatch):
    """The gradient of some tokens is that of the whole pass; the head sees the others once, in the forward pass."""
    pull = torch.zeros(3, 16)
    pull[0, 3], pull[2, 5:9] = 1.0, -2.0
    wanted = gradient(policy, (pull * log_probs(policy, policy.encode(PROMPTS), drawn_tokens())).sum())
    seen, head = list[int](), policy.head
    monkeypatch.setattr(policy, "head", lambda states: seen.append(states.shape[-2]) or head(states))
    found = (pull * log_probs(policy, policy.encode(PROMPTS), drawn_tokens())).sum()
    torch.testing.assert_close(gradient(policy, found), wanted, rtol=1e-4, atol=1e-6)
    assert seen == [48, 5]
    whole_pass = whole(policy, TokenDistribution(), drawn_tokens()).gather(-1, drawn_tokens()[..., None])[..., 0]
    torch.testing.assert_close(gradient(policy, (pull * whole_pass).sum()), wanted, rtol=1e-3, atol=1e-4)


def test_weights_of_the_head_get_their_gradient_where_they_are_trained(policy: JanusPolicy):
    head = policy.model.model.generation_head.requires_grad_(True)
    weights, tokens = list(head.parameters()), drawn_tokens()
    found = torch.autograd.grad(log_probs(policy, policy.encode(PROMPTS), tokens).sum(), weights)
    wanted = torch.autograd.grad(
        whole(policy, TokenDistribution(), tokens).gather(-1, tokens[..., None]).sum(), weights
    )
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_what_was_not_asked_for_is_not_there(policy: JanusPolicy):
    found = replay(policy, policy.encode(PROMPTS), drawn_tokens())
    assert isinstance(found, Replay) and found.entropy is None and found.kl is None
    assert torch.equal(found.lp, log_probs(policy, policy.encode(PROMPTS), drawn_tokens()))


def test_the_divergence_from_oneself_is_exactly_nothing(policy: JanusPolicy):
    found = replay(policy, policy.encode(PROMPTS), drawn_tokens(), GUIDED, reference=policy.reference())
    assert found.kl is not None and (found.kl == 0).all()


def test_stopping_the_unconditional_gradient_changes_the_gradient_alone(policy: JanusPolicy):
    both, one = (
        log_probs(policy, policy.encode(PROMPTS), drawn_tokens(), distribution) for distribution in SCORINGS[1:3]
    )
    assert torch.equal(both, one)
    assert not torch.allclose(gradient(policy, both.sum()), gradient(policy, one.sum()))


@pytest.mark.parametrize("sampling", [Sampling(guidance_scale=3.0), DRAWN, Sampling(guidance_scale=1.0)], ids=str)
def test_mode_cfg_scores_what_the_sampler_drew_from(policy: JanusPolicy, sampling: Sampling):
    drawn = sample_group(policy, policy.encode(PROMPTS), 2, sampling, Noise(3), ["logp_cfg", "logp_cond"])
    tokens = drawn.tokens.flatten(0, 1)
    found = log_probs(policy, drawn.row_condition, tokens, TokenDistribution("cfg", sampling)).unflatten(0, (3, 2))
    torch.testing.assert_close(found, drawn.statistics["logp_cfg"], rtol=1e-4, atol=1e-4)
    plain = sampling == Sampling(guidance_scale=1.0)
    assert torch.allclose(found, drawn.statistics["logp_cond"], atol=1e-4) == plain


def test_a_token_that_the_cut_would_exclude_now_stays_finite(policy: JanusPolicy):
    found = log_probs(policy, policy.encode(PROMPTS), drawn_tokens(), TokenDistribution("cfg", Sampling(top_k=1)))
    assert found.isfinite().all()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_statistics_of_a_scoring_pass_are_those_of_the_sampler(
    policy: JanusPolicy, size: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("t2i_rl.rollout.log_probs.CHUNK", 7)
    drawn = sample_group(policy, encode(policy, PROMPTS, "a ring"), 2, DRAWN, Noise(3), [*STATISTICS])
    found = measure(policy, drawn, DRAWN, [*STATISTICS], size)
    assert found.keys() == STATISTICS.keys()
    for name, values in found.items():
        torch.testing.assert_close(values, drawn.statistics[name], rtol=1e-3, atol=1e-3, msg=name)


def test_log_probs_are_float32_whatever_the_model_runs_in(policy: JanusPolicy):
    policy.model.bfloat16()
    assert log_probs(policy, policy.encode(PROMPTS), drawn_tokens()).dtype == torch.float32


def test_scoring_in_parts_is_scoring(policy: JanusPolicy):
    condition, tokens = policy.encode(PROMPTS), drawn_tokens()
    whole = log_probs(policy, condition, tokens)
    assert whole.requires_grad and whole.shape == tokens.shape and (whole < 0).all()
    for size in (1, 2, 3, 7):
        parts = frozen_replay(policy, condition, tokens, size).lp
        assert not parts.requires_grad
        torch.testing.assert_close(parts, whole.detach(), rtol=1e-5, atol=1e-5)
    # The same rows in the same micro-batches give the same bits, with and without gradient.
    assert torch.equal(frozen_replay(policy, condition, tokens, 3).lp, whole.detach())


@pytest.mark.parametrize(
    ("rows", "size", "wanted"),
    [(6, 2, [[0, 1], [2, 3], [4, 5]]), (5, 2, [[0, 1], [2, 3], [4]]), (2, 9, [[0, 1]]), (0, 3, [])],
)
def test_micro_batches(rows: int, size: int, wanted: list[list[int]]):
    assert [list(range(rows))[part] for part in micro_batches(rows, size)] == wanted
