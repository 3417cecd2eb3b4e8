import math
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t2i_rl.errors import UserError
from t2i_rl.methods.credit.critical import DynamicWeight
from t2i_rl.methods.credit.rule import TokenCredit
from t2i_rl.methods.kl import KL, k3, kl_terms
from t2i_rl.methods.objectives import Denominator, Denominators, ImageRows, Loss, Objective, denominators, policy_loss
from t2i_rl.methods.surrogates import Clipped, Dhpo, log_ratio
from t2i_rl.rollout.log_probs import Replay

ROWS, TOKENS = 6, 12


class Batch:
    """Random log-probabilities, advantages and credit of some rows."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.lp = (normal(ROWS, TOKENS) - 4).requires_grad_()
        self.old = self.lp.detach() + 0.3 * normal(ROWS, TOKENS)
        self.ref = self.lp.detach() + 0.3 * normal(ROWS, TOKENS)
        self.advantages = normal(ROWS)
        self.weight = normal(ROWS, TOKENS).abs()
        self.mask = normal(ROWS, TOKENS) > 0

    @property
    def credit(self) -> TokenCredit:
        return TokenCredit(self.weight.view(2, -1, TOKENS), self.mask.view(2, -1, TOKENS))

    def rows(self, on_policy: bool = False) -> ImageRows:
        return ImageRows(self.advantages, self.weight, self.mask, None if on_policy else self.old, self.ref)

    def loss(
        self, objective: Objective, parts: Denominators, rows: slice = slice(None), on_policy: bool = False
    ) -> Loss:
        chosen = range(ROWS)[rows]
        return policy_loss(Replay(self.lp[chosen]), self.rows(on_policy).take(chosen), objective, parts)


def gradient(loss: Loss, lp: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss.value, lp)[0]


def test_k3_is_not_negative_and_survives_any_difference() -> None:
    lp = torch.tensor([-1.0, -1.0, -1.0, -900.0])
    ref = torch.tensor([-1.0, -1.5, -900.0, -1.0])
    found = k3(lp, ref)
    assert found[0] == 0
    assert found[1].item() == pytest.approx(math.exp(-0.5) + 0.5 - 1)
    assert (found >= 0).all()
    assert found.isfinite().all()


def test_without_old_the_ratio_is_one_with_gradient() -> None:
    batch = Batch()
    ratio = log_ratio(batch.lp, None).exp()
    assert (ratio == 1).all()
    assert (torch.autograd.grad(ratio.sum(), batch.lp)[0] == 1).all()


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"), [(1.5, 1.0, 0), (1.5, -1.0, 1.5), (0.5, 1.0, 0.5), (0.5, -1.0, 0), (1.1, 1.0, 1.1)]
)
def test_clipping_takes_the_gradient_away_where_the_move_went_far_enough(
    ratio: float, advantage: float, slope: float
) -> None:
    lp, old = torch.tensor([[-2.0]], requires_grad=True), torch.tensor([[-2.0 - math.log(ratio)]])
    credit = TokenCredit(torch.ones(1, 1, 1), torch.ones(1, 1, 1).bool())
    parts = denominators(credit, Objective())
    rows = ImageRows(torch.tensor([advantage]), credit.weight[0], credit.mask[0], old)
    loss = policy_loss(Replay(lp), rows, Objective(), parts)
    assert gradient(loss, lp).item() == pytest.approx(-advantage * slope)
    assert loss.clip_fraction == (slope == 0)


@pytest.mark.parametrize("denominator", ["mask", "weight", "tokens", "images"])
def test_loss_is_the_formula(denominator) -> None:
    batch, objective = Batch(), Objective(Clipped(0.1, 0.3), beta=0.5, denominator=denominator)
    found = batch.loss(objective, denominators(batch.credit, objective))
    ratio, advantage = (batch.lp - batch.old).exp(), batch.advantages[:, None]
    term = -torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.3) * advantage) * batch.weight
    policy, kl = term[batch.mask].sum(), k3(batch.lp, batch.ref)[batch.mask].sum()
    selected, everything = batch.mask.sum(), batch.mask.numel()
    over = {"mask": selected, "weight": batch.weight[batch.mask].sum(), "tokens": everything, "images": ROWS}[
        denominator
    ]
    kl_over = {"tokens": everything, "images": ROWS}.get(denominator, selected)
    expected = policy / over + 0.5 * kl / kl_over
    torch.testing.assert_close(found.value, expected)
    torch.testing.assert_close(found.policy, (policy / over).detach())
    torch.testing.assert_close(found.kl_updated, (kl / selected).detach())
    torch.testing.assert_close(found.kl, k3(batch.lp, batch.ref).detach().mean())


@pytest.mark.parametrize("denominator", get_args(Denominator))
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), cuts=st.sets(st.integers(1, ROWS - 1)), on_policy=st.booleans())
def test_micro_batches_add_up_to_the_batch(denominator, seed: int, cuts: set[int], on_policy: bool) -> None:
    batch, objective = Batch(seed), Objective(beta=0.1, denominator=denominator)
    parts = denominators(batch.credit, objective)
    whole = batch.loss(objective, parts, on_policy=on_policy)
    edges = [0, *sorted(cuts), ROWS]
    pieces = [batch.loss(objective, parts, slice(start, stop), on_policy) for start, stop in pairwise(edges)]
    for name in ("value", "policy", "kl", "kl_updated", "clip_fraction"):
        torch.testing.assert_close(sum(getattr(piece, name) for piece in pieces), getattr(whole, name))
    torch.testing.assert_close(sum(gradient(piece, batch.lp) for piece in pieces), gradient(whole, batch.lp))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), on_policy=st.booleans())
def test_tokens_without_credit_get_no_gradient(seed: int, on_policy: bool) -> None:
    batch, objective = Batch(seed), Objective(beta=0.1)
    batch.weight = batch.weight * DynamicWeight()(batch.lp, batch.ref)
    found = gradient(batch.loss(objective, denominators(batch.credit, objective), on_policy=on_policy), batch.lp)
    assert (found[~batch.mask] == 0).all()
    assert (found[batch.mask] != 0).any()

    batch.weight = torch.zeros_like(batch.weight)
    without_kl = Objective()
    assert (gradient(batch.loss(without_kl, denominators(batch.credit, without_kl)), batch.lp) == 0).all()


def test_an_undetached_weight_moves_unselected_tokens() -> None:
    batch, objective = Batch(), Objective()
    batch.weight = DynamicWeight(clip=1.0, detach=False)(batch.lp, batch.ref)
    found = gradient(batch.loss(objective, denominators(batch.credit, objective), on_policy=True), batch.lp)
    assert (found[~batch.mask] != 0).any()


@pytest.mark.parametrize("denominator", get_args(Denominator))
def test_no_selected_token_gives_a_connected_zero(denominator) -> None:
    batch, objective = Batch(), Objective(beta=0.1, denominator=denominator)
    batch.mask = torch.zeros_like(batch.mask)
    loss = batch.loss(objective, denominators(batch.credit, objective))
    assert loss.value == loss.kl_updated == loss.clip_fraction == 0 and loss.kl > 0
    assert (gradient(loss, batch.lp) == 0).all()


def test_the_kl_needs_a_reference() -> None:
    batch, objective = Batch(), Objective(beta=0.1)
    parts = denominators(batch.credit, objective)
    with pytest.raises(ValueError, match="reference"):
        policy_loss(Replay(batch.lp), ImageRows(batch.advantages, batch.weight, batch.mask), objective, parts)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"beta": -0.1}, "beta -0.1"),
        ({"unit": "word"}, "no unit 'word': choose one of token, row, scale, sequence"),
        ({"kl": "k4", "beta": 1}, "no kl 'k4'"),
        ({"through": "mean"}, "no through 'mean'"),
        ({"denominator": "all"}, "no denominator 'all'"),
        ({"kl": "k1"}, "KL form k1 has no effect while beta is 0"),
        ({"through": "token"}, "set unit to sequence"),
        ({"surrogate": Dhpo()}, "set unit to sequence"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Objective(**fields)


def test_the_mean_of_rows_is_the_mean_over_images_of_their_means() -> None:
    batch, objective = Batch(), Objective(beta=0.5, denominator="mean-of-images")
    batch.mask[2] = False
    found = batch.loss(objective, denominators(batch.credit, objective), on_policy=True).value
    term = -batch.advantages[:, None] * batch.weight + 0.5 * k3(batch.lp, batch.ref)
    means = [term[row][batch.mask[row]].mean() if batch.mask[row].any() else 0 for row in range(ROWS)]
    torch.testing.assert_close(found, sum(means) / ROWS)


def test_advantages_may_differ_by_token() -> None:
    batch, objective = Batch(), Objective(beta=0.1)
    parts = denominators(batch.credit, objective)
    whole = batch.loss(objective, parts)
    batch.advantages = batch.advantages[:, None].expand(ROWS, TOKENS)
    assert batch.loss(objective, parts).value == whole.value


def test_the_kl_factor_bears_on_the_kl_alone() -> None:
    batch, objective = Batch(), Objective(beta=0.1)
    parts = denominators(batch.credit, objective)
    half = torch.full_like(batch.weight, 0.5)
    plain = batch.loss(objective, parts)
    halved = policy_loss(Replay(batch.lp), replace(batch.rows(), kl_weight=half), objective, parts)
    assert (plain.policy, plain.kl, plain.kl_updated) == (halved.policy, halved.kl, halved.kl_updated)
    torch.testing.assert_close(halved.value, plain.policy + 0.05 * plain.kl_updated)


@pytest.mark.parametrize("form", get_args(KL))
def test_kl_forms_vanish_at_the_reference(form) -> None:
    lp = torch.tensor([-1.0, -2.0])
    if form == "full":
        with pytest.raises(ValueError, match="pass its values"):
            kl_terms(lp, lp, form)
    else:
        assert (kl_terms(lp, lp, form) == 0).all()
        assert (kl_terms(lp, lp - 1, form) > 0).all()


def test_the_full_kl_is_given() -> None:
    batch, objective = Batch(), Objective(beta=0.5, kl="full")
    exact = batch.lp.exp()
    rows = ImageRows(batch.advantages, batch.weight, batch.mask)
    loss = policy_loss(Replay(batch.lp, kl=exact), rows, objective, denominators(batch.credit, objective))
    torch.testing.assert_close(loss.kl, exact.mean().detach())
    torch.testing.assert_close(loss.kl_updated, exact[batch.mask].mean().detach())
    torch.testing.assert_close(loss.value.detach(), loss.policy + 0.5 * loss.kl_updated)


def test_the_entropy_bonus_is_taken_from_the_loss() -> None:
    batch, objective = Batch(), Objective(beta=0.1, entropy_bonus=0.5)
    parts, rows = denominators(batch.credit, objective), batch.rows(on_policy=True)
    entropy = batch.lp.square()
    plain = batch.loss(Objective(beta=0.1), parts, on_policy=True)
    found = policy_loss(Replay(batch.lp, entropy), rows, objective, parts)
    torch.testing.assert_close(found.value, plain.value - 0.5 * entropy[batch.mask].mean())
    with pytest.raises(ValueError, match="pass the entropy"):
        policy_loss(Replay(batch.lp), rows, objective, parts)
