"""Which training a card holds, for every model with a name: arithmetic of `t2i_rl.planning.plan`, nothing measured."""

from dataclasses import replace

from models.registry import ANSWERING, MODELS
from t2i_rl.configuration.adapter_presets import with_adapters
from t2i_rl.configuration.config import TrainConfig
from t2i_rl.configuration.presets import TOYS, preset
from t2i_rl.planning.plan_config import PlanConfig

CARDS = (24, 40, 80, 141)  # GB
METHOD = "critical"  # a method with a reference: others take no more


def frugal(column: TrainConfig) -> TrainConfig:
    """The whole model, in the least memory that changes no result but by rounding."""
    update = replace(column.update, gradient_checkpointing=True, micro_batch=1)
    return replace(column, dtype="bfloat16", update=update)


WAYS = {"whole": lambda column: column, "whole, frugal": frugal, "adapters": with_adapters}


def table() -> list[tuple[str, ...]]:
    """A row for each model: its name, and for each card the first of the ways that it holds, with the peak in GB."""
    from models.architectures import architecture
    from t2i_rl.planning.plan import USABLE, peaks

    rows = [("model", *(f"{card} GB" for card in CARDS))]
    for name, entry in MODELS.items():
        if name in TOYS or entry.like:
            continue
        method = "cfg" if entry.family in ANSWERING else METHOD  # critical is of pictures
        model, column = architecture(name), preset(name, None, method)
        held = ["-"] * len(CARDS)
        for place, card in enumerate(CARDS):
            for way, turn in WAYS.items():
                peak = max(peaks(model, replace(PlanConfig.of(turn(column), name), memory_gb=card)).values()) / 1e9
                if peak <= USABLE * card:
                    held[place] = f"{way} ({peak:.0f})"
                    break
        rows.append((name, *held))
    return rows
