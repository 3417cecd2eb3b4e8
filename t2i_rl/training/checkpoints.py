"""Checkpoints that are never torn: written aside, closed with an inventory, then renamed into place.

A checkpoint is a folder `step-000020` with the policy in its own format, the state of the optimizer
(`t2i_rl.training.optimizer_files`) and, last, `complete.json`: the step, the settings of the run, and the size and
SHA-256 of every file. Only a folder whose inventory matches is loaded; checkpoints of before, whose inventory has no
digests, are known by size alone.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import file_digest
from itertools import chain
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from t2i_rl.errors import UserError
from t2i_rl.outputs import open_to_others, write_atomically
from t2i_rl.parallel.ranks import ALONE, Ranks
from t2i_rl.training.run_folder import at_step, complete, latest

INVENTORY = "complete.json"
OPTIMIZER = "optimizer"  # how the names of its files begin


@dataclass(frozen=True)
class Inventory:
    """What a checkpoint says of itself: its step, the settings it was trained with, and the trainer's history."""

    step: int
    settings: Mapping[str, Any]
    history: Mapping[str, Any]


def save(
    folder: Path,
    step: int,
    write: Callable[[Path], None],
    settings: Mapping[str, Any],
    history: Mapping[str, Any],
    ranks: Ranks = ALONE,
) -> Path:
    """Write the checkpoint of a step; the ones before it are untouched whatever happens.

    write: puts what this process has to save into a folder.
    settings, history: as JSON holds them; `read` gives them back.
    ranks: all processes of the run, of which each writes its part; the checkpoint has its name once all are done.
    Raises UserError when it cannot be written.
    """
    final = at_step(folder, step)
    aside = final.with_name(f".{final.name}.new")
    try:
        if ranks.first:
            for left in folder.glob(".step-*.new"):  # by a run that was killed while it wrote
                shutil.rmtree(left)
            aside.mkdir(parents=True)
        ranks.meet()
        write(aside)
        ranks.meet()
        files = [path for path in sorted(aside.rglob("*")) if path.is_file()]
        written = [_digested(path, aside) for path in files[ranks.rank :: ranks.world]]
        every = sorted(chain.from_iterable(ranks.each(written)))
        if ranks.first:
            open_to_others(aside)
            inventory = {
                "step": step,
                "settings": dict(settings),
                "history": dict(history),
                "files": {name: size for name, size, _ in every},
                "sha256": {name: digest for name, _, digest in every},
            }
            write_atomically(aside / INVENTORY, json.dumps(inventory, indent=2) + "\n")
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)
        ranks.meet()
    except (OSError, SafetensorError) as error:  # to safetensors, a full disk is an error of its own
        shutil.rmtree(aside, ignore_errors=True)
        last, reason = latest(folder), str(error).partition("\n")[0]
        mend = f"make room, then --resume {f'goes on from {last}' if last else 'begins the run anew'}"
        raise UserError(f"the checkpoint of step {step} cannot be written to {folder} ({reason}): {mend}") from error
    return final


def _digested(path: Path, folder: Path) -> tuple[str, int, str]:
    """A file's name in the folder, size and SHA-256; it is on the disk now."""
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return str(path.relative_to(folder)), path.stat().st_size, digest


def read(checkpoint: Path, resuming: bool = True, ranks: Ranks = ALONE) -> Inventory:
    """The inventory of a checkpoint; UserError, with the reason, when it is torn, damaged or not one of ours.

    resuming: whether the optimizer has to be there and whole too; it is most of the bytes.
    ranks: processes that look at its files together, each at some.
    """
    try:
        found = json.loads((checkpoint / INVENTORY).read_text(encoding="utf-8"))
        files, digests = dict(found["files"]), dict(found.get("sha256", {}))
        inventory = Inventory(int(found["step"]), dict(found["settings"]), dict(found["history"]))
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
        raise UserError(
            f"{checkpoint} is not a checkpoint of ours, for it has no valid {INVENTORY}: "
            "delete it to resume from an older one"
        ) from error
    for name, size in sorted(files.items())[ranks.rank :: ranks.world]:
        if name.startswith(OPTIMIZER) and not resuming:
            continue
        path = checkpoint / name
        length = path.stat().st_size if path.is_file() else None
        if length != size:
            state = "is missing" if length is None else f"has {length} bytes instead of {size}"
            raise UserError(
                f"the checkpoint {checkpoint} is torn, for {name} {state}: delete it to resume from an older one"
            )
        with path.open("rb") as file:
            if name in digests and file_digest(file, "sha256").hexdigest() != digests[name]:
                raise UserError(
                    f"the checkpoint {checkpoint} is damaged, for {name} does not hold what was written: "
                    "delete it to resume from an older one"
                )
    return inventory


def model_files(folder: Path) -> list[Path]:
    """The files of a checkpoint that are the model's: all but the trainer's."""
    every = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))
    return [path for path in every if path.name != INVENTORY and not path.name.startswith(OPTIMIZER)]


def check_source(model: str) -> None:
    """Refuse a model that is a checkpoint of a run and not whole; others are not looked at. Raises UserError."""
    if (Path(model) / INVENTORY).is_file():
        read(Path(model), resuming=False)


def prune(folder: Path, keep_last: int, best: int | None) -> None:
    """Delete all but the newest `keep_last` checkpoints and the one of the best step."""
    for path in complete(folder)[:-keep_last]:
        if best is None or path != at_step(folder, best):
            shutil.rmtree(path)
