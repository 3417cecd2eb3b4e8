"""Critical tokens of a next-scale model, whose maps grow from one token to the whole picture."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.policy import Condition, TokenLayout
from t2i_rl.errors import UserError
from t2i_rl.methods.catalogue import METHODS
from t2i_rl.methods.credit.critical import CriticalTokens, DynamicWeight, critical_classes, set_sizes
from t2i_rl.methods.objectives import Denominators, ImageRows, policy_loss
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.log_probs import Replay
from t2i_rl.tokenmaps import entropy_gradient, local_mean, relative_to_map, running_divergence


def layout_of(*sides: int) -> TokenLayout:
    return TokenLayout(tuple((side, side) for side in sides), tuple(side**2 for side in sides))


STAR_256 = layout_of(1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SMALL = layout_of(1, 2, 3, 5, 8)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_sizes_of_the_sets_at_256_pixels() -> None:
    # 1 + 4 + 9 + 16 tokens are the most whole scales within 34; a tenth is 68, a quarter 170.
    assert set_sizes(STAR_256, 0.1) == {"initial": 30, "structure": 68, "similarity": 72}
    assert set_sizes(layout_of(24), 0.1) == {"initial": 57, "structure": 57, "similarity": 57}


@settings(deadline=None, max_examples=25)
@given(scales=st.integers(4, 10), share=st.floats(0.02, 1 / 3), seed=st.integers(0, 1000), coarse=st.booleans())
def test_the_sets_are_disjoint_and_of_their_sizes(scales: int, share: float, seed: int, coarse: bool) -> None:
    layout = layout_of(*(side for (side, _), _ in zip(STAR_256.maps, range(scales), strict=False)))
    gradient, alike = random(2, 2, 3, layout.tokens, seed=seed)
    if coarse:  # many ties
        gradient, alike = gradient.round(), alike.round()
    classes = critical_classes(gradient, alike, layout, share)
    sizes = set_sizes(layout, share)
    assert {name: set(kept.sum(-1).flatten().tolist()) for name, kept in classes.items()} == {
        name: {size} for name, size in sizes.items()
    }
    assert sum(sizes.values()) == int(2.5 * share * layout.tokens)
    assert (sum(kept.int() for kept in classes.values()) <= 1).all()
    assert classes["initial"][..., : sizes["initial"]].all()


def test_structure_keeps_to_scales_of_three_and_more() -> None:
    gradient, alike = torch.zeros(2, SMALL.tokens)
    gradient[:5] = 10
    gradient[5:14] = 1  # the 3x3 scale
    edges = critical_classes(gradient, alike, SMALL, 0.1, parts=("structure",))["structure"]
    assert edges.nonzero().flatten().tolist() == list(range(5, 15))


def test_a_coarse_scale_does_not_win_by_its_size() -> None:
    """The same edge in the finest scale, ten times weaker, takes as large a part of it."""
    values = torch.zeros(SMALL.tokens)
    five, eight = SMALL.split(values)[3:]
    five[:, 2:], eight[:, 4:] = 10.0, 1.0
    strength = relative_to_map(entropy_gradient(values, SMALL, smooth=False), SMALL)
    edges = critical_classes(entropy_gradient(values, SMALL, smooth=False), strength * 0, SMALL, 0.2)["structure"]
    fifth, eighth = SMALL.split(edges)[3:]
    assert eighth.sum() == 16  # its edge wholly: two columns
    assert fifth.sum() == int(0.2 * SMALL.tokens) - 16


def test_relative_to_map_has_mean_one_in_every_map_that_is_not_zero() -> None:
    values = random(2, SMALL.tokens)
    values[:, 1:5] = 0
    parts = SMALL.split(relative_to_map(values, SMALL))
    assert (parts[1] == 0).all()
    for part in (parts[0], *parts[2:]):
        torch.testing.assert_close(part.mean((-2, -1)), torch.ones(2))


def test_the_box_mean_is_over_the_neighbours_that_exist() -> None:
    picture = random(2, 4, 5)
    for y in range(4):
        for x in range(5):
            around = picture[:, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            torch.testing.assert_close(local_mean(picture, "box")[:, y, x], around.mean((-2, -1)))
    torch.testing.assert_close(local_mean(torch.tensor([[3.0]]), "box"), torch.tensor([[3.0]]))


def test_a_rollout_is_credited_and_neighbours_matter() -> None:
    shape = (2, 3, STAR_256.tokens)
    rollout = Rollout(
        Condition(("a circle",) * 2, {}), torch.zeros(shape, dtype=torch.long), {"entropy": random(*shape)}
    )
    vectors = random(*shape, 4, seed=1)
    causal, box = (CriticalTokens(neighbours=kind)(rollout, vectors, STAR_256) for kind in ("causal", "box"))
    assert (causal.mask.sum(-1) == 170).all()
    assert (box.mask.sum(-1) == 170).all()
    assert not torch.equal(causal.classes["structure"], box.classes["structure"])
    assert CriticalTokens(keep="complement")(rollout, vectors, STAR_256).mask.sum(-1).unique().tolist() == [680 - 170]


def test_the_running_mean_over_scales() -> None:
    lp, ref = random(2, SMALL.tokens), random(2, SMALL.tokens, seed=1)
    weight = DynamicWeight(over="scales")(lp, ref, SMALL)
    terms = [part.mean((-2, -1)) for part in SMALL.split((lp - ref).clamp(-0.5, 0.5).exp())]
    for scale, part in enumerate(SMALL.split(weight)):
        expected = torch.stack(terms[: scale + 1]).mean(0)
        torch.testing.assert_close(part, expected[:, None, None].expand_as(part))
    assert (DynamicWeight(over="scales")(ref, ref, SMALL) == 1).all()
    torch.testing.assert_close(DynamicWeight()(lp, ref, SMALL), running_divergence(lp, ref, 0.5))
    # Runs of one token are the mean over tokens.
    torch.testing.assert_close(
        running_divergence(lp, ref, 0.5, lengths=[1] * SMALL.tokens), running_divergence(lp, ref, 0.5)
    )


def test_a_method_hands_its_layout_to_the_dynamic_weight() -> None:
    method = dataclasses.replace(METHODS["critical"], dynamic=DynamicWeight(over="scales"))
    lp, ref = random(2, SMALL.tokens), random(2, SMALL.tokens, seed=1)
    ones = torch.ones(2, SMALL.tokens)
    rows, shares = (
        ImageRows(torch.tensor([1.0, -2.0]), ones, ones.bool(), ref=ref),
        Denominators(*torch.tensor([2.0, 3, 4, 18])),
    )
    weighed = dataclasses.replace(rows, weight=DynamicWeight(over="scales")(lp, ref, SMALL))
    expected = policy_loss(Replay(lp), weighed, method.objective, shares, SMALL)
    assert method.loss(Replay(lp), rows, shares, SMALL).value == expected.value
    with pytest.raises(ValueError, match="needs the layout"):
        method.loss(Replay(lp), rows, shares)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(UserError, match="no over 'maps': choose one of tokens, scales"):
        DynamicWeight(over="maps")
    with pytest.raises(UserError, match="no neighbours 'all'"):
        CriticalTokens(neighbours="all")
