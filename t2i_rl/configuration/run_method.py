"""The method of a run: the one that it names, with the settings of the run that belong to no method.

The papers give beta and the clip of the running weight for a model and a reward, and compare methods under them. So
both are settings of the run, `update.beta` and `update.dynamic_clip`, and win over what a method has of its own.
Nothing here imports torch.
"""

from dataclasses import replace

from t2i_rl.configuration.config import TrainConfig
from t2i_rl.errors import UserError
from t2i_rl.methods.catalogue import find_method
from t2i_rl.methods.method import Method
from t2i_rl.methods.variants import settings_of

SPELT = {"beta": "objective.beta", "dynamic_clip": "dynamic.clip"}  # by their names inside a method's brackets


def run_method(config: TrainConfig) -> Method:
    """The method with the run's beta and clip. A method without a KL gets one by a beta.

    Raises UserError for a setting that stands in the method's brackets too, and for a clip where nothing is clipped.
    """
    method, update, spelt = find_method(config.method), config.update, settings_of(config.method)
    for name, path in SPELT.items():
        if getattr(update, name) is not None and path in spelt:
            raise UserError(
                f"the method {config.method!r} sets {path}, and so does update.{name.replace('_', '-')} "
                f"({getattr(update, name)}): keep one of the two"
            )
    if update.beta is not None:
        method = replace(method, objective=replace(method.objective, beta=update.beta))
    if update.dynamic_clip is not None:
        if method.dynamic is None:
            raise UserError(
                f"update.dynamic-clip has no effect: method {config.method} has no running weight to clip, so leave it "
                "out or choose a method that has one, such as critical"
            )
        method = replace(method, dynamic=replace(method.dynamic, clip=update.dynamic_clip))
    return method


def with_method(config: TrainConfig, name: str) -> TrainConfig:
    """The settings of a preset with the method of that name.

    Its beta goes to methods that have a KL, its clip to those that have a running weight, unless they spell out their
    own in brackets: DAPO stays without a KL in a column that has one.
    """
    method, spelt = find_method(name), settings_of(name)
    has_kl = method.objective.beta > 0 and SPELT["beta"] not in spelt
    has_weight = method.dynamic is not None and SPELT["dynamic_clip"] not in spelt
    update = replace(
        config.update,
        beta=config.update.beta if has_kl else None,
        dynamic_clip=config.update.dynamic_clip if has_weight else None,
    )
    return replace(config, method=name, update=update)
