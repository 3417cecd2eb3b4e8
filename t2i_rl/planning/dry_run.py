"""What a training run would be, without starting it: names resolved, files found or missing. Imports no torch.

Whether it would start at all says `t2i_rl.planning.readiness`.
"""

import os
import re
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, snapshot_download

from models.registry import HUB_ID, TINY, answers_in_text
from models.registry import find as find_model
from rewards.files.pins import cache_folder, pins
from rewards.registry import Term, parse
from t2i_rl.configuration.config import TrainConfig, flat
from t2i_rl.configuration.presets import find_preset
from t2i_rl.configuration.run_method import run_method
from t2i_rl.methods.method import Method
from t2i_rl.prompts.reading import path_of
from t2i_rl.prompts.sets import NAMES, command

SHOWN = ("model", "method", "reward", "prompts", "heldout", "out")  # on lines of their own


def report(config: TrainConfig, preset: str | None) -> list[str]:
    """The lines that tell a person what would run."""
    method, rollout = run_method(config), config.rollout
    images = rollout.prompts_per_step * rollout.group_size
    what = "answers" if answers_in_text(config.model) else "images"
    rows = [
        ("model", _model(config.model)),
        ("method", [f"{config.method}: {method.summary}", *composition(method)]),
        ("reward", _rewards(config.reward)),
        ("prompts", _prompts(config.prompts)),
        ("held out", [*_prompts(config.heldout), *_rewards(config.evaluation.reward)]),
        (
            "work",
            [
                f"{config.steps} steps of {rollout.prompts_per_step} prompts x {rollout.group_size} {what}: "
                f"{config.steps * images:,} {what}, on {config.device}",
            ],
        ),
        ("run", [str(config.out)]),
        ("preset", [f"{preset}; a flag or run file that changes it is marked" if preset else "none: the defaults"]),
        ("settings", _settings(config, find_preset(preset) if preset else TrainConfig())),
    ]
    lines = [f"{name if first else '':<10}{line}" for name, part in rows for first, line in _marked(part)]
    return [*lines, "", "dry run: nothing was downloaded or written, and nothing loaded but rewards of your own"]


def composition(method: Method) -> list[str]:
    """What the method is made of, a line each; `t2i-rl methods NAME` explains them."""
    objective = method.objective
    return [
        f"advantage {method.scale}",
        f"credit {method.credit}",
        *([f"times {method.dynamic}"] if method.dynamic else []),
        f"surrogate {objective.surrogate} of the {objective.unit}'s ratio, divided by {objective.denominator}",
        f"KL {objective.beta} * {objective.kl}" if objective.beta else "no KL",
        *([f"entropy bonus {objective.entropy_bonus}"] if objective.entropy_bonus else []),
        *([str(method.entropy_reward)] if method.entropy_reward else []),
        *([f"equal groups: {method.filter_zero_std}"] if method.filter_zero_std != "off" else []),
    ]


def _settings(config: TrainConfig, base: TrainConfig) -> list[str]:
    """By their names in a run file and, but for --negative-prompt, on the command line."""
    before, known = flat(base), find_model(config.model).guidance
    own = "the model's own" if known is None else f"{known} (the model's own)"
    return [
        f"{name.replace('_', '-')} = {own if value is None and name.endswith('guidance_scale') else _shown(value)}"
        + ("" if value == before.get(name) else f"  (preset: {_shown(before.get(name))})")
        for name, value in flat(config).items()
        if name not in SHOWN
    ]


def _shown(value: object) -> str:
    return '""' if value == "" else "none" if value in (None, [], {}) else str(value)


def _marked(part: list[str]) -> list[tuple[bool, str]]:
    return [(row == 0, line) for row, line in enumerate(part)]


def _model(name: str) -> list[str]:
    entry = find_model(name)
    source = "shipped" if entry.source == str(TINY) else entry.source
    known = [part for part in (entry.family, entry.grid and f"tokens {entry.grid}", f"licence {entry.licence}") if part]
    lines = [f"{name} = {source} ({', '.join(known)})", _place(entry.source)]
    if entry.family in ("llamagen", "star"):
        lines.append("its image tokenizer and text encoder are looked for beside it: docs/models.md")
    return lines


def _prompts(source: str) -> list[str]:
    path = path_of(source)
    if path is None:
        return [f"{source}: the shapes world, shipped"]
    about = [NAMES[source].about] if source in NAMES else []
    if path.is_file():
        return [f"{source}: found at {path}", *about]
    return [f"{source}: not here: {f'run {command(source)}' if source in NAMES else 'put the file there'}", *about]


def _rewards(specification: str) -> list[str]:
    return [line for term in parse(specification) for line in _reward(term)] if specification else []


def _reward(term: Term) -> list[str]:
    weight = "" if term.weight is None else f", weight {term.weight:g}"
    if term.addresses:
        return [f"{term.name}{weight}, served at {' and '.join(term.addresses)}"]
    lines = [f"{term.name}{weight}, in the run's own process"]
    if term.entry.scores == "answers":
        lines.append("grades answers in text, in processes with limits of their own; nothing is fetched")
    if variable := term.entry.endpoint:
        lines.append(f"asks {variable} = {os.environ.get(variable) or 'nobody: set it to the address of the judge'}")
    for variable, source in term.entry.weights:
        own = os.environ.get(variable)
        published = f"{_place(source)} ({_pinned(source)}; {variable} may name a copy)"
        lines.append(f"{variable} = {own}: {_place(own)}" if own else published)
    return lines


def _place(source: str) -> str:
    """Where weights were found, or whence they would be fetched. A repository of the hub may be there in part."""
    fetched = source.startswith("https://")
    path = cache_folder() / source.rpartition("/")[2] if fetched else Path(source)
    if path.exists():
        return f"found at {path}"
    if fetched:
        return f"not here: {source} would be downloaded to {cache_folder()}"
    hub = re.fullmatch(f"({HUB_ID})(?:/(.+))?", source)
    if hub is None:
        return f"not here: there is no {source}"
    repository, file = hub.groups()
    try:
        if file is None:
            return f"found at {snapshot_download(repository, local_files_only=True)}"
        return f"found at {hf_hub_download(repository, file, local_files_only=True)}"
    except (OSError, ValueError, RuntimeError):  # the last without a home folder
        return f"not here: {source} would be downloaded from the hub to {constants.HF_HUB_CACHE}"


def _pinned(source: str) -> str:
    """The checksums of a reward's weights, which are recorded when they are first seen (`rewards.files.pins`)."""
    known = [seen["sha256"][:8] for key, seen in pins().items() if key == source or key.startswith(f"hub:{source}/")]
    return f"recorded {', '.join(sorted(known))}" if known else "unpinned"
