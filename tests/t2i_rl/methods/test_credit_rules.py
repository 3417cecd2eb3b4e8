"""The rules of single papers: what their reference numbers leave open."""

from dataclasses import replace

import pytest
import torch

from models.policy import Condition, TokenLayout
from t2i_rl.errors import UserError
from t2i_rl.methods.credit.critical import CriticalTokens, DynamicWeight
from t2i_rl.methods.credit.d3s import DownSampling, most_varied
from t2i_rl.methods.credit.entropy import EntropyTokens, RandomTokens
from t2i_rl.methods.credit.gtpo import ConflictingTokens
from t2i_rl.methods.credit.guidance import GuidanceContrast, kl_factor, minmax
from t2i_rl.methods.credit.oar import ReshapedImportance
from t2i_rl.methods.credit.position import EarlyTokens, SlidingWindow
from t2i_rl.methods.credit.product import Product, times
from t2i_rl.methods.credit.rule import Context, CreditRule, TokenCredit, UniformCredit
from t2i_rl.methods.credit.stage import DissimilarTokens, opposite_similarity
from t2i_rl.methods.credit.tw import DivergentPositions
from t2i_rl.methods.credit.ucas import UncertaintyShaping
from t2i_rl.methods.credit.vppo import PerceptiveTokens, trajectory_factor
from t2i_rl.rollout.groups import Rollout

P, G, H, W = 2, 4, 3, 4
N = H * W
LAYOUT = TokenLayout(((H, W),), (1,) * N)
ADVANTAGES = torch.tensor([[1.0, -1.0, 0.5, -0.5], [0.0, 0.0, 0.0, 0.0]])


def rollout(seed: int = 0) -> Rollout:
    generator = torch.Generator().manual_seed(seed)
    names = ("entropy", "kl_cond_uncond", "js_cond_uncond", "group_divergence", "kl_uniform", "logit_cond")
    statistics = {name: torch.rand((P, G, N), generator=generator) for name in names}
    statistics |= {name: -5 * torch.rand((P, G, N), generator=generator) for name in ("logp_cond", "logp_uncond")}
    tokens = torch.randint(3, (P, G, N), generator=generator)
    return Rollout(Condition(("a circle", "a ring"), {}), tokens, statistics)


def embeddings(seed: int = 1) -> torch.Tensor:
    return torch.randn((P, G, N, 5), generator=torch.Generator().manual_seed(seed))


RULES: list[CreditRule] = [
    UniformCredit(),
    *(GuidanceContrast(statistic=statistic) for statistic in ("kl_exact", "k3", "ig", "abs", "js")),
    *(GuidanceContrast(normalize=form) for form in ("power", "softmax", "minmax", "topk", "none")),
    GuidanceContrast(kl_reweight=True),
    CriticalTokens(sets="union"),
    EntropyTokens(),
    EntropyTokens(which="bottom", over="image"),
    PerceptiveTokens(),
    DissimilarTokens(),
    DivergentPositions(),
    DownSampling(),
    UncertaintyShaping(),
    ConflictingTokens(),
    ReshapedImportance(),
    EarlyTokens(),
    SlidingWindow(),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_rule_treats_the_images_of_a_group_alike(rule: CreditRule) -> None:
    sampled, vectors, order = rollout(), embeddings(), [2, 0, 3, 1]
    advantages = torch.stack([ADVANTAGES[0], torch.tensor([2.0, 0.1, -0.4, -1.7])])  # nothing is a tie
    credit = rule(sampled, vectors, LAYOUT, Context(advantages))
    assert credit.weight.shape == credit.mask.shape == (P, G, N)
    assert (credit.weight >= 0).all()
    assert credit.weight.isfinite().all()
    statistics = {name: values[:, order] for name, values in sampled.statistics.items()}
    permuted = Rollout(sampled.condition, sampled.tokens[:, order], statistics)
    found = rule(permuted, vectors[:, order], LAYOUT, Context(advantages[:, order]))
    torch.testing.assert_close(found.weight, credit.weight[:, order])
    assert torch.equal(found.mask, credit.mask[:, order])
    for name in ("kl", "advantages"):
        if getattr(credit, name) is not None:
            torch.testing.assert_close(getattr(found, name), getattr(credit, name)[:, order])


@pytest.mark.parametrize(
    "rule", [DissimilarTokens(), DownSampling(), UncertaintyShaping(), ConflictingTokens()], ids=repr
)
def test_rules_that_need_advantages_say_so(rule: CreditRule) -> None:
    with pytest.raises(ValueError, match="needs the advantages of the images"):
        rule(rollout(), embeddings(), LAYOUT)


# Guidance contrast and critical tokens, beyond their papers' forms


def test_weights_of_mean_one() -> None:
    divergence = rollout().statistics["kl_cond_uncond"]
    weight = GuidanceContrast(rescale="mean1").weights(divergence)
    torch.testing.assert_close(weight.mean(-1), torch.ones(P, G))
    torch.testing.assert_close(weight, GuidanceContrast().weights(divergence) * 2)
    assert (GuidanceContrast(normalize="none").weights(divergence) == 1).all()


def test_equal_values_are_all_ones() -> None:
    assert (minmax(torch.full((2, 5), 0.3)) == 1).all()


def test_the_kl_factor_spares_tokens_of_large_weight() -> None:
    assert kl_factor(torch.tensor([0.0, 0.5, 0.75, 1.0, 3.0])).tolist() == [1, 1, 0.75, 0.5, 0.5]


def test_parts_of_the_critical_tokens() -> None:
    sampled, vectors = rollout(), embeddings()
    share = 0.2
    whole = CriticalTokens(share)(sampled, vectors, LAYOUT)
    assert (whole.mask.sum(-1) == 6).all()
    edges = CriticalTokens(share, parts=("structure",))
    assert edges.embeddings is None
    found = edges(sampled, None, LAYOUT)
    assert found.classes.keys() == {"structure"}
    assert (found.mask.sum(-1) == 2).all()
    others = CriticalTokens(share, keep="complement")(sampled, vectors, LAYOUT)
    assert torch.equal(others.mask, ~whole.mask)
    assert CriticalTokens(embedding="codebook").embeddings == "codebook"


def test_the_three_sets_may_differ_in_size() -> None:
    sampled, vectors = rollout(), embeddings()
    found = CriticalTokens(0.2, ratio=(1.5, 1.0, 0.5))(sampled, vectors, LAYOUT)
    assert [int(kept[0, 0].sum()) for kept in found.classes.values()] == [3, 2, 1]
    assert (found.mask.sum(-1) == 6).all()
    for ratio in ((0.0, 1.0, 1.0), (4.0, 1.0, 1.0), (1.0, 4.2, 0.1)):
        with pytest.raises(UserError, match="do not fit"):
            CriticalTokens(0.2, ratio=ratio)


def test_sets_may_overlap_in_the_union() -> None:
    sampled, vectors = rollout(), embeddings()
    vectors[:, 0, 0] = -vectors[:, 1, 0]  # the images differ most in the first token
    vectors[:, 2, 0] = -vectors[:, 3, 0]
    sampled.statistics["entropy"][..., :] = 0
    sampled.statistics["entropy"][..., -1] = 9  # the last token is the only edge
    rule = CriticalTokens(1 / 12, local_mean=False)
    literal, released = (replace(rule, sets=sets)(sampled, vectors, LAYOUT) for sets in ("union", "disjoint"))
    assert literal.classes["initial"][..., 0].all()
    assert literal.classes["similarity"][..., 0].all()
    assert literal.classes["structure"][..., -1].all()
    assert not released.classes["structure"][..., -1].any()
    assert (literal.mask.sum(-1) == 2).all()
    assert (released.mask.sum(-1) == 3).all()


# One paper each


def test_random_tokens_are_drawn_anew_at_every_step_and_do_not_depend_on_the_batch() -> None:
    sampled, rule = rollout(), RandomTokens(0.3)
    first, second = (rule(sampled, None, LAYOUT, Context(step=step)).mask for step in (1, 2))
    assert (first.sum(-1) == 4).all()
    assert not torch.equal(first, second)
    alone = Rollout(Condition(("a ring",), {}), sampled.tokens[1:], {})
    assert torch.equal(rule(alone, None, LAYOUT).mask, first[1:])


def test_top_and_bottom_entropy_are_opposite_ends() -> None:
    sampled = rollout()
    top, bottom = (EntropyTokens(0.25, which, "image")(sampled, None, LAYOUT).mask for which in ("top", "bottom"))
    entropy = sampled.statistics["entropy"]
    assert (top.sum(-1) == 3).all()
    assert not (top & bottom).any()
    assert entropy[top].min() > entropy[bottom].max()


def test_images_weigh_one_on_average() -> None:
    images = torch.rand((P, G), generator=torch.Generator().manual_seed(0))
    factor = trajectory_factor(images, images, 0.9)
    torch.testing.assert_close(factor.mean(), torch.tensor(1.0))
    torch.testing.assert_close(factor.min(), torch.tensor(0.9))
    equal = torch.full((P, G), 0.2)
    assert (trajectory_factor(equal, equal, 0.9) == 1).all()


def test_stage_compares_with_images_of_other_advantage_only() -> None:
    vectors = torch.ones(1, 3, 1, 2)
    vectors[0, 2] = -1
    alike = opposite_similarity(vectors, torch.tensor([[1.0, 0.5, -1.5]]))
    torch.testing.assert_close(alike[0, :, 0], torch.tensor([-1.0, -1.0, -1.0]))
    assert (opposite_similarity(vectors, torch.tensor([[1.0, 1.0, 1.0]])) == 0).all()


def test_down_sampling_relaxes_over_training() -> None:
    rule, sampled = DownSampling(), rollout()
    start, end = (rule(sampled, None, LAYOUT, Context(ADVANTAGES, step, 100)).mask for step in (1, 100))
    assert (start[0].any(-1).sum(), start[0].sum()) == (2, 12)
    assert start[0, :2].any(-1).all()  # the best and the worst image
    assert end[0].sum() == G * N
    assert torch.equal(replace(rule, relax=False)(sampled, None, LAYOUT, Context(ADVANTAGES, 100, 100)).mask, start)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_most_varied_subset_is_the_best_of_all(size: int) -> None:
    from itertools import combinations

    values = torch.rand((1, 6), generator=torch.Generator().manual_seed(size))
    best = max(values[0, list(chosen)].var().item() for chosen in combinations(range(6), size))
    assert values[most_varied(values, size)].var().item() == pytest.approx(best)


def test_shared_codes_are_not_punished() -> None:
    tokens = torch.tensor([[[7, 1], [7, 2], [8, 1]]])
    sampled = Rollout(Condition(("a",), {}), tokens, {})
    credit = ConflictingTokens()(sampled, None, LAYOUT, Context(torch.tensor([[1.0, -1.0, 0.0]])))
    assert credit.weight.tolist() == [[[2, 1], [0, 1], [1, 1]]]
    assert credit.mask.all()


def test_positive_advantages_are_shaped_down_to_nothing_at_most() -> None:
    rule = UncertaintyShaping(penalty=10.0)
    shaped = rule(rollout(), None, LAYOUT, Context(ADVANTAGES)).advantages
    assert shaped is not None
    assert (shaped[ADVANTAGES > 0] >= 0).all()
    assert (shaped[ADVANTAGES > 0] == 0).any()
    assert (shaped[ADVANTAGES < 0] < 0).all()


def test_early_tokens_weigh_more_and_one_on_average() -> None:
    weight = EarlyTokens(0.5)(rollout(), None, LAYOUT).weight
    assert weight[0, 0, 0] == 1.5
    assert weight[0, 0, -1] == 0.5
    torch.testing.assert_close(weight.mean(), torch.tensor(1.0))


def test_the_window_slides_and_starts_over() -> None:
    rule = SlidingWindow("row", size=2, every=10)
    rows = [
        rule(rollout(), None, LAYOUT, Context(step=step)).mask[0, 0].view(H, W).all(-1).tolist()
        for step in (1, 10, 11, 21)
    ]
    assert rows == [[True, True, False], [True, True, False], [False, True, True], [True, True, False]]


# Composition


def test_credits_compose_by_product() -> None:
    sampled, vectors, context = rollout(), embeddings(), Context(ADVANTAGES)
    guidance, stage, window = GuidanceContrast(kl_reweight=True), DissimilarTokens(), SlidingWindow(size=1)
    rule = Product((guidance, stage, window, UncertaintyShaping()))
    assert rule.embeddings == "codebook"
    assert rule.statistics == ("kl_cond_uncond", "kl_uniform", "logit_cond")
    found = rule(sampled, vectors, LAYOUT, context)
    one, two = (part(sampled, vectors, LAYOUT, context) for part in (guidance, stage))
    assert torch.equal(found.weight, one.weight * two.weight)
    assert one.kl is not None
    assert two.kl is not None
    assert found.kl is not None
    assert torch.equal(found.kl, one.kl * two.kl)
    assert torch.equal(found.mask, window(sampled, None, LAYOUT).mask)
    assert found.classes.keys() == {"window"}
    assert found.advantages is not None


def test_contradictory_products_are_refused() -> None:
    with pytest.raises(UserError, match="look at different token embeddings"):
        Product((CriticalTokens(), DissimilarTokens()))
    for rules in ((), (EarlyTokens(),), (EarlyTokens(), EarlyTokens())):
        with pytest.raises(UserError, match="two or more different rules"):
            Product(rules)
    ones = torch.ones(1, 2, 3)
    credit = TokenCredit(ones, ones.bool(), advantages=ones)
    with pytest.raises(ValueError, match="two rules of a product"):
        times(credit, credit)


@pytest.mark.parametrize(
    ("rule", "fields", "sentence"),
    [
        (GuidanceContrast, {"statistic": "kl"}, "no statistic 'kl': choose one of kl_exact, k3"),
        (GuidanceContrast, {"normalize": "hist"}, "no normalize 'hist'"),
        (GuidanceContrast, {"ties": "last"}, "no ties 'last'"),
        (GuidanceContrast, {"rescale": "sum"}, "no rescale 'sum'"),
        (GuidanceContrast, {"temperature": 0.0}, "temperature 0.0"),
        (CriticalTokens, {"parts": ()}, "parts"),
        (CriticalTokens, {"parts": ("edges",)}, "must be some of initial, structure, similarity"),
        (CriticalTokens, {"sets": "both"}, "no sets 'both'"),
        (CriticalTokens, {"keep": "none"}, "no keep 'none'"),
        (CriticalTokens, {"embedding": "clip"}, "no embedding 'clip'"),
        (DynamicWeight, {"form": "log"}, "no form 'log': choose one of exp, linear"),
        (EntropyTokens, {"share": 0.0}, "share 0.0"),
        (EntropyTokens, {"which": "middle"}, "no which 'middle'"),
        (EntropyTokens, {"over": "group"}, "no over 'group'"),
        (RandomTokens, {"share": 1.1}, "share 1.1"),
        (PerceptiveTokens, {"share": 0.0}, "share 0.0"),
        (DivergentPositions, {"most": 0.5}, "largest weight 0.5"),
        (DownSampling, {"tokens": 2.0}, "share 2.0"),
        (UncertaintyShaping, {"penalty": -1.0}, "must not be negative"),
        (ReshapedImportance, {"quantile": 1.0}, "quantile 1.0"),
        (ReshapedImportance, {"importance": "beauty"}, "no importance 'beauty': choose one of entropy"),
        (EarlyTokens, {"slope": 2.0}, "slope 2.0"),
        (SlidingWindow, {"unit": "token"}, "no unit 'token'"),
        (SlidingWindow, {"size": 0}, "size 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(rule, fields: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        rule(**fields)


def test_rules_that_compare_embeddings_need_them() -> None:
    with pytest.raises(ValueError, match="codebook vectors"):
        DissimilarTokens()(rollout(), None, LAYOUT, Context(ADVANTAGES))
