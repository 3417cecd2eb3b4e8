"""What the papers' runs take: GPUs, the least hours, disk. Arithmetic of `t2i_rl.planning.plan`, nothing measured."""

from models.architectures import Architecture, architecture, count
from models.registry import ANSWERING, MODELS
from t2i_rl.configuration.adapter_presets import ADAPTED
from t2i_rl.configuration.config import TrainConfig
from t2i_rl.configuration.presets import find_preset, papers
from t2i_rl.planning.cards import frugal
from t2i_rl.planning.plan import BYTES, USABLE, adapter_entries, copied, floors, peaks, trained
from t2i_rl.planning.plan_config import PlanConfig

CARD = 80  # GB; speeds are an H100's, the plan's own
GPUS = (1, 2, 4, 8)
HEAD = ("preset", f"GPUs of {CARD} GB", "trained", "hours, at least", "a checkpoint, GB")


def table() -> list[tuple[str, ...]]:
    """A row for each of the papers' runs of models that draw, and for the same with adapters."""
    drawing = [name for name in papers() if MODELS[find_preset(name).model].family not in ANSWERING]
    models = {find_preset(name).model: architecture(find_preset(name).model) for name in drawing}
    each = [*drawing, *(name + ADAPTED for name in drawing)]
    return [HEAD, *(row(name, find_preset(name), models[find_preset(name).model]) for name in each)]


def row(name: str, config: TrainConfig, model: Architecture) -> tuple[str, ...]:
    """The fewest GPUs that hold the run, as it is or frugally, the least hours on these, and a checkpoint's size."""
    ways = {"adapters": config} if config.lora.rank else {"whole": config, "whole, frugal": frugal(config)}
    plans = ((way, PlanConfig.of(turned, config.model, gpus)) for gpus in GPUS for way, turned in ways.items())
    way, plan = next((way, plan) for way, plan in plans if holds(model, plan))
    hours, disk = config.steps * least(model, plan) / 3600, saved(model, plan) / 1e9
    return name, str(plan.gpus), way, f"{hours:.1f}", f"{disk:.1f}"


def holds(model: Architecture, plan: PlanConfig) -> bool:
    return max(peaks(model, plan).values()) <= USABLE * CARD * 1e9


def least(model: Architecture, plan: PlanConfig) -> float:
    """Seconds of a step that neither the memory nor the processors of a GPU can save; what GPUs send comes on top."""
    found = floors(model, plan)
    operations = [each / plan.tflops / 1e12 for each in found["operations"]]
    moved = [each / plan.bandwidth_gbs / 1e9 for each in found["bytes"]]
    return sum(map(max, operations, moved))


def saved(model: Architecture, plan: PlanConfig) -> float:
    """Bytes of a checkpoint: what the family's format holds, AdamW's moments and float32 copies; adapters alone."""
    if plan.lora_rank:
        return 3 * 4 * plan.lora_rank * adapter_entries(model)
    learned = trained(model, plan)
    return BYTES[plan.dtype] * count([model.module]) + (8 + 4 * copied(plan)) * learned
