import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.policy import Condition, TokenLayout
from t2i_rl.errors import UserError
from t2i_rl.methods.credit.critical import CriticalTokens, DynamicWeight, critical_classes, lowest
from t2i_rl.methods.credit.guidance import GuidanceContrast, power_weights
from t2i_rl.methods.credit.rule import UniformCredit
from t2i_rl.rollout.groups import Rollout
from t2i_rl.tokenmaps import percentile_ranks


def rollout(prompts: int = 2, group: int = 3, side: int = 6, seed: int = 0) -> tuple[Rollout, TokenLayout]:
    generator = torch.Generator().manual_seed(seed)
    shape = (prompts, group, side * side)
    statistics = {name: torch.rand(shape, generator=generator) for name in ("entropy", "kl_cond_uncond")}
    layout = TokenLayout(((side, side),), (1,) * shape[-1])
    return Rollout(Condition(("a circle",) * prompts, {}), torch.zeros(shape, dtype=torch.long), statistics), layout


def embeddings(of: Rollout, seed: int = 1) -> torch.Tensor:
    return torch.randn((*of.tokens.shape, 4), generator=torch.Generator().manual_seed(seed))


def test_uniform_credit_is_one_everywhere() -> None:
    sampled, layout = rollout()
    credit = UniformCredit()(sampled, None, layout)
    assert credit.weight.shape == credit.mask.shape == sampled.tokens.shape
    assert (credit.weight == 1).all()
    assert credit.mask.all()


def test_guidance_contrast_ranks_the_divergence_of_each_image() -> None:
    sampled, layout = rollout()
    divergence = sampled.statistics["kl_cond_uncond"]
    credit = GuidanceContrast()(sampled, None, layout)
    assert credit.mask.all()
    assert torch.equal(credit.weight, percentile_ranks(divergence))
    assert torch.equal(credit.weight.argmax(-1), divergence.argmax(-1))
    assert (credit.weight.gather(-1, divergence.argmin(-1, keepdim=True)) == 0).all()


def test_power_weights_put_the_mass_on_the_top() -> None:
    sampled, layout = rollout(side=24)
    weight = GuidanceContrast(normalize="power", top=0.4, mass=0.8)(sampled, None, layout).weight
    torch.testing.assert_close(weight.mean(-1), torch.ones(weight.shape[:-1]))
    top = weight.sort(-1, descending=True).values[..., : int(0.4 * weight.shape[-1])]
    torch.testing.assert_close(top.sum(-1) / weight.sum(-1), torch.full(weight.shape[:-1], 0.8), atol=5e-3, rtol=0)


def test_equal_divergences_weigh_the_same() -> None:
    torch.testing.assert_close(power_weights(torch.zeros(2, 5)), torch.ones(2, 5))


@settings(deadline=None, max_examples=25)
@given(side=st.integers(3, 12), share=st.floats(0.01, 1 / 3), seed=st.integers(0, 1000), coarse=st.booleans())
def test_critical_tokens_are_exactly_three_disjoint_sets(side: int, share: float, seed: int, coarse: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradient, alike = torch.rand((2, 2, 3, side * side), generator=generator)
    if coarse:  # many ties
        gradient, alike = gradient.round(), alike.round()
    layout = TokenLayout(((side, side),), (1,) * side**2)
    classes = critical_classes(gradient, alike, layout, share)
    size = int(share * side * side)
    assert all((kept.sum(-1) == size).all() for kept in classes.values())
    assert (sum(kept.int() for kept in classes.values()) <= 1).all()


def test_critical_tokens_of_a_rollout() -> None:
    sampled, layout = rollout()
    # One sharp edge down the middle and one position where the group disagrees.
    entropy = sampled.statistics["entropy"].zero_()
    entropy.unflatten(-1, (6, 6))[..., 3:] = 1
    vectors = torch.ones((*sampled.tokens.shape, 4))
    vectors[:, 0, 35] = -1
    credit = CriticalTokens()(sampled, vectors, layout)
    assert (credit.weight == 1).all()
    assert (credit.mask.sum(-1) == 9).all()
    assert torch.equal(credit.mask, torch.stack(list(credit.classes.values())).any(0))
    assert (credit.classes["initial"].nonzero()[:, -1] < 3).all()
    assert set((credit.classes["structure"].nonzero()[:, -1] % 6).tolist()) <= {2, 3}
    assert credit.classes["similarity"][..., 35].all()


def test_permuting_the_group_permutes_the_critical_tokens() -> None:
    sampled, layout = rollout()
    vectors, order = embeddings(sampled), [2, 0, 1]
    statistics = {name: values[:, order] for name, values in sampled.statistics.items()}
    permuted = Rollout(sampled.condition, sampled.tokens[:, order], statistics)
    mask = CriticalTokens()(sampled, vectors, layout).mask
    assert torch.equal(CriticalTokens()(permuted, vectors[:, order], layout).mask, mask[:, order])


def test_local_mean_changes_the_structure_tokens() -> None:
    sampled, layout = rollout(side=12)
    smooth, sharp = (CriticalTokens(local_mean=on)(sampled, embeddings(sampled), layout) for on in (True, False))
    assert not torch.equal(smooth.classes["structure"], sharp.classes["structure"])


def test_lowest_takes_the_earliest_of_equal_values() -> None:
    among = torch.tensor([False, True, True, True, True])
    assert lowest(torch.tensor([0.0, 2.0, 1.0, 1.0, 1.0]), 2, among).tolist() == [False, False, True, True, False]


def test_dynamic_weight_carries_gradient_only_if_it_may() -> None:
    lp = torch.tensor([-1.0, -2.0], requires_grad=True)
    ref = torch.tensor([-1.0, -2.1])
    assert not DynamicWeight()(lp, ref).requires_grad
    assert DynamicWeight(detach=False)(lp, ref).requires_grad
    assert DynamicWeight()(ref, ref).tolist() == [1, 1]
    assert DynamicWeight(form="linear")(ref, ref).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("rule", "fields", "sentence"),
    [
        (CriticalTokens, {"share": 0.4}, "share 0.4"),
        (CriticalTokens, {"share": 0.0}, "share 0.0"),
        (GuidanceContrast, {"top": 0.9, "mass": 0.8}, "top 0.9"),
        (DynamicWeight, {"clip": 0.0}, "clip 0.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(rule, fields: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        rule(**fields)


def test_critical_tokens_need_embeddings() -> None:
    sampled, layout = rollout()
    with pytest.raises(ValueError, match="embeddings"):
        CriticalTokens()(sampled, None, layout)
