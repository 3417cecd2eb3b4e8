"""Sampling: the noise decides alone, the statistics are the model's, the draw follows the distribution."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from models.janus.policy import JanusPolicy
from models.parts.decoding import Decoding
from t2i_rl.errors import DivergenceError
from t2i_rl.rollout.distribution import filtered, mix
from t2i_rl.rollout.drawing import draw
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.names import CONTRASTS, StatisticName
from t2i_rl.rollout.noise import Noise, occurrences
from t2i_rl.rollout.sampler import encode, sample_group
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.rollout.statistics import STATISTICS, entropy, kl_divergence
from tests.conftest import random_janus

PROMPTS = ("a photo of a circle", "a photo of a red square and a blue ring", "a photo of a circle")
ALL = ("entropy", "kl_cond_uncond", "logp_cond", "logp_uncond", "logp_guided", "logp_cfg", "entropy_cond")
SEED = 7


def sample(policy: JanusPolicy, prompts=PROMPTS, group_size=3, numbers=(), **settings) -> Rollout:
    return sample_group(
        policy, policy.encode(prompts), group_size, Sampling(**settings), Noise(SEED, occurrences=numbers), ALL
    )


def teacher_forced(policy: JanusPolicy, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Both branches' logits `[P, G, N, V]` from one pass over the finished images."""
    hidden = policy.hidden(rollout.row_condition, rollout.tokens.flatten(0, 1), branches=2)
    cond, uncond = policy.head(hidden).unflatten(1, rollout.tokens.shape[:2]).detach()
    return cond, uncond


def test_tokens_depend_on_the_noise_alone(policy: JanusPolicy) -> None:
    whole = sample(policy).tokens
    assert torch.equal(sample(policy).tokens, whole)
    numbers = occurrences(PROMPTS)
    assert numbers == [0, 0, 1]
    assert not torch.equal(whole[0], whole[2])  # the same prompt, its second occurrence

    for row, prompt in enumerate(PROMPTS):
        assert torch.equal(sample(policy, (prompt,), numbers=[numbers[row]]).tokens[0], whole[row])
    order = [2, 1, 0]
    turned = sample(policy, [PROMPTS[row] for row in order], numbers=[numbers[row] for row in order]).tokens
    assert torch.equal(turned, whole[order])
    assert torch.equal(sample(policy, group_size=2).tokens, whole[:, :2])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_token_is_drawn_from_logits_that_are_not_finite(
    monkeypatch: pytest.MonkeyPatch, value: float, temperature: float
) -> None:
    broken = random_janus()
    next_logits = broken.next_logits

    def one_is_not(state: Decoding) -> Tensor:
        logits = next_logits(state).clone()
        logits[0, 4, 0, 5] = value
        return logits

    monkeypatch.setattr(broken, "next_logits", one_is_not)
    with pytest.raises(DivergenceError, match="are not finite"):
        sample(broken, temperature=temperature)


def test_another_seed_or_step_gives_other_images(policy: JanusPolicy) -> None:
    condition = policy.encode(PROMPTS)
    drawn = [
        sample_group(policy, condition, 1, Sampling(), noise).tokens for noise in (Noise(0), Noise(1), Noise(0, 1))
    ]
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 2.0, "temperature": 0.7, "top_k": 5, "top_p": 0.9}])
def test_statistics_are_those_of_a_teacher_forced_pass(policy: JanusPolicy, settings: dict) -> None:
    rollout = sample(policy, **settings)
    cond, uncond = teacher_forced(policy, rollout)
    scale = Sampling(**settings).of(policy.default_guidance).guidance_scale
    mixed = uncond + scale * (cond - uncond)
    guided = torch.distributions.Categorical(logits=mixed)
    drawn = torch.distributions.Categorical(logits=filtered(mixed, Sampling(**settings)))
    cond, uncond = torch.distributions.Categorical(logits=cond), torch.distributions.Categorical(logits=uncond)
    expected = {
        "entropy": guided.entropy(),
        "kl_cond_uncond": torch.distributions.kl_divergence(cond, uncond),
        "logp_cond": cond.log_prob(rollout.tokens),
        "logp_uncond": uncond.log_prob(rollout.tokens),
        "logp_guided": guided.log_prob(rollout.tokens),
        "logp_cfg": drawn.log_prob(rollout.tokens),
        "entropy_cond": cond.entropy(),
    }
    assert rollout.statistics.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(rollout.statistics[name], values, atol=1e-4, rtol=1e-4, msg=name)


def test_every_statistic_has_its_name_where_torch_is_not() -> None:
    assert STATISTICS.keys() == {*get_args(StatisticName)}
    assert STATISTICS.keys() > CONTRASTS


def test_a_negative_prompt_takes_the_place_of_the_null_branch(policy: JanusPolicy) -> None:
    null, negative = encode(policy, PROMPTS, ""), encode(policy, PROMPTS, "a blue ring")
    wanted = policy.encode(PROMPTS, ["a blue ring"] * 3)
    assert all(torch.equal(negative.tensors[name], wanted.tensors[name]) for name in wanted.tensors)
    plain, led = (sample_group(policy, found, 2, Sampling(), Noise(SEED)).tokens for found in (null, negative))
    assert not torch.equal(plain, led)


def test_a_token_that_was_drawn_keeps_a_probability() -> None:
    logits, drawn = torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor(3)
    found = filtered(logits, Sampling(temperature=0.5, top_k=2), keep=drawn)
    assert found.tolist() == [6.0, 4.0, -math.inf, 0.0]


def test_entropy_and_divergence_with_impossible_tokens() -> None:
    p = torch.tensor([0.5, 0.5, 0.0, 0.0])
    q = torch.tensor([0.25, 0.25, 0.5, 0.0])
    assert entropy(p.log()).item() == pytest.approx(math.log(2))
    assert kl_divergence(p.log(), q.log()).item() == pytest.approx(math.log(2))
    assert kl_divergence(q.log(), p.log()).item() == math.inf
    assert entropy(torch.tensor([0.0, -torch.inf])).item() == 0


def test_greedy_decoding_takes_the_most_likely_token(policy: JanusPolicy) -> None:
    rollout = sample(policy, temperature=0.0)
    cond, uncond = teacher_forced(policy, rollout)
    assert torch.equal(rollout.tokens, mix(cond, uncond, 5.0).argmax(-1))


@pytest.mark.parametrize(
    ("scale", "statistics", "branches"),
    [
        (5.0, (), 2),
        (1.0, (), 1),
        (1.0, ("entropy", "logp_cond", "logp_guided"), 1),
        (1.0, ("kl_cond_uncond",), 2),
        (1.0, ("logp_uncond",), 2),
    ],
)
def test_the_null_branch_runs_only_where_it_is_needed(
    policy: JanusPolicy, monkeypatch: pytest.MonkeyPatch, scale: float, statistics: tuple, branches: int
) -> None:
    ran: list[int] = []
    original = policy.prefill

    def watched(condition, group_size, branches, into):
        ran.append(branches)
        return original(condition, group_size, branches, into)

    monkeypatch.setattr(policy, "prefill", watched)
    sample_group(policy, policy.encode(PROMPTS), 1, Sampling(guidance_scale=scale), Noise(SEED), statistics)
    assert ran == [branches]


def test_guidance_one_is_conditional_sampling_with_or_without_the_null_branch(policy: JanusPolicy) -> None:
    measured = sample(policy, guidance_scale=1.0)
    plain = sample_group(policy, policy.encode(PROMPTS), 3, Sampling(guidance_scale=1.0), Noise(SEED))
    assert torch.equal(plain.tokens, measured.tokens)
    assert torch.equal(measured.statistics["logp_guided"], measured.statistics["logp_cond"])


def log(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).log()


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [0, 1, 2]),
        ({"top_k": 9}, [0, 1, 2, 3]),
        ({"top_p": 0.3}, [1]),  # the most likely token stays, whatever the threshold
        ({"top_p": 0.6}, [0, 1]),  # the token that crosses the threshold stays
        ({"top_p": 0.85}, [0, 1, 2]),
        ({"top_k": 2, "top_p": 0.6}, [1]),  # after top-k it is 0.5 of 0.8, already past the threshold
        ({"temperature": 0.5, "top_p": 0.6}, [1]),  # squared, 0.25 of 0.38 is 0.66
    ],
)
def test_filtering_by_hand(settings: dict, kept: list[int]) -> None:
    logits = log(0.3, 0.5, 0.15, 0.05)
    found = filtered(logits, Sampling(**settings))
    assert found.isfinite().nonzero()[:, 0].tolist() == kept
    torch.testing.assert_close(found[kept], logits[kept] / settings.get("temperature", 1.0))


def test_top_k_keeps_ties() -> None:
    assert filtered(log(0.4, 0.2, 0.2, 0.2), Sampling(top_k=2)).isfinite().all()


def test_the_draw_follows_the_distribution() -> None:
    probabilities = torch.tensor([0.4, 0.0, 0.25, 0.2, 0.1, 0.05])
    count = 20_000
    noise = torch.rand(count, generator=torch.Generator().manual_seed(SEED))
    tokens = draw(probabilities.log().expand(count, -1), noise, Sampling())[0]
    found = tokens.bincount(minlength=len(probabilities)).float()
    expected = count * probabilities
    possible = probabilities > 0
    chi_square = ((found - expected)[possible].square() / expected[possible]).sum().item()
    assert found[~possible].sum() == 0
    assert chi_square < 18.47  # 4 degrees of freedom, one in a thousand


@pytest.mark.parametrize("u", [0.0, 1 - 2**-24])
def test_the_draw_never_returns_an_impossible_token(u: float) -> None:
    logits = log(0.0, 0.0, 0.7, 0.0, 0.3, 0.0)
    assert draw(logits[None], torch.tensor([u]), Sampling())[0].item() == (2 if u == 0 else 4)
    # A large vocabulary, where the cumulative sum rounds: the tail is cut off by top-k.
    wide = torch.randn(16384, generator=torch.Generator().manual_seed(SEED)).sort(descending=True).values
    assert draw(wide[None], torch.tensor([u]), Sampling(top_k=50))[0].item() < 50
    assert draw(wide.flip(0)[None], torch.tensor([u]), Sampling(top_k=50))[0].item() >= 16384 - 50


def test_mixing_without_a_null_branch_is_the_conditional() -> None:
    cond, uncond = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0])
    assert mix(cond, None, 5.0) is cond
    torch.testing.assert_close(mix(cond, uncond, 5.0), torch.tensor([3.0, -2.0]))
