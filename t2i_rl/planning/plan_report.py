"""What `t2i-rl plan` prints."""

from dataclasses import replace

from models.architectures import Architecture, count
from t2i_rl.planning.fitting import in_words, what_fits
from t2i_rl.planning.network import network_lines, traffic
from t2i_rl.planning.plan import USABLE, adapter_entries, floors, memory, most_prompts, peaks, trained
from t2i_rl.planning.plan_config import PlanConfig


def report(model: Architecture, plan: PlanConfig) -> list[str]:
    """The lines to print."""
    room = USABLE * plan.memory_gb * 1e9
    asked = plan
    plan = replace(plan, rollout_batch=plan.rollout_batch or most_prompts(model, plan, room))
    lines = [f"{plan.model}, {plan.gpus} GPU(s) of {plan.memory_gb:g} GB, {plan.dtype}"]
    if plan.parts > 1:
        lines.append(f"what is trained is split in {plan.parts} parts")
    lines += ["", "parameters, millions"]
    lines += [f"  {name:<28}{count(modules) / 1e6:>10,.1f}" for name, modules in model.parts.items()]
    learned = plan.lora_rank * adapter_entries(model) or trained(model, plan)
    lines += [f"  {'trained':<28}{learned / 1e6:>10,.1f}", "", "memory per GPU, GB"]
    for phase, parts in memory(model, plan).items():
        lines += [f"  {f'{phase}: {name}':<28}{value / 1e9:>10.2f}" for name, value in parts.items() if value]
    most = peaks(model, plan)
    judges_more = plan.evaluation_batch > asked.trained_at_once
    judged = f"  (evaluation's {plan.evaluation_batch} at once)" if judges_more else ""
    lines += [
        f"  {f'peak while {phase}':<28}{peak / 1e9:>10.2f}{judged if phase in ('sampling', 'pixels') else ''}"
        for phase, peak in most.items()
    ]
    fits = max(most.values()) <= room
    said = "fits" if fits else "does NOT fit"
    lines.append(
        f"  it {said} into {USABLE:.0%} of {plan.memory_gb:g} GB, sampling {plan.rollout_batch} prompt(s) at once"
    )
    if not fits:
        lines.append(f"  what would: {in_words(what_fits(model, asked, room))}")
    lines += ["", "least time of a step, by bytes and operations"]
    found, least = floors(model, plan), list[float]()
    for index, phase in enumerate(("sampling", "update")):
        operations, moved = found["operations"][index], found["bytes"][index]
        by_bytes, by_operations = moved / plan.bandwidth_gbs / 1e9, operations / plan.tflops / 1e12
        least.append(max(by_bytes, by_operations))
        lines.append(
            f"  {phase:<10}{moved / 1e12:>9.2f} TB {by_bytes:>8.2f} s{operations / 1e12:>12.1f} Tflop "
            f"{by_operations:>8.2f} s   at least {least[-1]:.2f} s"
        )
    return [*lines, *network_lines(traffic(learned, plan), plan, *least)]
