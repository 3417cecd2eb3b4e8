"""How many prompts are sampled at once where a run leaves it open: on a card as many as it holds by the plan."""

from dataclasses import replace

from models.device import device_of, memory_of
from models.kin import kin
from models.registry import ANSWERING, MODELS
from t2i_rl.configuration.config import TrainConfig
from t2i_rl.parallel.devices import processes
from t2i_rl.planning.plan_config import PlanConfig

FILLED = 0.75  # of the card, at the peak: rewards in this process and what no plan sees have the rest


def with_rollout_batch(config: TrainConfig) -> TrainConfig:
    """With that number; the same for a run that names one, on a CPU, and for a model whose sizes are not known.

    Raises ModelError for a device that is not here.
    """
    device = device_of(config.device)
    if config.rollout.micro_batch or not device.startswith("cuda"):
        return config
    like = kin(config.model)
    if like is None or MODELS[like].family in ANSWERING:
        return config
    from models.architectures import architecture
    from t2i_rl.planning.plan import most_prompts

    plan = PlanConfig.of(config, like, processes())
    plan = replace(plan, memory_gb=memory_of(device) / 1e9)
    found = most_prompts(architecture(plan.model), plan, FILLED * memory_of(device))
    return replace(config, rollout=replace(config.rollout, micro_batch=found))
