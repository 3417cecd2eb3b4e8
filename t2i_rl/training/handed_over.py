"""A reward and a method that a program hands to a run, in place of the names of a configuration."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from rewards.catalogue import REWARDS, RewardEntry
from rewards.files.noted import note_code
from rewards.own import as_reward
from rewards.reward import Reward
from t2i_rl.configuration.config import TrainConfig
from t2i_rl.errors import UserError
from t2i_rl.methods.catalogue import METHODS
from t2i_rl.methods.method import Method
from t2i_rl.methods.variants import base_name


def taught(config: TrainConfig, reward: Callable[..., Any] | Reward | None, method: Method | None) -> TrainConfig:
    """The configuration with a reward and a method by their names, which this process knows from now on.

    Raises UserError for the name of another one that is here.
    """
    if reward is not None:
        name = str(getattr(reward, "name", None) or getattr(reward, "__name__", type(reward).__name__))
        if name in REWARDS and getattr(REWARDS[name].build, "func", None) is not given:
            raise UserError(f"there is a reward {name!r} already: give yours another name")
        REWARDS[name] = RewardEntry(partial(given, reward, name))
        config = replace(config, reward=name)
    if method is not None:
        if METHODS.get(method.name, method) != method:
            raise UserError(f"there is a method {method.name!r} already: give yours another name")
        if base_name(method.name) == method.name:  # a variant is found by what it spells out
            METHODS[method.name] = method
        config = replace(config, method=method.name)
    return config


def given(reward: Callable[..., Any] | Reward, name: str, device: str) -> Reward:
    """A reward that was handed over, however often it is built."""
    note_code(getattr(reward, "__module__", None))
    return as_reward(reward, name, device)
