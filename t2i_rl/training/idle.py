"""Groups that count for nothing: they keep a process in step with others that have more groups."""

from dataclasses import dataclass, replace

from models.policy import Policy
from t2i_rl.parallel.ranks import Ranks
from t2i_rl.prompts.asking import Asking
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.sampler import ask


@dataclass(frozen=True)
class IdleGroups:
    """What fills a rollout up.

    asking: as in sampling. prompt: any, for a process that has no group at all.
    """

    ranks: Ranks
    policy: Policy
    asking: Asking
    prompt: Prompt

    def fill(self, rollout: Rollout) -> Rollout:
        """With as many groups as the process with the most has, so that all make the same calls; the last are idle."""
        own = len(rollout.prompts)
        if (idle := max(self.ranks.each(own)) - own) == 0:
            return rollout
        some = rollout if own else self._blank_group(rollout)
        filled = replace(some.take([*range(own), *[0] * idle]), idle=idle)
        return replace(filled, statistics={k: v.masked_fill(~filled.valid, 0) for k, v in filled.statistics.items()})

    def _blank_group(self, like: Rollout) -> Rollout:
        """A group that nobody sampled."""
        condition = ask(self.policy, self.asking, [self.prompt])
        shape = 1, *like.tokens.shape[1:]
        statistics = {name: values.new_zeros(shape) for name, values in like.statistics.items()}
        return Rollout(condition, like.tokens.new_zeros(shape), statistics, like.stop_tokens)
