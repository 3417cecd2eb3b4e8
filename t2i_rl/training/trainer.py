"""The training loop: sample groups, decode them, score them, credit their tokens, update the policy.

One process for now. What several would share is reached through one place each: the data order
(`prompts.batch`), the loss denominators (`objectives.denominators`, over the whole batch), the weights
that the rollout reads (`Trainer.policy`). Groups are never split.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from models.policy import Condition, Policy
from rewards.errors import RewardError
from rewards.reward import Reward, Scores, dropped_groups, score_each, score_images
from t2i_rl.errors import UserError
from t2i_rl.methods.advantages import advantages, zero_variance
from t2i_rl.methods.baselines import Running, Tracker
from t2i_rl.methods.credit.rule import Context, TokenCredit
from t2i_rl.methods.method import Method
from t2i_rl.methods.objectives import Rows, denominators
from t2i_rl.methods.reward_mixing import normalize_then_sum, weighted_sum
from t2i_rl.prompts.order import batch, further_batch
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.groups import Groups, Rollout, concatenate, join
from t2i_rl.rollout.log_probs import Scoring, micro_batches, score_in_parts
from t2i_rl.rollout.measure import measure
from t2i_rl.rollout.names import CONTRASTS
from t2i_rl.rollout.noise import occurrences
from t2i_rl.rollout.sampler import Noise, encode, sample_group
from t2i_rl.training.checks import check_layout, check_settings
from t2i_rl.training.collecting import Collected, Scorer
from t2i_rl.training.config import TrainConfig
from t2i_rl.training.optimizer import adamw
from t2i_rl.training.update import backward, learning_rate, move


class Trainer:
    """A policy, what scores it, and the state that a step changes: weights, optimizer, history.

    reference: the frozen policy that the run began with, if a method needs it; a copy of the policy if not given.
    Raises UserError for a method that does not go with the settings or with the model.
    """

    def __init__(
        self,
        config: TrainConfig,
        policy: Policy,
        method: Method,
        reward: Reward,
        prompts: Sequence[Prompt],
        reference: Policy | None = None,
    ) -> None:
        check_settings(config, method)
        check_layout(method, policy.layout)
        self.config, self.policy, self.method = config, policy, method
        self.reward, self.prompts = reward, prompts
        policy.gradient_checkpointing = config.update.gradient_checkpointing
        update, sampling = config.update, config.rollout.sampling
        self.scoring = Scoring(update.log_prob, sampling, update.unconditional_gradient)
        self.reference = policy.reference() if method.needs_reference and reference is None else reference
        self.history: dict[str, Running] = {}  # what each prompt has earned, for methods that remember it
        self.optimizer = adamw(policy.trainable_parameters(), update)

    def step(self, number: int) -> dict[str, float]:
        """One rollout and its update; returns the step's metrics (`t2i_rl.training.metrics_log`)."""
        began, seconds = time.perf_counter(), dict[str, float]()
        found = self.collect(number, seconds)  # sample, decode, score
        groups = self.kept(found.rounds)
        with _clock(seconds, "update"):  # credit, update
            # Where no group teaches anything, weights and optimizer stay as they are.
            updated = self.update(number, groups) if groups.records else {}
        seconds["step"] = time.perf_counter() - began
        metrics = {
            "step": number,
            **found.metrics(),
            **updated,
            **{f"seconds/{phase}": spent for phase, spent in seconds.items()},
            "images_per_second": found.sampled / seconds["step"],
        }
        if self.method.filter_zero_std != "off":
            metrics["groups_dropped"] = len(found.rewards) - len(groups.records)
            metrics["groups_resampled"] = len(found.rewards) - len(found.rounds[0].records)
        if self.config.on_reward_failure == "drop_group":
            metrics["groups_lost"] = found.lost
        return metrics

    def collect(self, number: int, seconds: dict[str, float]) -> Collected:
        """The step's groups and, where the method asks for them, those of further prompts until enough teach.

        Groups that lack a score are lost. Raises RewardError if that is not allowed, and where no group is left.
        """
        settings = self.config.rollout
        missing, texts = settings.prompts_per_step, list[str]()
        rounds, lost, faults = list[Groups](), 0, Counter[str]()
        for attempt in range(1 + settings.resample_rounds * (self.method.filter_zero_std == "resample")):
            records = self.records(number, attempt, missing)
            texts += [record.text for record in records]
            # Occurrences are counted over the whole step: a prompt that comes again gets other images.
            rollout, scores = self.scored(number, records, occurrences(texts)[-missing:], seconds)
            kept = (~dropped_groups(scores, settings.group_size)).nonzero()[:, 0].tolist()
            lost += len(records) - len(kept)
            faults.update(scores.faults)
            if not kept:
                break
            groups = self.groups(records, rollout, scores)
            rounds.append(groups.take(kept) if len(kept) < len(records) else groups)
            missing = int(zero_variance(rounds[-1].rewards).sum())
            if not missing:
                break
        if not rounds:
            row, why = next(iter(scores.failures.items()))
            raise RewardError(
                f"step {number}: every group lacks a score, the first one for its image "
                f'{row % settings.group_size} ("{texts[row // settings.group_size]}"): {why}'
            )
        return Collected(tuple(rounds), lost, faults)

    def scored(
        self, number: int, records: Sequence[Prompt], occurrence: Sequence[int], seconds: dict[str, float]
    ) -> tuple[Rollout, Scores]:
        """Groups of these prompts, in micro-batches of whole prompts: each is scored while the next is sampled."""
        settings = self.config.rollout
        parts: list[Rollout] = []
        with Scorer(self.score) as scorer:
            with _clock(seconds, "sample"):
                texts = [record.text for record in records]
                condition = encode(self.policy, texts, settings.sampling.negative_prompt)
            for rows in micro_batches(len(records), settings.micro_batch):
                with _clock(seconds, "sample"):
                    parts.append(self.sample(number, condition.take(rows), [occurrence[row] for row in rows]))
                with _clock(seconds, "decode"):
                    images = self.decode(parts[-1])
                scorer.submit(records[rows.start : rows.stop], images)
            with _clock(seconds, "sample"):
                rollout = concatenate(parts, condition)
                if self.apart:
                    rollout = self.measured(rollout, self.apart)
            with _clock(seconds, "score_wait"):
                scores = scorer.scores()
        seconds["score"] = seconds.get("score", 0.0) + scorer.seconds
        return rollout, scores

    def records(self, number: int, attempt: int, size: int) -> list[Prompt]:
        """The prompts of a step, or those drawn in a later attempt to replace some of them."""
        known, step, seed = len(self.prompts), number - 1, self.config.seed
        rows = further_batch(known, step, attempt, size, seed) if attempt else batch(known, step, size, seed)
        return [self.prompts[row] for row in rows]

    def sample(self, number: int, condition: Condition, occurrence: Sequence[int]) -> Rollout:
        """One micro-batch of groups, with the statistics that are measured while sampling."""
        settings = self.config.rollout
        names = {"entropy", *self.method.credit.statistics, self.sampled} - self.apart
        if self.method.entropy_reward is not None:
            names.add("entropy_cond")
        noise = Noise(self.config.seed, number, occurrence)
        return sample_group(self.policy, condition, settings.group_size, settings.sampling, noise, sorted(names))

    def decode(self, rollout: Rollout) -> UInt8[ndarray, "P G H W 3"]:
        """The pixels, where rewards look at them: on the CPU."""
        return rollout.images(self.policy).permute(0, 1, 3, 4, 2).cpu().numpy()

    @property
    def sampled(self) -> str:
        """The sampler's own log-probability of its tokens, measured to log how far replay is from decoding."""
        return "logp_cfg" if self.scoring.mode == "cfg" else "logp_cond"

    @property
    def apart(self) -> frozenset[str]:
        """The statistics that compare with another prompt than guidance does: they take a pass of their own."""
        with_another = self.config.contrast_prompt not in (None, self.config.rollout.sampling.negative_prompt)
        return CONTRASTS & {*self.method.credit.statistics} if with_another else frozenset()

    def measured(self, rollout: Rollout, names: Collection[str]) -> Rollout:
        """The rollout with these statistics measured anew, under the weights of now."""
        settings = self.config.rollout
        contrast = encode(self.policy, rollout.prompts, self.config.contrast_prompt or "") if self.apart else None
        found = dict(rollout.statistics)
        if own := {*names} - self.apart:
            found |= measure(self.policy, rollout, settings.sampling, own, settings.micro_batch)
        if contrast is not None:
            compared = replace(rollout, condition=contrast)
            found |= measure(self.policy, compared, settings.sampling, self.apart, settings.micro_batch)
        return replace(rollout, statistics=found)

    def score(self, records: Sequence[Prompt], images: UInt8[ndarray, "P G H W 3"]) -> Scores:
        """One score per image, prompt-major; where groups may be lost, images without one are among the failures."""
        ask = score_images if self.config.on_reward_failure == "stop" else score_each
        rows = [record for record in records for _ in range(images.shape[1])]
        return ask(
            self.reward, [*images.reshape(-1, *images.shape[2:])], [r.text for r in rows], [r.metadata for r in rows]
        )

    def groups(self, records: Sequence[Prompt], rollout: Rollout, scores: Scores) -> Groups:
        """The groups with what their images earned."""
        shape = rollout.tokens.shape[:2]
        parts = {name: values.view(shape) for name, values in self.parts(scores).items()}
        rewards = self.rewards(parts) if self.config.reward_weights else scores.total.view(shape)
        return Groups(tuple(records), rollout, rewards, parts)

    def parts(self, scores: Scores) -> Mapping[str, Float[Tensor, " B"]]:
        """The numbers of the reward by name, the total among them where it is not what is maximised."""
        parts = {**scores.parts, "total": scores.total} if self.config.reward_weights else scores.parts
        if unknown := self.config.reward_weights.keys() - parts.keys():
            raise UserError(
                f"reward-weights names {min(unknown)!r}, but {self.reward.name} gives {', '.join(parts)}: choose"
            )
        return parts

    def rewards(self, parts: Mapping[str, Float[Tensor, "P G"]]) -> Float[Tensor, "P G"]:
        """The weighted sum of the parts that the run asks for."""
        weights = self.config.reward_weights
        return weighted_sum([parts[name] for name in weights], [*weights.values()])

    def kept(self, rounds: Sequence[Groups]) -> Groups:
        """What the update sees: all groups, or those that teach something."""
        if self.method.filter_zero_std == "off":
            return rounds[0]
        teaching = [part.take((~zero_variance(part.rewards)).nonzero()[:, 0].tolist()) for part in rounds]
        prompts = [record.text for part in teaching for record in part.records]
        if not prompts:
            return teaching[0]
        return join(teaching, encode(self.policy, prompts, self.config.rollout.sampling.negative_prompt))

    def advantages(self, groups: Groups) -> Float[Tensor, "P G"]:
        """How good each image is, among its group or against what its prompt has earned before."""
        rewards, scale, bonus = groups.rewards, self.method.scale, self.method.entropy_reward
        verdict = any(name.rpartition("/")[2] == "strict" for name in groups.parts)
        if bonus is not None and self.reference is not None and verdict:
            rewards = bonus(rewards, *self.entropies(groups.rollout))
        if isinstance(scale, Tracker):
            weighed, self.history = scale(rewards, groups.rollout.prompts, self.history)
            return weighed
        if self.config.reward_order == "normalize-then-sum":
            weights = self.config.part_weights
            return normalize_then_sum([groups.parts[name] for name in weights], [*weights.values()])
        return advantages(rewards, scale)

    def entropies(self, rollout: Rollout) -> list[Float[Tensor, "P G"]]:
        """Mean entropy of each image's conditional predictions: of the policy that sampled it, of the reference."""
        assert self.reference is not None
        settings, name = self.config.rollout, "entropy_cond"
        reference = measure(self.reference, rollout, settings.sampling, [name], settings.micro_batch)
        return [values[name].mean(-1).cpu() for values in (rollout.statistics, reference)]

    def credit(self, rollout: Rollout, context: Context) -> TokenCredit:
        """Which tokens the method updates, and how much."""
        kind = self.method.credit.embeddings
        embeddings = None
        if kind is not None:
            with torch.no_grad():
                embeddings = self.policy.token_embeddings(rollout.tokens.flatten(0, 1), kind)
            embeddings = embeddings.unflatten(0, rollout.tokens.shape[:2])
        return self.method.credit(rollout, embeddings, self.policy.layout, context)

    def update(self, number: int, groups: Groups) -> dict[str, float]:
        """The optimizer steps on one rollout."""
        settings, method, rollout = self.config.update, self.method, groups.rollout
        earned = self.advantages(groups).to(rollout.tokens.device)
        context = Context(earned, number, self.config.steps, self.config.seed)
        data = rollout.row_condition, rollout.tokens.flatten(0, 1), settings.micro_batch, self.scoring
        ref = None if self.reference is None else score_in_parts(self.reference, *data)
        old = score_in_parts(self.policy, *data) if settings.updates_per_rollout > 1 else None
        rate = learning_rate(number, self.config.steps, settings)
        credit = self.credit(rollout, context)
        gap = 0.0
        for repeat in range(settings.updates_per_rollout):
            if repeat and method.source == "current":
                credit = self.credit(self.measured(rollout, method.credit.statistics), context)
            rows, shares = Rows.of(credit, earned, old, ref), denominators(credit, method.objective)
            sums, lp = backward(
                self.policy, self.reference, method, rollout, rows, shares, self.scoring, settings.micro_batch
            )
            if repeat == 0:
                gap = (lp - rollout.statistics[self.sampled].flatten(0, 1)).abs().max().item()
            norm = move(self.optimizer, rate, settings.max_grad_norm, sums["value"], number)
        return {
            "kl": sums["kl"],
            "clip_fraction": sums["clip_fraction"],
            "policy_loss": sums["policy"],
            "grad_norm": norm,
            "learning_rate": rate,
            "logprob_gap": gap,
            "updated_tokens": credit.mask.float().mean().item(),
        }


@contextmanager
def _clock(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the wall time of a phase, the device's work included."""
    began = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - began
