"""A method: advantage, token credit and objective, composed as data. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from t2i_rl.errors import UserError
from t2i_rl.methods.advantages import AdvantageRule, Scale, ValueAnchored, VirtualBest
from t2i_rl.methods.baselines import PromptBaseline
from t2i_rl.methods.credit.critical import DynamicWeight
from t2i_rl.methods.credit.rule import CreditRule, UniformCredit
from t2i_rl.methods.entropy_reward import EntropyReward
from t2i_rl.methods.objectives import Denominators, ImageRows, Loss, Objective, policy_loss
from t2i_rl.settings import check_choice

if TYPE_CHECKING:
    from models.policy import TokenLayout
    from t2i_rl.rollout.log_probs import Replay


FilterZeroStd = Literal["off", "drop", "resample"]


Source = Literal["rollout", "current"]


@dataclass(frozen=True)
class Method:
    """One way to turn rewards into an update.

    scale: what divides the advantages, or the rule that estimates them.
    credit: which tokens are updated, and how strongly.
    objective: the loss.
    dynamic: a weight that follows the policy during the update and multiplies the credit's.
    entropy_reward: a bonus on verifiable rewards, which give a strict verdict beside the score; others are refused.
    filter_zero_std: whether groups of equal rewards, which teach nothing, stay in the update with their KL (`off`),
        leave it (`drop`), or are replaced by the groups of further prompts (`resample`).
    source: whose statistics the credit sees in the second and later updates of a rollout: still those of the policy
        that sampled (`rollout`), or those of the `current` one, for a pass more per update.
    """

    name: str
    summary: str
    scale: Scale | AdvantageRule | PromptBaseline = "group"
    credit: CreditRule = field(default_factory=UniformCredit)
    objective: Objective = field(default_factory=Objective)
    dynamic: DynamicWeight | None = None
    entropy_reward: EntropyReward | None = None
    filter_zero_std: FilterZeroStd = "off"
    source: Source = "rollout"

    def __post_init__(self) -> None:
        if isinstance(self.scale, str):
            check_choice(f"method {self.name}", "scale", self.scale, Scale)
        check_choice(f"method {self.name}", "filter_zero_std", self.filter_zero_std, FilterZeroStd)
        check_choice(f"method {self.name}", "source", self.source, Source)
        if self.dynamic is not None and self.objective.denominator == "weight":
            raise UserError(
                f"method {self.name}: a dynamic weight has no sum before the update: choose another denominator"
            )
        dynamic = self.dynamic
        if dynamic is not None and dynamic.form == "linear" and dynamic.detach and not self.objective.entropy_bonus:
            raise UserError(
                f"method {self.name}: a linear running weight is 0 while policy and reference agree, and detached it "
                "never moves them apart: set dynamic.detach to false, as critical-literal does"
            )
        if self.filter_zero_std != "off" and isinstance(self.scale, VirtualBest | ValueAnchored | PromptBaseline):
            raise UserError(
                f"method {self.name}: {type(self.scale).__name__} learns from groups of equal rewards: "
                "set filter_zero_std to off"
            )
        if self.source == "current" and not self.credit.statistics:
            raise UserError(f"method {self.name}: its credit looks at no statistics: set source to rollout")

    @property
    def needs_reference(self) -> bool:
        """Whether there has to be a reference: for the KL, and at any beta for the dynamic weight or entropy reward."""
        return self.objective.beta > 0 or self.dynamic is not None or self.entropy_reward is not None

    @property
    def compares_log_probs(self) -> bool:
        """Whether the reference's log-probabilities of the tokens are looked at; the exact KL has its own pass."""
        return self.needs_reference and (self.objective.kl != "full" or self.dynamic is not None)

    @property
    def needs_group(self) -> bool:
        """Whether it compares the images of a prompt, so that there have to be two of them."""
        own_past = isinstance(self.scale, PromptBaseline)
        return not own_past or self.entropy_reward is not None or self.credit.compares

    def loss(
        self, replay: Replay, images: ImageRows, denominators: Denominators, layout: TokenLayout | None = None
    ) -> Loss:
        """`t2i_rl.methods.objectives.policy_loss` of this method, with its dynamic weight."""
        if self.dynamic is not None:
            if images.ref is None:
                raise ValueError(f"method {self.name} needs the reference's log-probabilities")
            images = replace(images, weight=images.weight * self.dynamic(replay.lp, images.ref, layout))
        return policy_loss(replay, images, self.objective, denominators, layout)
