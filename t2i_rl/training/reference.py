"""What the reference says of a rollout: it needs the tokens alone, so it is asked while rewards are still awaited."""

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from models.policy import Policy
from t2i_rl.methods.method import Method
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.log_probs import CONDITIONAL, TokenDistribution, frozen_replay
from t2i_rl.training.idle import IdleGroups

# Among a rollout's statistics: of each token under the reference, and of its conditional prediction there.
LOG_PROB, ENTROPY = "reference_log_prob", "reference_entropy"


@dataclass(frozen=True)
class ReferencePass:
    """The frozen policy that a run began with, asked once per rollout for what the method compares with.

    distribution: which one the update's log-probabilities are of.
    micro_batch: images in one pass, as in the update.
    idle: what keeps processes in step that share the reference's weights.
    """

    policy: Policy
    method: Method
    distribution: TokenDistribution
    micro_batch: int
    idle: IdleGroups

    def complete(self, rollout: Rollout) -> Rollout:
        """The rollout with the reference's statistics."""
        entropy = self.method.entropy_reward is not None
        together = entropy and self.distribution.mode == "cond"  # then it is the entropy of the same predictions
        found: dict[str, Float[Tensor, "P G N"]] = {}
        if together or self.method.compares_log_probs:
            found |= self._ask(rollout, self.distribution, together)
        if entropy and not together:
            found[ENTROPY] = self._ask(rollout, CONDITIONAL, True)[ENTROPY]
        return replace(rollout, statistics={**rollout.statistics, **found})

    def _ask(
        self, rollout: Rollout, distribution: TokenDistribution, with_entropy: bool
    ) -> dict[str, Float[Tensor, "P G N"]]:
        filled, own = self.idle.fill(rollout), len(rollout.prompts)
        rows = filled.row_condition, filled.tokens.flatten(0, 1)
        said = frozen_replay(self.policy, *rows, self.micro_batch, distribution, with_entropy, filled.row_valid)
        found = {LOG_PROB: said.lp} if said.entropy is None else {LOG_PROB: said.lp, ENTROPY: said.entropy}
        return {name: values.view(filled.tokens.shape)[:own] for name, values in found.items()}
