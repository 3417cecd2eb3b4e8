"""Methods by name: advantage, token credit and objective, composed as data.

A new method is a new row of `METHODS`. Nothing here imports torch: the functions that compute do so when they
are called, so that the command line can print its help at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Bool, Float

from t2i_rl.advantages import Scale
from t2i_rl.credit import CreditRule, UniformCredit
from t2i_rl.credit.critical import CriticalTokens, DynamicWeight
from t2i_rl.credit.guidance import GuidanceContrast
from t2i_rl.errors import UserError
from t2i_rl.objectives import Denominators, Loss, Objective, policy_loss

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Method:
    """One way to turn rewards into an update.

    scale: what divides the advantages.
    credit: which tokens are updated, and how strongly.
    objective: the loss.
    dynamic: a weight that follows the policy during the update and multiplies the credit's.
    """

    name: str
    summary: str
    scale: Scale
    credit: CreditRule
    objective: Objective
    dynamic: DynamicWeight | None = None

    @property
    def needs_reference(self) -> bool:
        """Whether the reference's log-probabilities are needed: for the KL, and for the dynamic weight at any beta."""
        return self.objective.beta > 0 or self.dynamic is not None

    def loss(
        self,
        lp: Float[Tensor, "*rows N"],
        old: Float[Tensor, "*rows N"] | None,
        ref: Float[Tensor, "*rows N"] | None,
        advantages: Float[Tensor, "*rows"],
        weight: Float[Tensor, "*rows N"],
        mask: Bool[Tensor, "*rows N"],
        denominators: Denominators,
    ) -> Loss:
        """`t2i_rl.objectives.policy_loss` of this method, with its dynamic weight."""
        if self.needs_reference and ref is None:
            raise ValueError(f"method {self.name} needs the reference's log-probabilities")
        if self.dynamic is not None and ref is not None:
            weight = weight * self.dynamic(lp, ref)
        return policy_loss(lp, old, ref, advantages, weight, mask, self.objective, denominators)


METHODS = {
    method.name: method
    for method in (
        Method(
            name="grpo",
            summary="GRPO: every token alike (arXiv:2402.03300, eq. 3), KL to the reference over all tokens (eq. 4)",
            scale="group",
            credit=UniformCredit(),
            objective=Objective(beta=0.01),
        ),
        # The paper's form. The release has sampled k3, power weights, a weighted mean and a reweighted KL.
        Method(
            name="cfg",
            summary="guidance contrast: tokens weighted by how much the prompt changes them (arXiv:2605.29198)",
            scale="group",
            credit=GuidanceContrast(),
            objective=Objective(beta=0.03, denominator="tokens"),
        ),
        # The release's form, but detached. The paper divides by all tokens, the release by the selected ones.
        Method(
            name="critical",
            summary="critical tokens: 30 % of the tokens, weighted by the running divergence from the reference "
            "(arXiv:2509.22485)",
            scale="group",
            credit=CriticalTokens(),
            objective=Objective(beta=0.01),
            dynamic=DynamicWeight(),
        ),
    )
}


def find_method(name: str) -> Method:
    """The method of that name."""
    if name not in METHODS:
        raise UserError(f"there is no method {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]
