"""Surrogates, ratio units, KL forms and reductions against other trainers, with rows of unequal length."""

import pytest
import torch
from torch import Tensor

from t2i_rl.methods.credit.rule import TokenCredit
from t2i_rl.methods.kl import kl_terms
from t2i_rl.methods.objectives import ImageRows, Loss, Objective, denominators, policy_loss
from t2i_rl.methods.surrogates import Cispo, Clipped, DualClipped, Sapo, Surrogate, TwoSided
from t2i_rl.rollout.log_probs import Replay
from tests.parity.test_objectives import check_gradient, close, parameters, read

CASES = sorted(case for case, held in read("surrogates").items() if "loss" in held)
TRL = {"dapo": "mask", "bnpo": "mask", "grpo": "mean-of-images", "dr_grpo": "tokens", "luspo": "images"}
TRL |= {"cispo": "mask", "sapo": "mean-of-images"}


def objective(settings: dict) -> Objective:
    """What the parameters of a case mean in our terms."""
    kind = settings.get("loss_type", "default")
    low, high = settings.get("clip_low", settings.get("el", 0.2)), settings.get("clip_high", settings.get("eh", 0.2))
    surrogate: Surrogate
    if kind == "sapo":
        surrogate = Sapo()
    elif kind == "cispo" and "dual" not in settings:
        surrogate = Cispo(high=high - 1)
    elif kind == "cispo":
        surrogate = Cispo(low, high)
    elif "dual" in settings:
        surrogate = DualClipped(low, high, settings["dual"])
    elif "delta" in settings:
        surrogate = TwoSided(low, high, settings["delta"])
    else:
        surrogate = Clipped(low, high)
    averages = {"token": "mask", "seq": "mean-of-images"}
    reduction = TRL[kind] if "dual" not in settings else averages[settings.get("loss_avg_mode", "token")]
    sequence = settings.get("level") == "sequence" or kind.startswith("gspo")
    return Objective(
        surrogate,
        unit="sequence" if sequence else "token",
        through="token" if kind == "gspo_token" else "unit",
        beta=settings.get("beta", 0.0),
        denominator=reduction,
        entropy_bonus=-settings.get("entropy_penalty", 0.0),
    )


def loss_of(case: str) -> tuple[Loss, Tensor]:
    """The loss and the log-probabilities."""
    settings, io = parameters("surrogates", case), read("surrogates")[case]
    inputs = read("surrogates")[settings["inputs"]]
    lp, mask = io.get("logps", inputs["logps"]).clone().requires_grad_(), inputs["mask"].bool()
    weight = io.get("weights", torch.ones_like(lp)) * io.get("entropy_mask", torch.ones_like(lp))
    form = objective(settings)
    rows = ImageRows(inputs["advantages"], weight, mask, inputs["old_logps"], inputs["ref_logps"])
    # The VLM release penalizes -lp, the one-sample estimate of the entropy.
    return policy_loss(Replay(lp, entropy=-lp), rows, form, denominators(TokenCredit(weight, mask), form)), lp


@pytest.mark.parametrize("case", CASES)
def test_surrogate(case: str) -> None:
    io, (loss, lp) = read("surrogates")[case], loss_of(case)
    close(loss.value, io["loss"], **({"atol": 3e-5} if case == "trl_luspo" else {}))
    if "pg_loss" in io:
        close(loss.policy, io["pg_loss"])
    check_gradient(loss, lp, io["grad"], atol=1e-6, rtol=2e-3)


@pytest.mark.parametrize("case", [case for case in CASES if "pg_clipfrac_higher" in read("surrogates")[case]])
def test_clip_fraction(case: str) -> None:
    io, (loss, _) = read("surrogates")[case], loss_of(case)
    close(loss.clip_fraction, io["pg_clipfrac_higher"] + io["pg_clipfrac_lower"])


@pytest.mark.parametrize(
    ("case", "form"), [("kl_kl", "k1"), ("kl_abs", "abs"), ("kl_mse", "k2"), ("kl_low_var_kl", "k3")]
)
def test_kl(case: str, form) -> None:
    inputs = read("surrogates")["inputs"]
    found = kl_terms(inputs["logps"], inputs["ref_logps"], form)
    close(found.clamp(max=10) if form == "k3" else found, read("surrogates")[case]["value"])
