"""What the papers' runs take: GPUs, the least hours, disk. Arithmetic of `t2i_rl.planning.plan`, nothing measured."""

from models.architectures import Architecture, architecture, count
from t2i_rl.configuration.adapter_presets import ADAPTED
from t2i_rl.configuration.config import TrainConfig
from t2i_rl.configuration.presets import find_preset, papers
from t2i_rl.planning.fitting import holds, ways
from t2i_rl.planning.plan import BYTES, USABLE, adapter_entries, copied, floors, trained
from t2i_rl.planning.plan_config import PlanConfig

CARD = 80  # GB; speeds are an H100's, the plan's own
GPUS, MACHINE = (1, 2, 4, 8), 8
ROOM = USABLE * CARD * 1e9
HEAD = (
    "preset",
    f"GPUs of {CARD} GB, at least",
    "with these flags",
    "hours, at least",
    f"on {MACHINE}, with",
    "hours, at least",
    "a checkpoint, GB",
)


def table() -> list[tuple[str, ...]]:
    """A row for each of the papers' runs, and for the same with adapters."""
    each = [*papers(), *(name + ADAPTED for name in papers())]
    models = {model: architecture(model) for model in {find_preset(name).model for name in each}}
    return [HEAD, *(row(name, find_preset(name), models[find_preset(name).model]) for name in each)]


def row(name: str, config: TrainConfig, model: Architecture) -> tuple[str, ...]:
    """The fewest GPUs that hold the run, and a machine of them, each with the fewest flags and the least hours; the
    size of a checkpoint."""
    flags, few = next(found for gpus in GPUS if (found := fitting(config, model, gpus)))
    on_all = fitting(config, model, MACHINE)
    assert on_all is not None  # more GPUs hold no less
    hours = [f"{config.steps * least(model, plan) / 3600:.1f}" for plan in (few, on_all[1])]
    words = [said or "as it is" for said in (flags, on_all[0])]
    return name, str(few.gpus), words[0], hours[0], words[1], hours[1], f"{saved(model, few) / 1e9:.1f}"


def fitting(config: TrainConfig, model: Architecture, gpus: int) -> tuple[str, PlanConfig] | None:
    """The flags with which so many GPUs hold the run; None where none do."""
    plan = PlanConfig.of(config, config.model, gpus)
    return next(((said, turned) for said, turned in ways(plan) if holds(model, turned, ROOM)), None)


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
