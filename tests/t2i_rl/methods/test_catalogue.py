import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from models.policy import Condition, TokenLayout
from t2i_rl.errors import UserError
from t2i_rl.methods.advantages import VirtualBest, advantages
from t2i_rl.methods.baselines import PromptBaseline
from t2i_rl.methods.catalogue import METHODS, find_method
from t2i_rl.methods.credit.critical import CriticalTokens, DynamicWeight
from t2i_rl.methods.credit.guidance import GuidanceContrast
from t2i_rl.methods.credit.rule import Context
from t2i_rl.methods.description import describe
from t2i_rl.methods.entropy_reward import EntropyReward
from t2i_rl.methods.method import Method
from t2i_rl.methods.objectives import ImageRows, Objective, denominators, policy_loss
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.log_probs import Replay
from t2i_rl.rollout.statistics import STATISTICS

SIDE, GROUP = 6, 3


def test_names_are_found_and_unknown_ones_listed() -> None:
    assert find_method("cfg") is METHODS["cfg"]
    with pytest.raises(UserError, match=r"no method 'gcpo'.*grpo, cfg, critical"):
        find_method("gcpo")


def test_naming_the_methods_does_not_import_torch() -> None:
    program = "import sys, t2i_rl.methods.catalogue; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_a_method_turns_a_rollout_into_a_gradient(method: Method) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (2, GROUP, SIDE * SIDE)
    layout = TokenLayout(((SIDE, SIDE),), (1,) * shape[-1])
    assert set(method.credit.statistics) <= STATISTICS.keys()
    statistics = {name: torch.rand(shape, generator=generator) for name in method.credit.statistics}
    tokens = torch.randint(4, shape, generator=generator)
    rollout = Rollout(Condition(("a", "b"), {}), tokens, statistics)
    embeddings = torch.randn((*shape, 4), generator=generator) if method.credit.embeddings else None

    rewards = torch.rand(shape[:2], generator=generator)
    if isinstance(method.scale, PromptBaseline):
        earned, _ = method.scale(rewards, rollout.prompts, {})
    else:
        earned = advantages(rewards, method.scale)
    credit = method.credit(rollout, embeddings, layout, Context(earned, step=2, steps=10))
    assert (credit.weight >= 0).all()
    parts = denominators(credit, method.objective)
    by_token = (earned[..., None].expand(shape) if credit.advantages is None else credit.advantages).flatten(0, 1)
    weight, mask = credit.weight.flatten(0, 1), credit.mask.flatten(0, 1)
    lp = (-torch.rand(shape, generator=generator)).flatten(0, 1).requires_grad_()
    # Entropy and exact KL have tests of their own: here they are flat.
    flat = torch.zeros(lp.shape)
    replay = Replay(lp, flat, flat if method.objective.kl == "full" else None)
    loss = method.loss(replay, ImageRows.of(credit, earned, None, lp.detach().view(shape)), parts, layout)
    loss.value.backward()
    assert loss.value.isfinite()
    if method.dynamic is not None and not method.dynamic.detach:
        assert (lp.grad[~mask] != 0).any()
        return
    # On policy and at the reference the gradient is that of -A w lp over the denominator, if units share a weight.
    over = parts.policy * (mask.sum(-1, keepdim=True) if method.objective.denominator == "mean-of-images" else 1)
    likelihood = method.objective.nll * mask / parts.kl
    torch.testing.assert_close(lp.grad, -by_token * weight * mask / over - likelihood)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_a_description_names_every_part(method: Method) -> None:
    text = describe(method)
    assert text.startswith(f"{method.name}: {method.summary}\n")
    assert repr(method.credit) in text
    assert repr(method.objective.surrogate) in text
    assert ("no KL" in text) == (method.objective.beta == 0)
    assert (f"times       {method.dynamic!r}" in text) == (method.dynamic is not None)
    assert all(name in text for name in method.credit.statistics)
    assert ("EntropyReward(" in text) == (method.entropy_reward is not None)
    assert ("further prompts are sampled" in text) == (method.filter_zero_std == "resample")
    if method.credit.statistics:
        assert "measured again" in describe(replace(method, source="current"))


def test_the_papers_methods_keep_their_settings() -> None:
    assert METHODS["grpo"].objective == Objective(beta=0.01)
    assert METHODS["cfg"].credit == GuidanceContrast("kl_exact", "percentile")
    assert METHODS["cfg"].objective == Objective(beta=0.03, denominator="tokens")
    assert METHODS["critical"].credit == CriticalTokens(0.1, True, ("initial", "structure", "similarity"), "disjoint")
    assert METHODS["critical"].dynamic == DynamicWeight(0.5, "exp", detach=True)


def test_contradictions_are_refused() -> None:
    with pytest.raises(UserError, match="choose another denominator"):
        Method("x", "", objective=Objective(denominator="weight"), dynamic=DynamicWeight())
    with pytest.raises(UserError, match="no scale 'std': choose one of group, batch, none"):
        Method("x", "", scale="std")
    with pytest.raises(UserError, match="no filter_zero_std 'maybe': choose one of off, drop, resample"):
        Method("x", "", filter_zero_std="maybe")
    with pytest.raises(UserError, match="VirtualBest learns from groups of equal rewards"):
        Method("x", "", scale=VirtualBest(), filter_zero_std="drop")
    with pytest.raises(UserError, match="no source 'past'"):
        Method("x", "", source="past")
    with pytest.raises(UserError, match="looks at no statistics: set source to rollout"):
        Method("x", "", source="current")
    with pytest.raises(ValueError, match="prompts and their history"):
        advantages(torch.zeros(1, 2), PromptBaseline())


def test_the_dynamic_weight_is_applied_and_needs_the_reference_at_any_beta() -> None:
    method = replace(METHODS["critical"], objective=Objective(beta=0))
    assert method.needs_reference
    lp, ref = -torch.rand(4, 9, generator=torch.Generator().manual_seed(0)), torch.full((4, 9), -0.5)
    ones, values = torch.ones(4, 9), torch.tensor([1.0, -2.0, 3.0, 0.5])
    credit = METHODS["grpo"].credit(
        Rollout(Condition(("a",), {}), torch.zeros(1, 4, 9, dtype=torch.long), {}),
        None,
        TokenLayout(((3, 3),), (1,) * 9),
    )
    parts = denominators(credit, method.objective)
    assert method.dynamic is not None
    rows = ImageRows(values, ones, ones.bool(), ref=ref)
    weighed = replace(rows, weight=method.dynamic(lp, ref))
    expected = policy_loss(Replay(lp), weighed, method.objective, parts)
    assert method.loss(Replay(lp), rows, parts).value == expected.value
    with pytest.raises(ValueError, match="critical needs the reference"):
        method.loss(Replay(lp), replace(rows, ref=None), parts)
    assert not replace(METHODS["grpo"], objective=Objective(beta=0)).needs_reference
    assert replace(METHODS["grpo"], objective=Objective(beta=0), entropy_reward=EntropyReward()).needs_reference
