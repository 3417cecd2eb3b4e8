import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t2i_rl.errors import UserError
from t2i_rl.methods.advantages import (
    AdvantageRule,
    BestOfGroup,
    LeaveOneOut,
    Scale,
    ValueAnchored,
    VirtualBest,
    WinRate,
    advantages,
    win_rates,
    zero_variance,
)
from t2i_rl.methods.entropy_reward import EntropyReward, OnZeroStd
from t2i_rl.methods.reward_mixing import normalize_then_sum, weighted_sum

SCALES: list[Scale | AdvantageRule] = [
    "group",
    "batch",
    "none",
    LeaveOneOut(),
    BestOfGroup(),
    VirtualBest(maximum=20),
    ValueAnchored(),
    WinRate(),
]
RELATIVE = [scale for scale in SCALES if not isinstance(scale, VirtualBest | ValueAnchored)]
rewards = st.tuples(st.integers(1, 4), st.integers(2, 8), st.integers(0, 2**32 - 1)).map(
    lambda drawn: torch.from_numpy(np.random.default_rng(drawn[2]).normal(size=drawn[:2]))
)


def test_formula() -> None:
    given_rewards = torch.tensor([[0.0, 1.0], [3.0, 1.0]], dtype=torch.float64)
    first, second = 0.5 / (0.5**0.5 + 1e-4), 1 / (2**0.5 + 1e-4)
    expected = torch.tensor([[-first, first], [second, -second]], dtype=torch.float64)
    torch.testing.assert_close(advantages(given_rewards), expected)
    torch.testing.assert_close(advantages(given_rewards, "none"), torch.tensor([[-0.5, 0.5], [1, -1]]).double())
    std = given_rewards.flatten().std()
    torch.testing.assert_close(advantages(given_rewards, "batch", eps=0), advantages(given_rewards, "none") / std)


@pytest.mark.parametrize("scale", SCALES, ids=str)
@settings(deadline=None, max_examples=25)
@given(rewards=rewards, seed=st.integers(0, 100))
def test_permuting_the_group_permutes_the_advantages(scale, rewards: torch.Tensor, seed: int) -> None:
    order = torch.randperm(rewards.shape[1], generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(advantages(rewards[:, order], scale), advantages(rewards, scale)[:, order])


@pytest.mark.parametrize("scale", ["group", "batch"])
@settings(deadline=None, max_examples=25)
@given(rewards=rewards, factor=st.floats(0.5, 100), shift=st.floats(-10, 10))
def test_scaling_and_shifting_the_rewards_leaves_the_advantages(
    scale: Scale, rewards: torch.Tensor, factor: float, shift: float
) -> None:
    changed = advantages(rewards * factor + shift, scale, eps=1e-9)
    torch.testing.assert_close(changed, advantages(rewards, scale, eps=1e-9), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", RELATIVE, ids=str)
@pytest.mark.parametrize("group", [2, 3, 7])
def test_equal_rewards_earn_exactly_nothing(scale, group: int) -> None:
    equal = torch.tensor([[0.1], [1 / 3], [-7.7]]).expand(3, group)
    assert (advantages(equal, scale) == 0).all()
    assert zero_variance(equal).all()


def test_zero_variance_by_group() -> None:
    assert zero_variance(torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.1]])).tolist() == [True, False]


@pytest.mark.parametrize("function", [advantages, zero_variance, win_rates, *SCALES[3:]])
def test_a_group_of_one_is_refused(function) -> None:
    with pytest.raises(ValueError, match="at least 2 images"):
        function(torch.zeros(3, 1))


def test_the_virtual_best_turns_equal_failures_into_a_push_away() -> None:
    found = VirtualBest()(torch.tensor([[0.2, 0.2, 0.2], [1.0, 1.0, 1.0]]))
    assert (found[0] < 0).all()
    assert (found[1] == 0).all()
    with pytest.raises(UserError, match=r"reward of 2\.0 is above the maximum 1\.0"):
        VirtualBest()(torch.tensor([[2.0, 0.0]]))


def test_the_anchor_speaks_where_all_images_are_equal() -> None:
    found = ValueAnchored(factor=0.5, anchor=0.5)(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    assert found.tolist() == [[0.25, 0.25], [-0.25, -0.25]]


def test_unknown_scales_of_win_rates_are_refused() -> None:
    with pytest.raises(UserError, match="no scale 'std': choose one of group, batch, none"):
        WinRate("std")


def test_only_the_best_earns_its_lead() -> None:
    found = BestOfGroup(eps=0)(torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 2.0]]))
    std = torch.tensor([0.0, 1.0, 3.0]).std()
    torch.testing.assert_close(found, torch.tensor([[0, 0, 2 / std], [0, 0, 0]]))


def test_win_rates_count_ties_half() -> None:
    scores = torch.tensor([[0.3, 0.9, 0.3, 0.1]])
    torch.testing.assert_close(win_rates(scores)[0], torch.tensor([0.5, 1.0, 0.5, 0.0]))


@settings(deadline=None, max_examples=25)
@given(rewards=rewards)
def test_win_rates_share_out_the_wins(rewards: torch.Tensor) -> None:
    torch.testing.assert_close(win_rates(rewards).mean(-1), torch.full((len(rewards),), 0.5))


def test_several_rewards() -> None:
    quality = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    both = torch.stack([quality, 100 * quality.flip(-1)])
    # Summed first, the reward of large spread decides; normalized first, the one of large weight.
    torch.testing.assert_close(advantages(weighted_sum(both, [2, 1])), advantages(-98 * quality))
    assert torch.equal(normalize_then_sum(both, [2, 1]) > 0, quality > 0)
    torch.testing.assert_close(normalize_then_sum(both, [1, 0]).std(), torch.tensor(1.0), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="2 rewards have 1 weights"):
        weighted_sum(both, [1])


def test_the_entropy_reward_favours_best_images_near_the_reference_and_skips_equal_groups() -> None:
    rewards = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    entropy, reference = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]), torch.ones(2, 3)
    found = EntropyReward()(rewards, entropy, reference)
    assert found[0, 0] == 0
    assert found[0, 1] > 1 > found[0, 2]
    assert torch.equal(found[1], rewards[1])
    assert not torch.equal(EntropyReward(on_zero_std="released")(rewards, entropy, reference)[1], rewards[1])
    with pytest.raises(UserError, match="no on_zero_std 'keep'"):
        EntropyReward(on_zero_std="keep")


@pytest.mark.parametrize("on_zero_std", ["skip", "released"])
def test_the_entropy_reward_compares_the_images_of_one_prompt(on_zero_std: OnZeroStd) -> None:
    """The best of a hard prompt are its best, whatever others earn; their bonus is around their own mean."""
    rewards = torch.tensor([[0.2, 0.5, 0.5, 0.0], [1.0, 0.0, 1.0, 1.0]])
    entropy, reference = torch.tensor([[4.0, 3.0, 5.0, 6.0], [1.0, 2.0, 3.0, 4.0]]), torch.full((2, 4), 3.0)
    bonus = EntropyReward(on_zero_std=on_zero_std)
    found = bonus(rewards, entropy, reference)
    # b = 1 and 1 / 5 for the two best of the first prompt: half their difference, times 0.4.
    torch.testing.assert_close(found[0] - rewards[0], torch.tensor([0.0, 0.16, -0.16, 0.0]))
    alone = [bonus(*(values[prompt : prompt + 1] for values in (rewards, entropy, reference))) for prompt in (0, 1)]
    assert torch.equal(found, torch.cat(alone))
