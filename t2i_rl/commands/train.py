"""`t2i-rl train`: flags over a run file over a preset, or a run that goes on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from models.device import device_of, in_words
from models.errors import ModelError
from models.kin import kin
from models.registry import find as find_model
from t2i_rl.commands.arguments import one_sentence, parse
from t2i_rl.configuration.checks import check_settings, check_shares
from t2i_rl.configuration.config import CONFIG, RewardSpecification, TrainConfig, read_config
from t2i_rl.configuration.presets import check_named, find_preset, preset, preset_name, take_method
from t2i_rl.configuration.run_method import run_method
from t2i_rl.errors import UserError
from t2i_rl.outputs import free_or_next
from t2i_rl.parallel.devices import processes
from t2i_rl.planning.dry_run import report
from t2i_rl.planning.readiness import memory, obstacles
from t2i_rl.planning.rollout_batch import with_rollout_batch
from t2i_rl.settings import override, read_settings
from t2i_rl.training.run_folder import ModelName, checkpoint_of, is_run

if TYPE_CHECKING:
    from t2i_rl.parallel.ranks import Ranks

NAMED = ("model", "method", "reward", "prompts", "heldout")


@dataclass(frozen=True)
class TrainChoice:
    """What picks the preset that the run file and the other flags then override, and what is asked for without one."""

    preset: str | None = None
    model: ModelName | None = None
    method: str | None = None
    reward: RewardSpecification | None = None
    prompts: str | None = None
    heldout: str | None = None
    config: Path | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class Resume:
    """Continue a run that was stopped, or that is to do more steps. Its other settings stay as they were.

    Attributes:
        resume: the run folder.
        steps: a new number of steps for the whole run, not only for the rest.
        device: where everything runs from now on, such as cpu or cuda.
        reward: the same reward where it is now: served at another address, or in this process.
    """

    resume: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    steps: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    device: Annotated[str | None, tyro.conf.arg(metavar="STR")] = None
    reward: RewardSpecification | None = None


@dataclass(frozen=True)
class Resolution:
    """What a command line comes to.

    preset: whose settings the flags and the run file override; None: the defaults.
    taken: what of model, method, reward and prompts neither they nor the run file name.
    """

    config: TrainConfig
    preset: str | None
    taken: tuple[str, ...]
    dry_run: bool

    def said(self) -> str:
        """What was not named and where it is from, for people."""
        source = "no preset: the defaults" if self.preset is None else f"preset {self.preset}{self._likeness()}"
        values = [f"{name} {getattr(self.config, name)}" for name in self.taken]
        return source + ("; not named, so taken from it: " + ", ".join(values) if values else "")

    def _likeness(self) -> str:
        """Why the preset of one model is taken for another."""
        model, of = self.config.model, find_preset(self.preset or "").model
        like = kin(model)
        if model == of or like is None:  # or the user knows more
            return ""
        if like == of:
            return f" ({model} has the sizes of {of})"
        return f" (of {of}, the nearest to {model}, whose guidance and micro-batches are its own)"


def resolve(arguments: Sequence[str]) -> TrainConfig:
    """The configuration alone."""
    return resolution(arguments).config


def resolution(arguments: Sequence[str]) -> Resolution:
    """Flag > run file > preset. Names that nothing goes by are refused here, before torch is imported.

    The bare name of the preset's own method is that method with the preset's settings, so that naming model, reward
    and method is the same as naming their preset.
    """
    with one_sentence("train"):
        choice, rest = tyro.cli(TrainChoice, args=arguments, return_unknown_args=True, add_help=False)
    named = {name: value for name in NAMED if (value := getattr(choice, name)) is not None}
    settings, where = {} if choice.config is None else read_settings(choice.config), str(choice.config)
    if isinstance(settings, dict) and isinstance(settings.get("model"), str):
        settings |= {"model": checkpoint_of(settings["model"])}
    if choice.preset is None:
        chosen = replace(override(TrainConfig(), settings, where), **named)
        reward = chosen.reward if "reward" in named or "reward" in settings else None
        base, name = preset(chosen.model, reward, chosen.method), preset_name(chosen.model, reward, chosen.method)
    else:
        found, name = find_preset(choice.preset), choice.preset
        base = take_method(found, replace(override(found, settings, where), **named).method)
    find_model(named.get("model", settings.get("model", base.model)))
    check_named(base.model, name, {*named, *settings})
    config = replace(override(base, settings, where), **{**named, "method": base.method})
    config = parse(TrainConfig, rest, "train", default=config)
    check_settings(config, run_method(config))
    taken = tuple(one for one in NAMED if one not in named and one not in settings)
    return Resolution(config, name, taken, choice.dry_run)


def train(arguments: Sequence[str]) -> None:
    """train a model with reinforcement learning, or continue a run"""
    if any(word.split("=")[0] == "--resume" for word in arguments):
        again = _again(arguments)
        begin = partial(_resume, again)
        parallel = (read_config(again.resume / CONFIG) if is_run(again.resume) else TrainConfig()).parallel
    else:
        resolved = resolution(arguments)
        if resolved.dry_run:
            if os.environ.get("RANK", "0") == "0":  # the others would say the same
                _would(resolved)
            return
        check_shares(resolved.config, processes())  # before any waits for another
        begin, parallel = partial(_start, resolved), resolved.config.parallel
    from t2i_rl.parallel.processes import joined

    with joined(timedelta(minutes=parallel.patience)) as ranks:
        run = begin(ranks)
        print(f"{run}: see reward.png, samples.png and metrics.jsonl; t2i-rl report {run} makes one page of all")


def _again(arguments: Sequence[str]) -> Resume:
    try:
        return parse(Resume, arguments, "train --resume RUN")
    except UserError as error:
        if "Unrecognized" not in str(error):
            raise
        raise UserError(
            f"{error}: the other settings of a run stay as they were; a new run takes them by "
            "--config RUN/config.json, and flags change them there"
        ) from error


def _would(resolved: Resolution) -> None:
    """Say what the run would be. Raises UserError where it would not start."""
    config = replace(resolved.config, out=free_or_next(resolved.config.out, TrainConfig.out))
    print("\n".join(report(config, resolved.preset)))
    reasons = obstacles(config)
    with suppress(UserError, ModelError):  # which is among the reasons, as is a memory that is too small
        if (needed := memory(config)) and needed[1]:
            print(needed[0])
    if reasons:
        raise UserError(f"would NOT start: {'; '.join(dict.fromkeys(reasons))}")
    print(f"would start, on {in_words(device_of(config.device))}")


def _start(resolved: Resolution, ranks: Ranks) -> Path:
    needed = memory(with_rollout_batch(resolved.config))
    from t2i_rl.training.run import start

    lines = [resolved.said()]
    if needed is not None:
        said, fits = needed
        lines.append(said if fits else f"warning: {said}")
    out, *_ = ranks.each(str(free_or_next(resolved.config.out, TrainConfig.out)))  # one for all
    return start(replace(resolved.config, out=Path(out)), "\n".join(lines), ranks)


def _resume(again: Resume, ranks: Ranks) -> Path:
    from t2i_rl.training.run import resume

    return resume(again.resume, again.steps, again.device, ranks, again.reward)
