"""What a step samples: the groups of its prompts with their scores, and of further prompts where the method asks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from models.policy import Condition, Policy
from rewards.errors import RewardError
from rewards.reward import Reward, Scores, dropped_groups
from t2i_rl.configuration.config import TrainConfig
from t2i_rl.methods.advantages import zero_variance
from t2i_rl.methods.method import Method
from t2i_rl.methods.overlong import LAST, OVERLONG, overlong
from t2i_rl.parallel.ranks import ALONE, Ranks
from t2i_rl.prompts.asking import Asking
from t2i_rl.prompts.order import batch, further_batch
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.groups import Groups, Rollout, Sample, concatenate, join, widened
from t2i_rl.rollout.log_probs import micro_batches
from t2i_rl.rollout.noise import Noise, occurrences
from t2i_rl.rollout.passes import StatisticPasses
from t2i_rl.rollout.sampler import ask, sample_group
from t2i_rl.training.clock import Clock
from t2i_rl.training.reference import ReferencePass
from t2i_rl.training.scoring import Scorer, dull, of_all, with_rewards


@dataclass(frozen=True)
class Collected:
    """All that a step sampled.

    step: its number.
    rounds: the groups that have their scores, at first of the step's own prompts, then of those drawn in their place.
    tokens: of all groups: the tokens' mean entropy and, of answers, their mean length and the share that was cut off,
        and the share of questions that their negative prompt leaves as they are.
    lost: how many groups lack a score.
    faults: how often a reward server failed on the way, by kind (`rewards.http.client`).
    """

    step: int
    rounds: tuple[Groups, ...]
    tokens: Mapping[str, float]
    lost: int
    faults: Mapping[str, int]

    @property
    def rewards(self) -> Float[Tensor, "P G"]:
        return torch.cat([groups.rewards for groups in self.rounds])

    @property
    def images(self) -> int:
        """How many were sampled, scored or not."""
        return (len(self.rewards) + self.lost) * self.rewards.shape[1]

    def metrics(self) -> dict[str, float]:
        """What the scored groups earned, and what went wrong (`t2i_rl.training.metrics_log`)."""
        rewards, first = self.rewards, self.rounds[0]
        parts = {name: torch.cat([groups.parts[name] for groups in self.rounds]) for name in first.parts}
        spread = (
            {
                "reward_std": rewards.std(dim=1).mean().item(),
                "zero_variance": zero_variance(rewards).float().mean().item(),
            }
            if rewards.shape[1] > 1
            else {}
        )
        return {
            "reward": rewards.mean().item(),
            **{f"reward/{name}": values.mean().item() for name, values in parts.items()},
            **spread,
            **self.tokens,
            **{f"reward_faults/{kind}": count for kind, count in self.faults.items()},
        }


@dataclass
class Collector:
    """Samples groups, decodes and scores them: of several processes, each its share of whole groups.

    asking: how prompts become questions.
    passes: the statistics that are measured on the way.
    reference: what is measured of them under the reference, if a method needs it.
    """

    config: TrainConfig
    policy: Policy
    method: Method
    reward: Reward
    prompts: Sequence[Prompt]
    asking: Asking
    passes: StatisticPasses
    reference: ReferencePass | None
    ranks: Ranks = ALONE

    def collect(self, step: int, clock: Clock) -> Collected:
        """The step's groups and, where the method asks for them, those of further prompts until enough teach.

        Groups that lack a score are lost. Raises RewardError if that is not allowed, and where no group is left.
        """
        settings = self.config.rollout
        missing, asked = settings.prompts_per_step, list[Prompt]()
        rounds, lost, faults = list[Groups](), 0, Counter[str]()
        for attempt in range(1 + settings.resample_rounds * (self.method.filter_zero_std == "resample")):
            records = self.draw_prompts(step, attempt, missing)
            asked += records
            # Occurrences are counted over the whole step: a prompt that comes again gets other images.
            numbers = occurrences([record.key for record in asked])[-missing:]
            own = self.ranks.share(len(records))
            mine = slice(own.start, own.stop)
            with Scorer(self.reward, self.config.on_reward_failure) as scorer:
                if own:
                    rollout = self.sample_and_submit(step, records[mine], numbers[mine], clock, scorer)
                else:  # only where few prompts are drawn again
                    rollout = rollout.take([])
                if self.reference is not None:
                    with clock.phase("reference"):
                        rollout = self.reference.complete(rollout)
                with clock.phase("score_wait"):
                    scores = of_all(self.ranks, self.with_length(scorer.scores(), rollout) if own else None)
            clock.add("score", scorer.seconds)
            whole = (~dropped_groups(scores, settings.group_size)).nonzero()[:, 0].tolist()
            lost += len(records) - len(whole)
            faults.update(scores.faults)
            if not whole:
                break
            groups = with_rewards(records, rollout, scores, self.config.reward_weights, self.reward.name, own)
            rounds.append(groups.take(whole) if len(whole) < len(records) else groups)
            if self.method.filter_zero_std == "resample":
                missing = int(self.dull(rounds[-1]).sum())
            if not missing:
                break
        if not rounds:
            image, why = next(iter(scores.failures.items()))
            raise RewardError(
                f"step {step}: every group lacks a score, the first one for its image "
                f'{image % settings.group_size} ("{asked[image // settings.group_size].text}"): {why}'
            )
        return Collected(step, tuple(rounds), self.measured([groups.rollout for groups in rounds]), lost, faults)

    def dull(self, groups: Groups) -> Bool[Tensor, " P"]:
        """Which groups the method leaves out or replaces, if it does."""
        return dull(groups, self.config.reward_weights)

    def with_length(self, scores: Scores, rollout: Rollout) -> Scores:
        """Of answers with a further part, `overlong`, which counts where `reward_weights` names it."""
        if not rollout.stop_tokens:
            return scores
        limit = min(self.policy.layout.tokens, self.config.question.max_tokens)
        punished = overlong(rollout.lengths.flatten().cpu(), limit, max(1, limit // LAST))
        return replace(scores, parts={**scores.parts, OVERLONG: punished})

    def measured(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """What is logged of the tokens."""
        values = {"entropy": [rollout.statistics["entropy"][rollout.valid] for rollout in rollouts]}
        if rollouts[0].stop_tokens:
            values["length"] = [rollout.lengths.flatten().float() for rollout in rollouts]
            values["truncated"] = [rollout.cut.flatten().float() for rollout in rollouts]
            if self.asking.against:
                alike = [rollout.condition.alike().float() for rollout in rollouts]
                values["contrast_same"] = [one.to(rollouts[0].tokens.device) for one in alike]
        return {name: self.ranks.mean(torch.cat(parts)) for name, parts in values.items()}

    def sample_and_submit(
        self, step: int, records: Sequence[Prompt], occurrence: Sequence[int], clock: Clock, scorer: Scorer
    ) -> Rollout:
        """Groups of these prompts, in micro-batches of whole prompts: each is scored while the next is sampled."""
        settings = self.config.rollout
        parts: list[Rollout] = []
        with clock.phase("sample"):
            condition = ask(self.policy, self.asking, records, step)
        for rows in micro_batches(len(records), settings.prompts_at_once):
            with clock.phase("sample"):
                parts.append(self.sample(step, condition.take(rows), occurrence[rows]))
            with clock.phase("decode"):
                samples = self.decode(parts[-1])
            scorer.submit(records[rows], samples)
        with clock.phase("sample"):
            return self.passes.complete(self.policy, concatenate(parts, condition))

    def draw_prompts(self, step: int, attempt: int, size: int) -> list[Prompt]:
        """The prompts of a step, or those drawn in a later attempt to replace some of them."""
        known, before, seed = len(self.prompts), step - 1, self.config.seed
        drawn = further_batch(known, before, attempt, size, seed) if attempt else batch(known, before, size, seed)
        return [self.prompts[number] for number in drawn]

    def sample(self, step: int, condition: Condition, occurrence: Sequence[int]) -> Rollout:
        """One micro-batch of groups, with the statistics that are measured while sampling."""
        settings, names = self.config.rollout, self.passes.while_sampling
        parts = [
            sample_group(
                self.policy,
                condition,
                samples.stop - samples.start,
                settings.sampling,
                Noise(self.config.seed, step, occurrence, samples.start),
                names,
                self.config.question.max_tokens,
            )
            for samples in micro_batches(settings.group_size, settings.group_batch or settings.group_size)
        ]
        return widened(parts)

    def decode(self, rollout: Rollout) -> list[Sample]:
        """What rewards look at."""
        return rollout.samples(self.policy)

    def choose(self, collected: Collected) -> Groups:
        """What the update sees: the groups of all prompts, or those that teach something."""
        if self.method.filter_zero_std == "off":
            return collected.rounds[0]
        teaching = [part.take((~self.dull(part)).nonzero()[:, 0].tolist()) for part in collected.rounds]
        own = [part.records[row] for part in teaching for row in part.mine]
        asked = ask(self.policy, self.asking, own, collected.step) if own else teaching[0].rollout.condition
        return join(teaching, asked)
