"""The training loop: sample a group, decode it, score it, credit its tokens, update the policy.

One process for now. What several would share is reached through one place each: the data order
(`prompts.batch`), the loss denominators (`objectives.denominators`, over the whole batch), the weights
that the rollout reads (`Trainer.policy`). Groups are never split.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from models.policy import Policy
from rewards.reward import Reward, Scores, score_images
from t2i_rl.advantages import advantages, zero_variance
from t2i_rl.baselines import Running, Tracker
from t2i_rl.config import TrainConfig, UpdateConfig
from t2i_rl.credit import Context, TokenCredit
from t2i_rl.errors import DivergenceError
from t2i_rl.logprobs import micro_batches, score, score_in_parts
from t2i_rl.methods import Method
from t2i_rl.noise import occurrences
from t2i_rl.objectives import denominators
from t2i_rl.prompts import Prompt, batch
from t2i_rl.rollout import Rollout, concatenate
from t2i_rl.sampler import Noise, sample_group


def learning_rate(step: int, steps: int, update: UpdateConfig) -> float:
    """The rate of step 1..steps: linear warm-up, then the schedule down to `final_ratio`."""
    if step <= update.warmup_steps:
        return update.learning_rate * step / update.warmup_steps
    progress = (step - update.warmup_steps) / max(1, steps - update.warmup_steps)
    fall = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    ratio = 1.0 if update.schedule == "constant" else update.final_ratio
    return update.learning_rate * (ratio + (1 - ratio) * fall[update.schedule])


class Trainer:
    """A policy, what scores it, and the state that a step changes: weights and optimizer."""

    def __init__(
        self,
        config: TrainConfig,
        policy: Policy,
        method: Method,
        reward: Reward,
        prompts: Sequence[Prompt],
    ) -> None:
        self.config, self.policy, self.method = config, policy, method
        self.reward, self.prompts = reward, prompts
        self.reference = policy.reference() if method.needs_reference else None
        self.history: dict[str, Running] = {}  # what each prompt has earned, for methods that remember it
        self.optimizer = torch.optim.AdamW(
            policy.trainable_parameters(),
            lr=config.update.learning_rate,
            betas=config.update.betas,
            weight_decay=config.update.weight_decay,
        )

    def step(self, number: int) -> dict[str, float]:
        """One rollout and its update; returns the step's metrics (`t2i_rl.tracking`)."""
        seconds: dict[str, float] = {}
        records = self.records(number)
        with _clock(seconds, "sample"):
            rollout = self.sample(number, [record.text for record in records])
        with _clock(seconds, "decode"):
            images = rollout.images(self.policy)
        with _clock(seconds, "score"):
            scores = self.score(records, images)
        with _clock(seconds, "update"):
            rewards = scores.total.view(rollout.tokens.shape[:2])
            weighed = self.advantages(rewards, rollout.prompts).to(rollout.tokens.device)
            credit = self.credit(rollout, Context(weighed, number, self.config.steps, self.config.seed))
            updated = self.update(number, rollout, weighed, credit)
        metrics = {
            "step": number,
            "reward": rewards.mean().item(),
            "reward_std": rewards.std(dim=1).mean().item(),
            **{f"reward/{name}": values.mean().item() for name, values in scores.parts.items()},
            "zero_variance": zero_variance(rewards).float().mean().item(),
            **updated,
            "updated_tokens": credit.mask.float().mean().item(),
            **{f"seconds/{phase}": spent for phase, spent in seconds.items()},
            "images_per_second": rewards.numel() / sum(seconds.values()),
        }
        if "entropy" in rollout.statistics:
            metrics["entropy"] = rollout.statistics["entropy"].mean().item()
        return metrics

    def records(self, number: int) -> list[Prompt]:
        """The prompts of a step."""
        order = batch(len(self.prompts), number - 1, self.config.rollout.prompts_per_step, self.config.seed)
        return [self.prompts[index] for index in order]

    def sample(self, number: int, texts: Sequence[str]) -> Rollout:
        """The step's groups, sampled in micro-batches of whole prompts."""
        condition, settings = self.policy.encode(texts), self.config.rollout
        # The log-probability of the sampled tokens is measured to log how far replay is from decoding.
        statistics = sorted({*self.method.credit.statistics, "logp_cond"})
        numbers = occurrences(texts)
        parts = [
            sample_group(
                self.policy,
                condition.take(rows),
                settings.group_size,
                settings.sampling,
                Noise(self.config.seed, number, [numbers[row] for row in rows]),
                statistics,
            )
            for rows in micro_batches(len(texts), settings.micro_batch)
        ]
        return concatenate(parts, condition)

    def score(self, records: Sequence[Prompt], images: UInt8[Tensor, "P G 3 H W"]) -> Scores:
        """One score per image, prompt-major."""
        arrays = list(images.flatten(0, 1).permute(0, 2, 3, 1).cpu().numpy())
        rows = [record for record in records for _ in range(images.shape[1])]
        return score_images(self.reward, arrays, [row.text for row in rows], [row.metadata for row in rows])

    def advantages(self, rewards: Float[Tensor, "P G"], prompts: Sequence[str]) -> Float[Tensor, "P G"]:
        """How good each image is, among its group or against what its prompt has earned before."""
        if not isinstance(self.method.scale, Tracker):
            return advantages(rewards, self.method.scale)
        weighed, self.history = self.method.scale(rewards, prompts, self.history)
        return weighed

    def credit(self, rollout: Rollout, context: Context) -> TokenCredit:
        """Which tokens the method updates, and how much."""
        kind = self.method.credit.embeddings
        embeddings = None
        if kind is not None:
            with torch.no_grad():
                embeddings = self.policy.token_embeddings(rollout.tokens.flatten(0, 1), kind)
            embeddings = embeddings.unflatten(0, rollout.tokens.shape[:2])
        return self.method.credit(rollout, embeddings, self.policy.layout, context)

    def update(
        self, number: int, rollout: Rollout, weighed: Float[Tensor, "P G"], credit: TokenCredit
    ) -> dict[str, float]:
        """The optimizer steps on one rollout."""
        settings, condition = self.config.update, rollout.row_condition
        tokens, weight, mask = (values.flatten(0, 1) for values in (rollout.tokens, credit.weight, credit.mask))
        reference = old = None
        if self.reference is not None:
            reference = score_in_parts(self.reference, condition, tokens, settings.micro_batch)
        if settings.updates_per_rollout > 1:
            old = score_in_parts(self.policy, condition, tokens, settings.micro_batch)
        kl_weight = None if credit.kl is None else credit.kl.flatten(0, 1)
        weighed = (weighed if credit.advantages is None else credit.advantages).flatten(0, 1)
        shares = denominators(credit, self.method.objective)
        rate = learning_rate(number, self.config.steps, settings)
        sampled = rollout.statistics["logp_cond"].flatten(0, 1)
        gap = 0.0
        for repeat in range(settings.updates_per_rollout):
            sums = {"value": 0.0, "policy": 0.0, "kl": 0.0, "clip_fraction": 0.0}
            for rows in micro_batches(len(tokens), settings.micro_batch):
                lp = score(self.policy, condition.take(rows), tokens[rows])
                if repeat == 0:
                    gap = max(gap, (lp.detach() - sampled[rows]).abs().max().item())
                part = self.method.loss(
                    lp,
                    None if old is None else old[rows],
                    None if reference is None else reference[rows],
                    weighed[rows],
                    weight[rows],
                    mask[rows],
                    shares,
                    None if kl_weight is None else kl_weight[rows],
                    self.policy.layout,
                )
                part.value.backward()
                for name in sums:
                    sums[name] += getattr(part, name).item()
            norm = torch.nn.utils.clip_grad_norm_(self.policy.trainable_parameters(), settings.max_grad_norm).item()
            for name, value in (("loss", sums["value"]), ("gradient norm", norm)):
                if not math.isfinite(value):
                    raise DivergenceError(f"step {number}: the {name} is {value}; the policy keeps its last weights")
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return {
            "kl": sums["kl"],
            "clip_fraction": sums["clip_fraction"],
            "policy_loss": sums["policy"],
            "grad_norm": norm,
            "learning_rate": rate,
            "logprob_gap": gap,
        }


@contextmanager
def _clock(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Record the wall time of a phase, the device's work included."""
    began = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds[phase] = time.perf_counter() - began
