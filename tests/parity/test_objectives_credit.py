"""Rules of token credit against reference numbers: guidance variants, STAGE, entropy masks, and one rule per paper."""

import pytest
import torch
from torch import Tensor

from models.policy import Condition
from t2i_rl.methods.credit.d3s import DownSampling, most_varied
from t2i_rl.methods.credit.entropy import EntropyTokens, upper_quantile
from t2i_rl.methods.credit.guidance import GuidanceContrast, contrast, kl_factor
from t2i_rl.methods.credit.oar import ReshapedImportance
from t2i_rl.methods.credit.rule import Context, CreditRule, TokenCredit
from t2i_rl.methods.credit.stage import DissimilarTokens
from t2i_rl.methods.credit.tw import DivergentPositions
from t2i_rl.methods.credit.ucas import UncertaintyShaping
from t2i_rl.methods.credit.vppo import PerceptiveTokens
from t2i_rl.methods.objectives import ImageRows, Objective, denominators, policy_loss
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.log_probs import Replay
from t2i_rl.rollout.statistics import STATISTICS, StepLogits
from tests.parity.test_objectives import check_gradient, close, each, parameters, read, square


def credit(
    rule: CreditRule, statistics: dict[str, Tensor], context: Context | None = None, embeddings: Tensor | None = None
) -> TokenCredit:
    """The credit of one group, from statistics `[G, N]`."""
    (shape, *_) = [values.shape for values in statistics.values()]
    rollout = Rollout(
        Condition(("a prompt",), {}),
        torch.zeros((1, *shape), dtype=torch.long),
        {name: values[None] for name, values in statistics.items()},
    )
    known = context or Context()
    return rule(rollout, None if embeddings is None else embeddings[None], square(shape[-1]), known)


# Guidance


def test_divergences_of_the_sampled_token() -> None:
    io, inputs = read("entropy_divergence")["divergence_own"], read("entropy_divergence")["cfg_inputs"]
    pair = io["logp_cond"], io["logp_uncond"]
    close(contrast(*pair, "ig"), io["information_gain"])
    close(contrast(*pair, "abs"), io["abs_diff"])
    close(contrast(*pair, "k3"), io["k3_sampled"], rtol=1e-3, atol=2e-4)
    both = StepLogits(inputs["logits_cond"], inputs["logits_uncond"], inputs["logits_cond"], io["token_ids"].long(), 1)
    close(STATISTICS["js_cond_uncond"](both), io["js"])
    close(STATISTICS["kl_cond_uncond"](both), io["kl_cond_uncond"])


@pytest.mark.parametrize(
    ("normalize", "name"),
    [
        ("percentile", "percentile"),
        ("power", "power"),
        ("softmax", "softmax_t0_1"),
        ("minmax", "minmax"),
        ("topk", "topk40"),
    ],
)
def test_normalizations(normalize, name: str) -> None:
    io = read("guidance_weights")["normalise_own"]
    close(GuidanceContrast(normalize=normalize).weights(io["raw"]), io[name])


@each("guidance_weights", tensor="weights_power_sorted")
def test_power_weights_of_ties_by_position(case: str) -> None:
    io = read("guidance_weights")[case]
    found = GuidanceContrast(normalize="power", ties="stable").weights(io["k3"])
    close(found.sort(-1).values, io["weights_power_sorted"].sort(-1).values)


@each("gcpo_guidance_loss", "gcpo1_", "loss_klre")
def test_released_guidance_loss(case: str) -> None:
    settings, io = parameters("gcpo_guidance_loss", case), read("gcpo_guidance_loss")[case]
    rule = GuidanceContrast(statistic="k3", normalize="power", kl_reweight=True)
    found = credit(rule, {"logp_cond": io["logps"], "logp_uncond": io["logp_neg"]})
    close(found.weight[0], io["weights"], atol=2e-3)
    weight = io["weights"]
    factor = kl_factor(weight)
    if "kl_mask_klre" in io:
        close(factor, io["kl_mask_klre"])
    objective = Objective(beta=settings["beta"], denominator="weight")
    lp, everywhere = io["logps"].clone().requires_grad_(), torch.ones_like(weight).bool()
    parts = denominators(TokenCredit(weight, everywhere), objective)
    rows = ImageRows(io["advantages"], weight, everywhere, ref=io["ref_logps"], kl_weight=factor)
    loss = policy_loss(Replay(lp), rows, objective, parts)
    close(loss.value, io["loss_klre"])
    check_gradient(loss, lp, io["grad_klre"], atol=2e-7, rtol=1e-3)


@each("gcpo_guidance_loss", "stage_")
def test_stage(case: str) -> None:
    settings, io = parameters("gcpo_guidance_loss", case), read("gcpo_guidance_loss")[case]
    vectors = io["code_embeddings"].flatten(-2).transpose(-1, -2)
    context = Context(advantages=io["advantages"][None])
    found = credit(DissimilarTokens(), {"logp_cond": io["logps"]}, context, vectors)
    close(found.weight[0], io["soft_mask"])
    assert found.kl is not None
    close(found.kl[0], io["kl_mask"])
    objective = Objective(beta=settings["beta"], denominator="weight")
    lp = io["logps"].clone().requires_grad_()
    rows = ImageRows(io["advantages"], found.weight[0], found.mask[0], ref=io["ref_logps"], kl_weight=found.kl[0])
    loss = policy_loss(Replay(lp), rows, objective, denominators(found, objective))
    close(loss.value, io["loss"])
    check_gradient(loss, lp, io["grad"], atol=2e-7, rtol=1e-3)


# Entropy


def test_entropy_masks() -> None:
    inputs = read("token_credit_own")["inputs"]
    for over, case in (("batch", "top20_batch_quantile"), ("image", "top20_per_sequence")):
        rule = EntropyTokens(parameters("token_credit_own", case)["frac"], over=over)
        found = credit(rule, {"entropy": inputs["entropy"]})
        assert torch.equal(found.mask[0], read("token_credit_own")[case]["mask"].bool()), case


def test_entropy_mask_of_another_trainer() -> None:
    io, inputs = read("surrogates")["trl_top20_entropy"], read("surrogates")["inputs"]
    valid = inputs["mask"].bool()
    values = inputs["entropy"][valid]
    found = values >= upper_quantile(values, parameters("surrogates", "trl_top20_entropy")["top_q"])
    assert torch.equal(found, io["entropy_mask"].bool()[valid])


# One paper each


def test_vppo() -> None:
    settings, io = parameters("token_credit_own", "vppo"), read("token_credit_own")["vppo"]
    inputs = read("token_credit_own")["inputs"]
    rule = PerceptiveTokens(settings["frac"], settings["beta_min"])
    found = credit(rule, {"logp_cond": inputs["logps"], "logp_uncond": inputs["logp_neg"]})
    assert torch.equal(found.classes["perceptive"][0], io["mask"].bool())
    assert (io["mask"].sum(-1) == settings["k"]).all()
    close(found.weight[0], io["mask"] * io["traj_scale"][:, None])
    close(found.weight[0] * inputs["advantages"][:, None], io["token_advantage"])


def step(inputs: dict[str, Tensor]) -> StepLogits:
    return StepLogits(inputs["logits"], None, inputs["logits"], inputs["token_ids"].long(), len(inputs["logits"]))


def test_tw() -> None:
    inputs, settings = read("token_credit_own")["inputs"], parameters("token_credit_own", "tw_grpo")
    divergence = STATISTICS["group_divergence"](step(inputs))
    found = credit(DivergentPositions(settings["max_weight"]), {"group_divergence": divergence})
    close(found.weight[0], read("token_credit_own")["tw_grpo"]["weights"])


def test_d3s() -> None:
    io, inputs = read("token_credit_own")["d3s_tokens"], read("token_credit_own")["inputs"]
    settings, advantages = parameters("token_credit_own", "d3s_tokens"), inputs["advantages"][None]
    rule = DownSampling(samples=1.0, tokens=settings["frac"])
    found = credit(rule, {"entropy": inputs["entropy"]}, Context(advantages))
    assert torch.equal(found.mask[0], io["mask"].bool())
    close(advantages[0].abs()[:, None] * inputs["entropy"], io["score"])
    io, settings = read("token_credit_own")["d3s_samples"], parameters("token_credit_own", "d3s_samples")
    assert torch.equal(most_varied(io["rewards"][None], settings["keep"])[0], io["selected"].bool())


def test_ucas() -> None:
    io, inputs = read("token_credit_own")["ucas"], read("token_credit_own")["inputs"]
    settings, rewards = parameters("token_credit_own", "ucas"), inputs["rewards"][None]
    measured = {name: STATISTICS[name](step(inputs)) for name in UncertaintyShaping.statistics}
    close(measured["kl_uniform"].sum(-1), io["certainty"])
    # These numbers come from advantages without the usual eps.
    advantages = (rewards - rewards.mean()) / rewards.std()
    rule = UncertaintyShaping(settings["beta_pos"], settings["beta_neg"], settings["penalty"])
    found = credit(rule, measured, Context(advantages))
    assert found.advantages is not None
    close(found.advantages[0], io["token_advantage"])


def test_oar() -> None:
    io, settings = read("token_credit_own")["oar_reshape"], parameters("token_credit_own", "oar_reshape")
    rule = ReshapedImportance("entropy", settings["threshold_quantile"], settings["floor"], settings["boost"])
    close(credit(rule, {"entropy": io["saliency"]}).weight[0], io["weights"])


def test_every_case_of_the_own_credits_is_covered() -> None:
    covered = {"inputs", "top20_batch_quantile", "top20_per_sequence", "vppo", "tw_grpo", "d3s_tokens", "d3s_samples"}
    covered |= {"ucas", "oar_reshape", "pref_winrate", "virtual_max"}
    assert read("token_credit_own").keys() == covered
