"""One optimizer step: gradients added up over micro-batches, then weights moved unless something is not finite."""

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from models.policy import Policy
from t2i_rl.configuration.config import UpdateConfig
from t2i_rl.errors import DivergenceError
from t2i_rl.methods.method import Method
from t2i_rl.methods.objectives import Denominators, ImageRows
from t2i_rl.parallel.ranks import ALONE, Ranks
from t2i_rl.parallel.weights import local, whole
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.log_probs import TokenDistribution, micro_batches, replay


def learning_rate(step: int, steps: int, update: UpdateConfig) -> float:
    """The rate of step 1..steps: a linear warm-up, then the schedule.

    Step s of a warm-up of W steps gets s / W of the rate, so its last step all of it. The first step after it (step 1
    without one) gets all of it too. The n steps after the warm-up stand at 0, 1 / n, ... (n - 1) / n of the schedule's
    way: its end, `final_ratio`, is what would be left after the last step, which therefore never gets a rate of 0.
    """
    if step <= update.warmup_steps:
        return update.learning_rate * step / update.warmup_steps
    progress = (step - 1 - update.warmup_steps) / (steps - update.warmup_steps)
    fall = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    ratio = 1.0 if update.schedule == "constant" else update.final_ratio
    return update.learning_rate * (ratio + (1 - ratio) * fall[update.schedule])


def backward(
    policy: Policy,
    reference: Policy | None,
    method: Method,
    rollout: Rollout,
    images: ImageRows,
    shares: Denominators,
    distribution: TokenDistribution,
    micro_batch: int,
) -> tuple[dict[str, float], Float[Tensor, "R N"]]:
    """Leave the gradient of the rollout's loss in the weights.

    Returns the loss and its parts that there are (`t2i_rl.methods.objectives.Loss`), and the log-probabilities of the
    tokens. The numbers are looked at once, in the end: the host sends a micro-batch while another one is computed.
    """
    condition, tokens, valid = rollout.row_condition, rollout.tokens.flatten(0, 1), rollout.row_valid
    sums: dict[str, Float[Tensor, ""]] = {}
    log_probs = []
    with_entropy = method.objective.entropy_bonus != 0
    compared = reference if method.objective.kl == "full" else None
    for part in micro_batches(len(tokens), micro_batch):
        rows = condition.take(part), tokens[part]
        counted = None if valid is None else valid[part]
        replayed = replay(policy, *rows, distribution, with_entropy, compared, valid=counted)
        loss = method.loss(replayed, images.take(part), shares, policy.layout)
        loss.value.backward()
        for name, value in vars(loss).items():
            if value is not None:
                sums[name] = sums.get(name, 0) + value.detach().double()
        log_probs.append(replayed.lp.detach())
    return dict(zip(sums, torch.stack([*sums.values()]).tolist(), strict=True)), torch.cat(log_probs)


def even_parts(prompts: int, number: int) -> list[slice]:
    """So many prompts in so many consecutive parts, none of which has two more than another, and none nothing."""
    cuts = [prompts * part // number for part in range(number + 1)]
    return [slice(start, stop) for start, stop in pairwise(cuts) if start < stop]


def gradients(optimizer: torch.optim.Optimizer, ranks: Ranks) -> list[Tensor]:
    """What the optimizer's next step would take.

    Several processes have one of every parameter: without a picture in its share, one has none of the vision tower.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters if ranks.world > 1 else ():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def apply_gradient(
    optimizer: torch.optim.Optimizer, rate: float, max_norm: float, loss: float, step: int, ranks: Ranks = ALONE
) -> float:
    """Clip the gradient, let the optimizer step and clear the gradient; returns its norm before clipping.

    Raises DivergenceError, before a weight moves, if the loss or the norm is not finite; after it, if a weight is not.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = whole(torch.nn.utils.clip_grad_norm_(parameters, max_norm)).item()
    for name, value in (("loss", loss), ("gradient norm", norm)):
        if not math.isfinite(value):
            raise DivergenceError(f"step {step}: the {name} is {value}; the policy keeps its last weights")
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    held = [part for part in map(local, parameters) if part.numel()]
    if not all(ranks.each(torch.nn.utils.get_total_norm(held, math.inf).isfinite().item())):
        raise DivergenceError(
            f"step {step}: the optimizer's step left weights that are not finite: choose a smaller "
            "update.learning-rate; the last checkpoint is as it was"
        )
    optimizer.zero_grad(set_to_none=True)
    return norm
