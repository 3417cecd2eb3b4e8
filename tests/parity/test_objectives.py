"""Token maps, critical tokens and guidance contrast against the numbers of the original implementations.

Every case, size and parameter comes from the files; names say which formula a case pins.
"""

import json
import math
from functools import cache

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.policy import TokenLayout
from t2i_rl.methods.credit.critical import DynamicWeight, critical_classes, lowest, middle
from t2i_rl.methods.credit.guidance import power_weights
from t2i_rl.methods.credit.rule import TokenCredit
from t2i_rl.methods.kl import k3
from t2i_rl.methods.objectives import ImageRows, Loss, Objective, denominators, policy_loss
from t2i_rl.methods.surrogates import Clipped
from t2i_rl.rollout.distribution import mix
from t2i_rl.rollout.log_probs import Replay
from t2i_rl.rollout.statistics import entropy, kl_divergence
from t2i_rl.tokenmaps import (
    entropy_gradient,
    gradient,
    gradient_magnitude,
    local_mean,
    percentile_ranks,
    running_divergence,
    similarity,
)
from tests.parity.golden import golden_folder

DEFAULT = {"rtol": 1e-4, "atol": 2e-5}


@cache
def read(file: str) -> dict[str, dict[str, Tensor]]:
    """Tensors by case and name."""
    cases: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(golden_folder("objectives") / f"{file}.safetensors").items():
        case, name = key.split("/")
        cases.setdefault(case, {})[name] = tensor
    return cases


def parameters(file: str, case: str) -> dict:
    return json.loads((golden_folder("objectives") / "index.json").read_text())[f"{file}.safetensors"][case]


def each(file: str, prefix: str = "", tensor: str = "") -> pytest.MarkDecorator:
    """Parametrize over the cases of a file whose name begins so and that hold such a tensor."""
    cases = sorted(
        case for case, held in read(file).items() if case.startswith(prefix) and (not tensor or tensor in held)
    )
    assert cases, f"{file} has no case {prefix}*/{tensor}"
    return pytest.mark.parametrize("case", cases)


def square(tokens: int) -> TokenLayout:
    side = math.isqrt(tokens)
    return TokenLayout(((side, side),), (1,) * tokens)


def close(found: Tensor, expected: Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(found, expected, **(DEFAULT | tolerance))


def check_gradient(loss: Loss, lp: Tensor, expected: Tensor, **tolerance: float) -> None:
    (found,) = torch.autograd.grad(loss.value, lp)
    torch.testing.assert_close(found, expected, **tolerance)


# Token maps


@each("critical_structure", tensor="grad_mag")
def test_maps_of_the_entropy(case: str) -> None:
    io = read("critical_structure")[case]
    layout = square(io["entropy"].shape[-1])
    (picture,) = layout.split(io["entropy"])
    close(local_mean(picture), io["mean_map"])
    close(gradient_magnitude(local_mean(picture)), io["grad_mag"])
    close(entropy_gradient(io["entropy"], layout), io["grad_mag"].flatten(-2))


@each("critical_structure", tensor="dx")
def test_parts_of_the_gradient(case: str) -> None:
    io = read("critical_structure")[case]
    (picture,) = square(io["entropy"].shape[-1]).split(io["entropy"])
    smooth = local_mean(picture)
    close(gradient(smooth, -1), io["dx"])
    close(gradient(smooth, -2), io["dy"])


@each("critical_structure", tensor="struct_mask")
def test_structure_tokens(case: str) -> None:
    settings, io = parameters("critical_structure", case), read("critical_structure")[case]
    values = entropy_gradient(io["entropy"], square(io["entropy"].shape[-1]))
    size = int(settings["frac"] * values.shape[-1])
    assert size == settings["k"]
    assert torch.equal(lowest(-values, size, middle(values)), io["struct_mask"].bool())


@each("critical_structure", tensor="count")
def test_structure_tokens_of_ties(case: str) -> None:
    settings, io = parameters("critical_structure", case), read("critical_structure")[case]
    values = entropy_gradient(io["entropy"], square(io["entropy"].shape[-1]))
    eligible = middle(values)
    assert eligible.nonzero()[:, -1].min() == settings["offset"]
    assert (eligible.sum(-1) == settings["n_valid"]).all()
    found = lowest(-values, settings["k"], eligible)
    assert torch.equal(found.sum(-1).int(), io["count"])
    steep = eligible & (values > 0)
    if (steep.sum(-1) <= settings["k"]).all():
        assert found[steep].all()


@each("critical_similarity")
def test_similarity_of_the_group(case: str) -> None:
    io, group = read("critical_similarity")[case], parameters("critical_similarity", case)["group"]
    found = similarity(io["embeddings"].unflatten(0, (-1, group)))
    close(found.repeat_interleave(group, 0), io["similarity"])


# Entropy and divergence


@each("entropy_divergence", "cfg_", "entropy_probs")
def test_entropy_of_the_guided_mixture(case: str) -> None:
    io, inputs = read("entropy_divergence")[case], read("entropy_divergence")["cfg_inputs"]
    mixed = mix(inputs["logits_cond"], inputs["logits_uncond"], parameters("entropy_divergence", case)["cfg"])
    rows, positions = io["cfg_logits_slice"].shape[:2]
    close(mixed[:rows, :positions], io["cfg_logits_slice"], atol=1e-4)
    close(entropy(mixed.log_softmax(-1)), io["entropy_probs"], atol=1e-4)
    close(entropy(mixed.log_softmax(-1)), io["entropy_lse"], atol=1e-4)
    close(entropy(inputs["logits_cond"].log_softmax(-1)), io["entropy_cond"], atol=1e-4)


@each("entropy_divergence", "entropy_")
def test_entropy_of_extreme_logits(case: str) -> None:
    io = read("entropy_divergence")[case]
    found = entropy(io["logits"].log_softmax(-1))
    for name in ("entropy_probs", "entropy_exact", "entropy_lse"):
        if name in io:
            close(found, io[name])


def test_divergences() -> None:
    io, inputs = read("entropy_divergence")["divergence_own"], read("entropy_divergence")["cfg_inputs"]
    log_cond, log_uncond = inputs["logits_cond"].log_softmax(-1), inputs["logits_uncond"].log_softmax(-1)
    close(kl_divergence(log_cond, log_uncond), io["kl_cond_uncond"])
    close(kl_divergence(log_uncond, log_cond), io["kl_uncond_cond"])
    tokens = io["token_ids"].long()[..., None]
    close(log_cond.gather(-1, tokens)[..., 0], io["logp_cond"])
    close(log_uncond.gather(-1, tokens)[..., 0], io["logp_uncond"])
    # The released statistic is capped at 10.
    close(k3(io["logp_cond"], io["logp_uncond"]).clamp(max=10), io["k3_sampled"], rtol=1e-3, atol=2e-4)


# Critical tokens


def critical_credit(entropies: Tensor, alike: Tensor, share: float) -> tuple[TokenCredit, dict[str, Tensor]]:
    layout = square(entropies.shape[-1])
    classes = critical_classes(entropy_gradient(entropies, layout), alike, layout, share)
    mask = classes["initial"] | classes["structure"] | classes["similarity"]
    return TokenCredit(mask.float(), mask), classes


@each("gcpo_critical_loss")
def test_critical_selection_and_weights(case: str) -> None:
    settings, io = parameters("gcpo_critical_loss", case), read("gcpo_critical_loss")[case]
    credit, classes = critical_credit(io["entropy"], io["similarity"], settings["frac"])
    masks = {"init_mask": "initial", "struct_mask": "structure", "sim_mask": "similarity"}
    for name in masks.keys() & io.keys():
        assert torch.equal(classes[masks[name]], io[name].bool()), name
    if "final_mask" in io:
        assert torch.equal(credit.mask, io["final_mask"].bool())
    difference = io["logps"], io["ref_logps"], settings["eps_w"]
    close(running_divergence(*difference), io["daw"], atol=1e-5)
    if "daw_paper" in io:
        close(running_divergence(*difference, form="linear"), io["daw_paper"])


@each("gcpo_critical_loss")
@pytest.mark.parametrize(("detach", "suffix"), [(False, ""), (True, "_daw_detached")])
def test_critical_loss(case: str, detach: bool, suffix: str) -> None:
    settings, io = parameters("gcpo_critical_loss", case), read("gcpo_critical_loss")[case]
    if f"loss{suffix}" not in io:
        assert not io["advantages"].any(), "without advantages the weight has no gradient to detach"
        suffix = ""
    credit, _ = critical_credit(io["entropy"], io["similarity"], settings["frac"])
    lp, ref = io["logps"].clone().requires_grad_(), io["ref_logps"]
    weight = DynamicWeight(settings["eps_w"], detach=detach)(lp, ref)
    objective = Objective(beta=settings["beta"])
    parts = denominators(credit, objective)
    loss = policy_loss(Replay(lp), ImageRows(io["advantages"], weight, credit.mask, ref=ref), objective, parts)
    close(loss.value, io[f"loss{suffix}"])
    check_gradient(loss, lp, io[f"grad{suffix}"], atol=5e-7, rtol=1e-3)


@each("gcpo_critical_llamagen")
def test_critical_loss_of_llamagen(case: str) -> None:
    settings, io = parameters("gcpo_critical_llamagen", case), read("gcpo_critical_llamagen")[case]
    group = settings["group"]
    alike = similarity(io["embeddings"].unflatten(0, (-1, group))).repeat_interleave(group, 0)
    credit, _ = critical_credit(io["entropy"], alike, settings["frac"])
    lp, ref = io["logps"].clone().requires_grad_(), io["ref_logps"]
    weight = DynamicWeight(settings["eps_w"], detach=False)(lp, ref)
    objective = Objective(Clipped(settings["clip_eps"], settings["clip_eps"]), beta=settings["beta"])
    parts = denominators(credit, objective)
    rows = ImageRows(io["advantages"], weight, credit.mask, io.get("old_logps"), ref)
    loss = policy_loss(Replay(lp), rows, objective, parts)
    close(loss.value, io["loss"])
    close(loss.kl_updated, io["mean_kl"])
    check_gradient(loss, lp, io["grad"], atol=1e-6, rtol=1e-3)


# Guidance contrast


@each("guidance_weights", tensor="weights_percentile_own")
def test_percentile_weights(case: str) -> None:
    io = read("guidance_weights")[case]
    close(percentile_ranks(io["k3"]), io["weights_percentile_own"])


@each("guidance_weights", tensor="weights_power")
def test_power_weights(case: str) -> None:
    settings, io = parameters("guidance_weights", case), read("guidance_weights")[case]
    valid = io["mask"].bool() if "mask" in io else torch.ones_like(io["logp_pos"]).bool()
    statistic = k3(io["logp_pos"], io["logp_neg"]).clamp(max=10)
    for row, kept, expected in zip(statistic, valid, io["weights_power"], strict=True):
        close(power_weights(row[kept], settings["top"], settings["mass"]), expected[kept], atol=2e-3)


@each("guidance_weights", tensor="k3")
def test_sampled_divergence(case: str) -> None:
    io = read("guidance_weights")[case]
    close(k3(io["logp_pos"], io["logp_neg"]).clamp(max=10), io["k3"], rtol=1e-3, atol=2e-4)


@each("guidance_weights", tensor="weights_power_tieavg_own")
def test_power_weights_of_ties(case: str) -> None:
    settings, io = parameters("guidance_weights", case), read("guidance_weights")[case]
    close(power_weights(io["k3"], settings["top"], settings["mass"]), io["weights_power_tieavg_own"])


def test_normalizations() -> None:
    io = read("guidance_weights")["normalise_own"]
    close(percentile_ranks(io["raw"]), io["percentile"])
    close(power_weights(io["raw"]), io["power"])


@each("gcpo_guidance_loss", "gcpo1_", "loss")
def test_guidance_loss(case: str) -> None:
    settings, io = parameters("gcpo_guidance_loss", case), read("gcpo_guidance_loss")[case]
    everywhere = torch.ones_like(io["weights"]).bool()
    for weight, denominator, suffix in (
        (io["weights"], "weight", ""),
        (torch.ones_like(io["weights"]), "mask", "_grpo"),
        (torch.ones_like(io["weights"]), "tokens", "_grpo"),
    ):
        objective = Objective(beta=settings["beta"], denominator=denominator)
        parts = denominators(TokenCredit(weight, everywhere), objective)
        lp = io["logps"].clone().requires_grad_()
        rows = ImageRows(io["advantages"], weight, everywhere, ref=io["ref_logps"])
        loss = policy_loss(Replay(lp), rows, objective, parts)
        close(loss.value, io[f"loss{suffix}"])
        close(loss.kl, io["mean_kl"])
        check_gradient(loss, lp, io[f"grad{suffix}"], atol=2e-7, rtol=1e-3)
