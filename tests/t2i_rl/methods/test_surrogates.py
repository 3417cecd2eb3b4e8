import math

import pytest
import torch

from models.policy import TokenLayout
from t2i_rl.errors import UserError
from t2i_rl.methods.credit.rule import TokenCredit
from t2i_rl.methods.objectives import ImageRows, Objective, denominators, policy_loss
from t2i_rl.methods.surrogates import (
    Cispo,
    Clipped,
    Dcpo,
    Dhpo,
    DualClipped,
    LogRatios,
    Regression,
    Sapo,
    Surrogate,
    Terms,
    TwoSided,
    unit_lengths,
    unit_log_ratio,
)
from t2i_rl.rollout.log_probs import Replay

ALL: list[Surrogate] = [
    Clipped(),
    DualClipped(),
    TwoSided(),
    Cispo(),
    Cispo(0.2, 0.28),
    Sapo(),
    Dhpo(),
    Dcpo(),
    Regression(0.5),
]
PYRAMID = TokenLayout(((1, 1), (2, 3)), (1, 6))


def at(surrogate: Surrogate, ratio: float, advantage: float, old: float = -2.0) -> tuple[Terms, float]:
    """The terms of one token, and the slope of its loss."""
    before = torch.tensor([[old]], dtype=torch.float64)
    lp = (before + math.log(ratio)).requires_grad_()
    terms = surrogate(LogRatios(lp - before, lp - before, lp, before), torch.tensor([[advantage]], dtype=torch.float64))
    return terms, torch.autograd.grad(terms.loss.sum(), lp)[0].item()


@pytest.mark.parametrize("surrogate", ALL, ids=repr)
@pytest.mark.parametrize("advantage", [1.5, -0.7])
def test_at_the_sampling_policy_all_are_the_policy_gradient(surrogate: Surrogate, advantage: float) -> None:
    terms, slope = at(surrogate, 1.0, advantage)
    assert slope == pytest.approx(-advantage)
    assert not terms.clipped.any()


@pytest.mark.parametrize(
    ("surrogate", "ratio", "advantage", "slope"),
    [
        (DualClipped(cap=3.0), 4.0, -1.0, 0.0),
        (DualClipped(cap=3.0), 2.5, -1.0, 2.5),
        (TwoSided(cap=4.0), 5.0, -1.0, 0.0),
        (TwoSided(cap=4.0), 0.5, 1.0, -0.5),
        (Cispo(high=0.5), 3.0, 1.0, -1.5),
        (Cispo(0.2, 0.5), 0.1, -1.0, 0.8),
        (Dhpo(), 1.5, 1.0, 0.0),
        (Regression(2.0), math.exp(0.25), 0.5, 0.0),
    ],
)
def test_far_from_the_sampling_policy(surrogate: Surrogate, ratio: float, advantage: float, slope: float) -> None:
    assert at(surrogate, ratio, advantage)[1] == pytest.approx(slope, abs=1e-12)


def test_the_soft_gate_fades_on_both_sides() -> None:
    slopes = [-at(Sapo(), ratio, 1.0)[1] / ratio for ratio in (0.2, 1.0, 3.0)]
    assert slopes[1] == pytest.approx(1)
    assert max(slopes[0], slopes[2]) < 0.9


@pytest.mark.parametrize(("ratio", "advantage"), [(2.0, 1.0), (0.6, -1.0)])
def test_rare_tokens_may_move_further(ratio: float, advantage: float) -> None:
    rare, common = (at(Dcpo(), ratio, advantage, old=math.log(q)) for q in (0.01, 0.9))
    assert rare[1] == pytest.approx(-advantage * ratio)
    assert common[1] == 0
    assert common[0].clipped.all()
    assert not rare[0].clipped.any()


def test_units_follow_the_layout() -> None:
    assert unit_lengths("row", PYRAMID) == [1, 3, 3]
    assert unit_lengths("scale", PYRAMID) == [1, 6]
    assert unit_lengths("sequence", PYRAMID) == [7]


def test_a_unit_has_the_geometric_mean_of_its_updated_tokens() -> None:
    ratio = torch.tensor([[0.5, 1.0, 2.0, 6.0, 3.0, 5.0, 7.0]], requires_grad=True)
    mask = torch.tensor([[True, True, True, False, False, False, False]])
    found = unit_log_ratio(ratio, mask, unit_lengths("row", PYRAMID))
    assert found.tolist() == [[0.5, 1.5, 1.5, 1.5, 0, 0, 0]]
    (gradient,) = torch.autograd.grad(found[0, 1], ratio)
    assert gradient.tolist() == [[0, 0.5, 0.5, 0, 0, 0, 0]]


@pytest.mark.parametrize("unit", ["row", "scale", "sequence"])
@pytest.mark.parametrize("through", ["unit", "token"])
def test_every_unit_has_the_policy_gradient_at_the_sampling_policy(unit, through) -> None:
    lp = (-torch.rand(2, 7, generator=torch.Generator().manual_seed(0))).requires_grad_()
    advantages, ones = torch.tensor([1.0, -2.0]), torch.ones(2, 7)
    objective = Objective(unit=unit, through=through)
    parts = denominators(TokenCredit(ones[None], ones[None].bool()), objective)
    loss = policy_loss(Replay(lp), ImageRows(advantages, ones, ones.bool()), objective, parts, layout=PYRAMID)
    torch.testing.assert_close(torch.autograd.grad(loss.value, lp)[0], -advantages[:, None].expand(2, 7) / parts.policy)


def test_rows_and_scales_need_the_layout() -> None:
    lp, ones, objective = torch.zeros(2, 7), torch.ones(2, 7), Objective(unit="row")
    parts = denominators(TokenCredit(ones[None], ones[None].bool()), objective)
    with pytest.raises(ValueError, match="a row needs the layout"):
        policy_loss(Replay(lp), ImageRows(torch.ones(2), ones, ones.bool()), objective, parts)


@pytest.mark.parametrize(
    ("surrogate", "fields", "sentence"),
    [
        (Clipped, {"low": 1.0}, "lower bound 1.0"),
        (Clipped, {"high": -0.1}, "upper bound -0.1"),
        (DualClipped, {"cap": 1.1}, "cap 1.1"),
        (TwoSided, {"cap": 1.0}, "cap 1.0"),
        (Cispo, {"low": 1.5}, "lower bound 1.5"),
        (Sapo, {"positive": 0.0}, "temperatures 0.0"),
        (Dhpo, {"share": 1.0}, "share 1.0"),
        (Dcpo, {"low": -1.0}, "lower bound -1.0"),
        (Regression, {"scale": 0.0}, "scale 0.0"),
    ],
)
def test_constants_that_make_no_sense_are_refused(surrogate, fields: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        surrogate(**fields)
