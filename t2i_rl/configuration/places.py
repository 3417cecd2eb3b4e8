"""Where the paths of a configuration begin."""

import re
from dataclasses import replace
from pathlib import Path

from models.registry import MODELS, OWN
from t2i_rl.configuration.config import TrainConfig
from t2i_rl.prompts.reading import SHAPES_SPLITS
from t2i_rl.prompts.sets import NAMES


def rooted(config: TrainConfig) -> TrainConfig:
    """With the paths of the model and the prompts from the root: the run finds them again wherever it goes on from.

    Names stay: those that we know, and what is no path here, such as an id of the hub.
    """
    return replace(
        config,
        model=config.model if config.model in MODELS else _absolute(config.model),
        prompts=_prompts(config.prompts),
        heldout=_prompts(config.heldout),
    )


def placeless(config: TrainConfig) -> TrainConfig:
    """With the last names alone of what lies in folders, for others to read: names and ids of the hub stay."""
    return replace(config, model=_last(config.model), prompts=_last(config.prompts), heldout=_last(config.heldout))


def _last(source: str) -> str:
    family, at, place = source.rpartition("@") if re.fullmatch(OWN, source) else ("", "", source)
    is_path = place.startswith(("/", ".", "~")) or Path(place).exists()
    return f"{family}{at}{Path(place).name}" if is_path else source


def _prompts(source: str) -> str:
    return source if source in SHAPES_SPLITS or source in NAMES else _absolute(source)


def _absolute(source: str) -> str:
    family, at, place = source.rpartition("@") if re.fullmatch(OWN, source) else ("", "", source)
    path = Path(place)
    return f"{family}{at}{path.absolute()}" if path.exists() else source
