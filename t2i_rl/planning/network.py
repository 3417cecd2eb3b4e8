"""What the GPUs of a run send each other in a step, and the least time of the whole step.

Arithmetic, nothing measured: the bytes that each GPU receives in rings (as many as it sends), at the speed of the
slowest link of the ring. A ring inside a machine runs at `intra_gbs`; one that leaves it, at `inter_gbs`.
"""

from typing import NamedTuple

from t2i_rl.planning.plan_config import PlanConfig

BYTES = {"float32": 4, "bfloat16": 2}


class Traffic(NamedTuple):
    """Bytes of one kind. beside: whether they travel while the update computes. far: whether over other machines."""

    what: str
    bytes: float
    beside: bool
    far: bool


def traffic(learned: int, plan: PlanConfig) -> list[Traffic]:
    """Of so many trained entries.

    In shares: the update gathers every layer in the model's precision for the forward and again for the backward pass
    of each micro-batch and sums its float32 gradient; the reference is gathered once per micro-batch; the copy that
    samples is refreshed once per step. Copies of the shares sum theirs besides. Where each GPU holds all, gradients
    are summed once per step.
    """
    parts, size = plan.parts, BYTES[plan.dtype]
    copies, batches = plan.gpus // parts, -(-plan.images_per_gpu // plan.update_batch)
    received, apart = (parts - 1) / parts, parts > plan.gpus_per_node
    among, beyond = 2 * (copies - 1) / copies * 4 * learned / parts, plan.gpus > plan.gpus_per_node
    if parts == 1:
        return [Traffic("gradients summed", among, False, beyond)] if copies > 1 else []
    whole = learned * received
    found = [
        Traffic("layers gathered", batches * 2 * size * whole, True, apart),
        Traffic("gradients summed", batches * 4 * whole, True, apart),
        Traffic("gradients of copies", batches * among, True, beyond),
        Traffic("reference gathered", batches * size * whole * plan.reference, True, apart),
        Traffic("copy refreshed", size * whole, False, apart),
    ]
    return [kind for kind in found if kind.bytes]


def seconds(kind: Traffic, plan: PlanConfig) -> float:
    return kind.bytes / 1e9 / (plan.inter_gbs if kind.far else plan.intra_gbs)


def network_lines(sent: list[Traffic], plan: PlanConfig, sampling: float, update: float) -> list[str]:
    """The lines of a plan for this and for the whole step, whose phases compute for so many seconds."""
    lines = ["", "from other GPUs, per GPU and step"] if sent else []
    for kind in sent:
        link = "other machines" if kind.far else "its machine"
        lines.append(
            f"  {kind.what:<28}{kind.bytes / 1e9:>10.2f} GB {seconds(kind, plan):>8.2f} s  from {link}"
            f"{', while the update computes' if kind.beside else ''}"
        )
    beside, alone = (sum(seconds(kind, plan) for kind in sent if kind.beside is way) for way in (True, False))
    total = sampling + max(update, beside) + alone
    phases = {
        "sampling": sampling,
        "the update's arithmetic": update if update >= beside else 0,
        "the network during the update": beside if beside > update else 0,
        "the network after it": alone,
    }
    bound = max(phases, key=lambda name: phases[name])
    speed = plan.prompts_per_step * plan.group_size / total
    return [*lines, "", f"a step takes at least {total:.2f} s ({speed:.1f} {plan.samples}/s), bound by {bound}"]
