"""Which pass yields which statistic.

Most are measured while sampling, where the logits of both branches are in hand. A contrast with another prompt than
guidance leads away from has no branch there: it takes a teacher-forced pass of its own.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

from models.policy import Policy
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.measure import measure
from t2i_rl.rollout.names import CONTRASTS
from t2i_rl.rollout.sampler import encode
from t2i_rl.rollout.sampling import Sampling


@dataclass(frozen=True)
class StatisticPasses:
    """The statistics of a rollout by the pass that measures them.

    names: all that are wanted.
    sampling: how the images are drawn.
    contrast_prompt: what contrasts compare with, "" being the unconditional branch; None: what guidance leads away
        from.
    micro_batch: prompts in one teacher-forced pass.
    """

    names: frozenset[str]
    sampling: Sampling
    contrast_prompt: str | None
    micro_batch: int

    @property
    def with_contrast(self) -> frozenset[str]:
        """Those of the pass with the contrast prompt."""
        another = self.contrast_prompt not in (None, self.sampling.negative_prompt)
        return CONTRASTS & self.names if another else frozenset()

    @property
    def while_sampling(self) -> list[str]:
        """Those that the sampler measures."""
        return sorted(self.names - self.with_contrast)

    def complete(self, policy: Policy, rollout: Rollout) -> Rollout:
        """What the sampler yielded, with the statistics that it could not measure."""
        return self.anew(policy, rollout, self.with_contrast) if self.with_contrast else rollout

    def anew(self, policy: Policy, rollout: Rollout, names: Collection[str]) -> Rollout:
        """The rollout with these statistics measured again, under the weights of now."""
        found = dict(rollout.statistics)
        if guided := {*names} - self.with_contrast:
            found |= measure(policy, rollout, self.sampling, guided, self.micro_batch)
        if contrasts := {*names} & self.with_contrast:
            compared = replace(rollout, condition=encode(policy, rollout.prompts, self.contrast_prompt or ""))
            found |= measure(policy, compared, self.sampling, contrasts, self.micro_batch)
        return replace(rollout, statistics=found)
