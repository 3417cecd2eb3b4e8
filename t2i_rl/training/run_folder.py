"""Where things lie in a run's folder, and which of its checkpoints a person means. Nothing here imports torch."""

import json
from pathlib import Path
from typing import Annotated

import tyro

from t2i_rl.configuration.config import CONFIG
from t2i_rl.errors import UserError
from t2i_rl.training.lock import is_owned

CHECKPOINTS = "checkpoints"
BEST = "best.json"
LAST = "last"


def at_step(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:06d}"


def complete(folder: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first; half-written ones do not carry the final name."""
    numbered = {path.name.removeprefix("step-"): path for path in folder.glob("step-*") if path.is_dir()}
    return [numbered[step] for step in sorted(filter(str.isdecimal, numbered), key=int)]


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def latest(folder: Path) -> Path | None:
    found = complete(folder)
    return found[-1] if found else None


def is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / CHECKPOINTS).is_dir()


def checkpoint_of(model: str) -> str:
    """`RUN` is the best checkpoint of a run's folder, `RUN@last` its newest, `RUN@90` that of step 90.

    All else that a model can go by stays as it is. Raises UserError for a checkpoint that the run does not have.
    """
    run, _, which = (model, "", "") if Path(model).exists() else model.rpartition("@")
    if not run or not is_run(Path(run)):
        return model
    there = {str(step_of(path)): str(path) for path in complete(Path(run) / CHECKPOINTS)}
    if not there:
        if is_owned(Path(run)):
            raise UserError(f"{run} has no checkpoint yet: wait for its first one")
        raise UserError(f"{run} ended before its first checkpoint: t2i-rl train --resume {run} begins it anew")
    *_, newest = there
    wanted = which or _best(Path(run) / BEST) or LAST  # a run that is never evaluated has no best one
    if wanted == LAST:
        return there[newest]
    if wanted not in there:
        raise UserError(f"{run} has no checkpoint {wanted}: choose {run}@STEP of {', '.join(there)}, or {run}@{LAST}")
    return there[wanted]


def _best(path: Path) -> str:
    """The step that the run's `best.json` names; nothing where it names none."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["step"] or "")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


ModelName = Annotated[  # of an option: a registered name, a checkpoint's folder, a run's or a hub id
    str,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="STR",
        instance_from_str=lambda words: checkpoint_of(words[0]),
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    ),
]
