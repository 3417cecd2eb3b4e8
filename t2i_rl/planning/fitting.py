"""What makes a run fit that does not: flags of `t2i-rl train`, more GPUs, adapters. Arithmetic of the plan."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from models.architectures import Architecture
from t2i_rl.configuration.adapter_presets import ADAPTED, AT_ONCE, RANK
from t2i_rl.planning.plan import peaks
from t2i_rl.planning.plan_config import PlanConfig

WIDER = 2  # times as many GPUs are tried next, up to one for each prompt of a step


def holds(model: Architecture, plan: PlanConfig, room: float) -> bool:
    """Whether it needs no more than so many bytes of each GPU."""
    return max(peaks(model, plan).values()) <= room


def ways(plan: PlanConfig) -> Iterator[tuple[str, PlanConfig]]:
    """The run as it is, then with flags that change no result but by rounding: few before many, and of as many those
    that cost the least speed first."""
    flags = [
        (
            f"--evaluation.batch {plan.trained_at_once}",
            "evaluation_batch",
            min(plan.evaluation_batch, plan.trained_at_once),
        ),
        ("--rollout.micro-batch 1", "rollout_batch", min(plan.rollout_batch, 1)),
        ("--dtype bfloat16", "dtype", "bfloat16"),
        ("--update.gradient-checkpointing", "gradient_checkpointing", True),
        ("--update.micro-batch 1", "update_batch", 1),
    ]
    new = [(flag, name, value) for flag, name, value in flags if getattr(plan, name) != value]
    for size in range(len(new) + 1):
        for chosen in combinations(new, size):
            changed: dict[str, Any] = {name: value for _, name, value in chosen}
            yield " ".join(flag for flag, *_ in chosen), replace(plan, **changed)


def in_words(found: Sequence[str]) -> str:
    return "; or ".join(found) or "a larger card (docs/models.md)"


def with_adapters(plan: PlanConfig) -> PlanConfig:
    """As the presets with adapters have it."""
    judged = min(plan.evaluation_batch, AT_ONCE)
    small = replace(plan, dtype="bfloat16", gradient_checkpointing=True, group_batch=AT_ONCE, evaluation_batch=judged)
    return replace(small, lora_rank=RANK, trainable="")


def what_fits(model: Architecture, plan: PlanConfig, room: float) -> list[str]:
    """What to change, in words: the fewest flags on these GPUs, other ones on more, then adapters; perhaps nothing."""
    found, before, gpus = list[str](), None, plan.gpus
    while gpus <= max(plan.gpus, plan.prompts_per_step):
        on = "" if gpus == plan.gpus else f" on {gpus} GPUs"
        flags = next((said for said, turned in ways(replace(plan, gpus=gpus)) if holds(model, turned, room)), None)
        if flags not in (None, before):
            found.append((flags or "the same") + on)
        if flags == "":
            break
        before, gpus = flags, gpus * WIDER
    if not plan.lora_rank and holds(model, with_adapters(plan), room):
        found.append(f"adapters (a preset that ends in {ADAPTED}, t2i-rl presets)")
    return found
