"""Estimates of the KL to the reference from sampled tokens. Nothing here imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from jaxtyping import Float

from t2i_rl.rollout.names import LIMIT

if TYPE_CHECKING:
    from torch import Tensor


KL = Literal["k1", "k2", "k3", "abs", "full"]


def k3(lp: Float[Tensor, "... N"], ref: Float[Tensor, "... N"]) -> Float[Tensor, "... N"]:
    """Estimate of KL(policy || reference) from the sampled token: `exp(ref - lp) - (ref - lp) - 1`.

    In nats, at least 0, unbiased for tokens that the policy sampled; `ref - lp` is clamped to +-20.
    """
    difference = (ref - lp).clamp(-LIMIT, LIMIT)
    return difference.expm1() - difference  # expm1: small differences would drown in the 1


def kl_terms(lp: Float[Tensor, "... N"], ref: Float[Tensor, "... N"], form: KL) -> Float[Tensor, "... N"]:
    """The KL of every token from the sampled one: k1 `lp - ref`, k2 half its square, abs its size, or `k3`.

    The gradient of k1 is the score alone, 0 on average: it measures, and hardly pulls. `full` cannot be had from
    sampled tokens: it is `t2i_rl.rollout.statistics.kl_divergence` of the two distributions, and raises ValueError
    here.
    """
    if form == "full":
        raise ValueError("the full KL needs both distributions over the vocabulary: pass its values in the replay")
    if form == "k3":
        return k3(lp, ref)
    difference = lp - ref
    return {"k1": difference, "k2": difference.square() / 2, "abs": difference.abs()}[form]
