import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from models.policy import Condition, TokenLayout
from t2i_rl.advantages import advantages
from t2i_rl.errors import UserError
from t2i_rl.methods import METHODS, Method, find_method
from t2i_rl.objectives import Objective, denominators, policy_loss
from t2i_rl.rollout import Rollout
from t2i_rl.statistics import STATISTICS

SIDE, GROUP = 6, 3


def test_names_are_found_and_unknown_ones_listed() -> None:
    assert find_method("cfg") is METHODS["cfg"]
    with pytest.raises(UserError, match=r"no method 'gcpo'.*grpo, cfg, critical"):
        find_method("gcpo")


def test_naming_the_methods_does_not_import_torch() -> None:
    program = "import sys, t2i_rl.methods; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_a_method_turns_a_rollout_into_a_gradient(method: Method) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (2, GROUP, SIDE * SIDE)
    layout = TokenLayout(((SIDE, SIDE),), (1,) * shape[-1])
    assert set(method.credit.statistics) <= STATISTICS.keys()
    statistics = {name: torch.rand(shape, generator=generator) for name in method.credit.statistics}
    rollout = Rollout(Condition(("a", "b"), {}), torch.zeros(shape, dtype=torch.long), statistics)
    embeddings = torch.randn((*shape, 4), generator=generator) if method.credit.embeddings else None

    credit = method.credit(rollout, embeddings, layout)
    parts = denominators(credit, method.objective)
    lp = (-torch.rand(shape, generator=generator)).flatten(0, 1).requires_grad_()
    values = advantages(torch.rand(shape[:2], generator=generator), method.scale).flatten()
    loss = method.loss(lp, None, lp.detach(), values, credit.weight.flatten(0, 1), credit.mask.flatten(0, 1), parts)
    loss.value.backward()
    assert loss.value.isfinite()
    # On policy and at the reference the gradient is that of -A w lp over the denominator.
    expected = -values[:, None] * (credit.weight * credit.mask).flatten(0, 1) / parts.policy
    torch.testing.assert_close(lp.grad, expected)


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
    expected = policy_loss(lp, None, ref, values, method.dynamic(lp, ref), ones.bool(), method.objective, parts)
    assert method.loss(lp, None, ref, values, ones, ones.bool(), parts).value == expected.value
    with pytest.raises(ValueError, match="critical needs the reference"):
        method.loss(lp, None, None, values, ones, ones.bool(), parts)
    assert not replace(METHODS["grpo"], objective=Objective(beta=0)).needs_reference
