import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t2i_rl.advantages import Scale, advantages, zero_variance

SCALES: list[Scale] = ["group", "batch", "none"]
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


@pytest.mark.parametrize("scale", SCALES)
@settings(deadline=None, max_examples=25)
@given(rewards=rewards, seed=st.integers(0, 100))
def test_permuting_the_group_permutes_the_advantages(scale: Scale, rewards: torch.Tensor, seed: int) -> None:
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


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("group", [2, 3, 7])
def test_equal_rewards_earn_exactly_nothing(scale: Scale, group: int) -> None:
    equal = torch.tensor([[0.1], [1 / 3], [-7.7]]).expand(3, group)
    assert (advantages(equal, scale) == 0).all()
    assert zero_variance(equal).all()


def test_zero_variance_by_group() -> None:
    assert zero_variance(torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.1]])).tolist() == [True, False]


@pytest.mark.parametrize("function", [advantages, zero_variance])
def test_a_group_of_one_is_refused(function) -> None:
    with pytest.raises(ValueError, match="at least 2 images"):
        function(torch.zeros(3, 1))
