"""Advantages against the numbers of the original implementations."""

from collections.abc import Iterator

import pytest
from torch import Tensor

from t2i_rl.methods.advantages import (
    AdvantageRule,
    BestOfGroup,
    LeaveOneOut,
    Scale,
    VirtualBest,
    WinRate,
    advantages,
    win_rates,
)
from t2i_rl.methods.baselines import PromptBaseline
from t2i_rl.methods.entropy_reward import EntropyReward
from t2i_rl.methods.reward_mixing import weighted_sum
from tests.parity.test_objectives import close, each, parameters, read


def grouped(values: Tensor, case: str) -> Tensor:
    return values.unflatten(0, (-1, parameters("advantages", case)["group"]))


def advantage_cases() -> Iterator[tuple[str, Scale | AdvantageRule]]:
    yield from ((case, "group") for case in read("advantages") if case.startswith(("grpo_", "verl_grpo")))
    yield "dr_grpo_own", "none"
    yield "batch_std_own", "batch"
    yield "rloo", LeaveOneOut()
    yield "passk", BestOfGroup(parameters("advantages", "passk")["eps"])


@pytest.mark.parametrize(("case", "scale"), list(advantage_cases()))
def test_advantages(case: str, scale: Scale | AdvantageRule) -> None:
    settings, io = parameters("advantages", case), read("advantages")[case]
    eps = {"eps": settings["eps"]} if "eps" in settings else {}
    atol = {"atol": settings["atol"]} if "atol" in settings else {}
    close(advantages(grouped(io["rewards"], case), scale, **eps).flatten(), io["advantages"], **atol)


@each("advantages", tensor="group_mean")
def test_statistics_of_the_group(case: str) -> None:
    io, group = read("advantages")[case], parameters("advantages", case)["group"]
    rewards = grouped(io["rewards"], case)
    close(rewards.mean(-1).repeat_interleave(group), io["group_mean"])
    close(rewards.std(-1).repeat_interleave(group), io["group_std"])


def test_several_rewards() -> None:
    io = read("advantages")["grpo_multi_reward_sum"]
    parts = grouped(io["rewards_per_func"], "grpo_multi_reward_sum").movedim(-1, 0)
    close(advantages(weighted_sum(parts, [1.0] * len(parts))).flatten(), io["advantages"])


def test_an_equal_group_gets_exactly_nothing() -> None:
    rewards = grouped(read("advantages")["grpo_equal_group"]["rewards"], "grpo_equal_group")
    assert (advantages(rewards)[0] == 0).all()


@each("advantages", "verifiable_")
def test_entropy_reward(case: str) -> None:
    settings, io = parameters("advantages", case), read("advantages")[case]
    rewards = grouped(io["rewards_per_func"][:, 0], case)
    if settings["entropy_reward"]:
        entropies = grouped(io["entropy_mean"], case), grouped(io["ref_entropy_mean"], case)
        skipped = EntropyReward(settings["coef"])(rewards, *entropies)
        rewards = EntropyReward(settings["coef"], "released")(rewards, *entropies)
        if "zero_std" in case:
            assert (advantages(skipped) == 0).all()
        else:
            assert skipped.equal(rewards)
    atol = 1e-3 if "zero_std" in case else 2e-5
    close(rewards.std(-1).expand(rewards.shape[-1]), io["group_std"], rtol=2e-3, atol=1e-5)
    close(advantages(rewards).flatten(), io["advantages"], rtol=2e-3, atol=atol)


@pytest.mark.parametrize("scale", ["prompt", "batch"])
def test_tracker(scale) -> None:
    io, settings = read("advantages")["per_prompt_tracker"], parameters("advantages", "per_prompt_tracker")
    rewards, prompts = io["rewards_1"][:, None], settings["prompts"]
    name = {"prompt": "adv_1_prompt_std", "batch": "adv_1_global_std"}[scale]
    found, history = PromptBaseline(scale=scale, eps=settings["eps"])(rewards, prompts, {})
    close(found[:, 0], io[name])
    assert {prompt: kept.count for prompt, kept in history.items()} == {p: prompts.count(p) for p in prompts}


def test_virtual_best() -> None:
    io, settings = read("token_credit_own")["virtual_max"], parameters("token_credit_own", "virtual_max")
    close(VirtualBest(settings["r_max"])(io["rewards"][None])[0], io["advantages"])


def test_win_rates() -> None:
    io = read("token_credit_own")["pref_winrate"]
    close(win_rates(io["scores"][None])[0], io["win_rate"])
    close(WinRate()(io["scores"][None])[0], advantages(io["win_rate"][None])[0])
