"""The loss on answers of different lengths against numbers of the released trainers: weights, masks, gradients."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from models.policy import Condition, TokenLayout
from t2i_rl.methods.advantages import advantages
from t2i_rl.methods.catalogue import find_method
from t2i_rl.methods.credit.guidance import GuidanceContrast, contrast
from t2i_rl.methods.credit.rule import TokenCredit
from t2i_rl.methods.credit.vppo import PerceptiveTokens
from t2i_rl.methods.method import Method
from t2i_rl.methods.objectives import ImageRows, Loss, denominators, policy_loss
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.log_probs import Replay
from t2i_rl.tokenmaps import row_mean
from tests.parity.golden import golden_folder

FOLDER = golden_folder("reasoning")
STOP = 1
VARIANTS = {
    "percentile_own": GuidanceContrast(),
    "softmax_own": GuidanceContrast(normalize="softmax", temperature=0.1),
    "minmax_own": GuidanceContrast(normalize="minmax"),
    "topk40_own": GuidanceContrast(normalize="topk", top=0.4),
    "power": GuidanceContrast(normalize="power"),
    "power_tieavg_own": GuidanceContrast(normalize="power"),
}
ATOL = {"power": 2e-3, "power_tieavg_own": 2e-3}


def read(file: str) -> dict[str, dict[str, Tensor]]:
    cases: dict[str, dict[str, Tensor]] = {}
    with safe_open(FOLDER / f"{file}.safetensors", "pt") as found:
        for name in found.keys():  # noqa: SIM118 - it is no mapping
            case, tensor = name.split("/")
            cases.setdefault(case, {})[tensor] = found.get_tensor(name)
    for io in cases.values():
        io["mask"] = io["mask"].bool()
    return cases


def parameters(file: str, case: str) -> dict[str, Any]:
    with safe_open(FOLDER / f"{file}.safetensors", "pt") as found:
        return json.loads(found.metadata()["params"])[case]


LOSSES, WEIGHTS, VPPO, DRIVER = (read(file) for file in ("losses", "weights", "vppo", "driver"))


def close(found: Tensor, expected: Tensor, atol: float = 2e-6, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=rtol)


def rollout(mask: Tensor, groups: int, statistics: Mapping[str, Tensor]) -> Rollout:
    """Answers that end where the mask does."""
    tokens = (~mask).long() * STOP
    ends = mask.sum(-1, keepdim=True) - 1
    tokens = tokens.scatter(-1, ends, STOP).unflatten(0, (groups, -1))
    found = {name: values.unflatten(0, (groups, -1)) for name, values in statistics.items()}
    return Rollout(Condition(("",) * groups, {}), tokens, found, (STOP,))


def layout(tokens: int) -> TokenLayout:
    return TokenLayout(((1, tokens),), (1,) * tokens)


def loss_of(method: Method, credit: TokenCredit, advantage: Tensor, lp: Tensor, old: Tensor, valid: Tensor) -> Loss:
    groups = valid.unflatten(0, credit.mask.shape[:2])
    parts = denominators(credit, method.objective, groups)
    rows = ImageRows.of(credit, advantage.unflatten(0, credit.mask.shape[:2]), old.masked_fill(~valid, 0), None)
    return policy_loss(Replay(lp.masked_fill(~valid, 0)), rows, method.objective, parts)


def gradient(loss: Loss, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss.value, of, retain_graph=True)[0]


@pytest.mark.parametrize("case", WEIGHTS)
def test_the_weights_of_an_answer(case: str):
    io = WEIGHTS[case]
    mask, d = io["mask"], contrast(io["log_probs"], io["neg_log_probs"], "k3")
    close(d[mask], io["k3"][mask], atol=1e-5, rtol=1e-3)
    seen = 0
    for name in VARIANTS.keys() & io.keys():
        close(VARIANTS[name].weights(io["k3"], mask), io[name], atol=ATOL.get(name, 2e-6))
        seen += 1
    if "power_sorted" in io:  # ties in any order
        rule = GuidanceContrast(normalize="power", ties="stable")
        close(rule.weights(io["k3"], mask).sort(-1).values, io["power_sorted"].sort(-1).values, atol=2e-3)
    assert seen >= 3


@pytest.mark.parametrize("case", WEIGHTS)
def test_padding_does_not_matter(case: str):
    """Each row alone, without what stands behind it, has the same bits."""
    io = WEIGHTS[case]
    for name in VARIANTS.keys() & io.keys():
        whole = VARIANTS[name].weights(io["k3"], io["mask"])
        for row, mask in zip(range(len(whole)), io["mask"], strict=True):
            if length := int(mask.sum()):
                alone = VARIANTS[name].weights(io["k3"][row, :length])
                close(whole[row, :length], alone, atol=1e-7, rtol=1e-6)
                assert (whole[row, length:] == 0).all()


@pytest.mark.parametrize("case", LOSSES)
def test_the_loss_of_a_batch(case: str):
    io, known = LOSSES[case], parameters("losses", case)
    mask, groups = io["mask"], known["P"]
    earned = advantages(io["rewards"].unflatten(0, (groups, -1)), eps=known["eps"]).flatten()
    close(earned[:, None] * mask, io["advantages"])
    lp = io["log_probs"].clone().requires_grad_()
    here = rollout(mask, groups, {})
    dapo, gcpo = find_method("dapo[objective=cfg-text]"), find_method("cfg-text")
    uniform = dapo.credit(here, None, layout(mask.shape[1]))
    found = loss_of(dapo, uniform, earned, lp, io["old_log_probs"], mask)
    close(found.value, io["dapo_loss"])
    close(gradient(found, lp), io["dapo_grad"], atol=1e-7)
    close(found.clip_fraction, io["dapo_clip_higher"] + io["dapo_clip_lower"])

    for name, weight, method in (
        ("gcpo", io["weights"], gcpo),
        ("gcpo_penalty", io["weights"], find_method(f"cfg-text[objective.nll={known['penalty']}]")),
        ("gcpo_percentile", io["percentile_own"], gcpo),
    ):
        credit = TokenCredit(weight.unflatten(0, (groups, -1)), here.valid)
        found = loss_of(method, credit, earned, lp, io["old_log_probs"], mask)
        close(found.value, io[f"{name}_loss"])
        close(gradient(found, lp), io[f"{name}_grad"], atol=1e-7)

    pair = {"logp_cond": io["log_probs"], "logp_uncond": io["neg_log_probs"]}
    released = find_method("cfg-text-released").credit(rollout(mask, groups, pair), None, layout(mask.shape[1]))
    close(released.weight.flatten(0, 1), io["weights"], atol=2e-3)


@pytest.mark.parametrize("case", VPPO)
def test_vppo(case: str):
    io, known = VPPO[case], parameters("vppo", case)
    mask, groups = io["mask"], known["P"]
    pair = {"logp_cond": io["old_log_probs"], "logp_uncond": io["aug_log_probs"]}
    here = rollout(mask, groups, pair)
    rule = PerceptiveTokens(known["share"], known["least"])
    credit = rule(here, None, layout(mask.shape[1]))
    dependency = contrast(io["old_log_probs"], io["aug_log_probs"], "k3")
    close(dependency[mask], io["dependency"][mask], atol=1e-5, rtol=1e-3)
    assert torch.equal(credit.classes["perceptive"].flatten(0, 1), io["token_mask"].bool())
    factor, there = credit.weight.amax(-1).flatten(), ~io["factor"].isnan()
    close(factor[there], io["factor"][there], atol=1e-5)
    close(row_mean(factor, torch.ones_like(factor, dtype=torch.bool))[0], torch.tensor(1.0))
    lp = io["log_probs"].clone().requires_grad_()
    found = loss_of(
        find_method("vppo[objective=cfg-text]"), credit, io["advantages"][:, 0], lp, io["old_log_probs"], mask
    )
    close(found.value, io["loss"])
    close(gradient(found, lp), io["grad"], atol=1e-7)


@pytest.mark.parametrize("case", [case for case in DRIVER if "micro4" not in case])
def test_the_released_update(case: str):
    """Down to the logits, optimizer step by optimizer step; how rows are split into micro-batches does not matter."""
    io, known = DRIVER[case], parameters("driver", case)
    mask, logits = io["mask"], io["logits"].clone().requires_grad_()
    likelihood = f"objective.nll={known['penalty']}"
    names = {"gcpo": f"cfg-text-released[{likelihood}]", "vppo": f"vppo[objective=cfg-text,{likelihood}]"}
    method = find_method(names[known["kind"]])
    at = (io["tokens"].long()[..., None],)
    lp = logits.log_softmax(-1).gather(-1, *at)[..., 0]
    against = io["negative_logits"].log_softmax(-1).gather(-1, *at)[..., 0]
    compared = (lp.detach(), against) if known["kind"] == "gcpo" else (io["old_log_probs"], io["aug_log_probs"])
    for step, rows in enumerate(torch.arange(len(mask)).split(known["mini"])):
        pair = {name: values[rows] for name, values in zip(("logp_cond", "logp_uncond"), compared, strict=True)}
        here = rollout(mask[rows], 1, pair)
        credit = method.credit(here, None, layout(mask.shape[1]))
        advantage = io["advantages"][rows, 0]
        if known["kind"] == "gcpo":
            close((credit.weight[0] * advantage[:, None])[mask[rows]], io["shaped_advantages"][rows][mask[rows]], 2e-3)
        found = loss_of(method, credit, advantage, lp[rows], io["old_log_probs"][rows], mask[rows])
        close(gradient(found, logits), io["grads"][step], rtol=1e-3)
