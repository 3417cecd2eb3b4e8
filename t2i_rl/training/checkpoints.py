"""Checkpoints that are never torn: written aside, closed with an inventory, then renamed into place.

A checkpoint is a folder `step-000020` with the policy in its own format, `optimizer.pt` and, last,
`complete.json`: the step, the settings of the run, and the size and SHA-256 of every file. Only a folder whose
inventory matches is loaded; checkpoints of before, whose inventory has no digests, are known by size alone.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from t2i_rl.errors import UserError
from t2i_rl.outputs import write_atomically
from t2i_rl.training.run_folder import at_step, complete, latest

INVENTORY = "complete.json"
OPTIMIZER = "optimizer.pt"


@dataclass(frozen=True)
class Inventory:
    """What a checkpoint says of itself: its step, the settings it was trained with, and the trainer's history."""

    step: int
    settings: Mapping[str, Any]
    history: Mapping[str, Any]


def save(
    folder: Path,
    step: int,
    save_policy: Callable[[Path], None],
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    history: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of a step; the ones before it are untouched whatever happens.

    settings, history: as JSON holds them; `read` gives them back. Raises UserError when it cannot be written.
    """
    final = at_step(folder, step)
    aside = final.with_name(f".{final.name}.new")
    for left in folder.glob(".step-*.new"):  # by a run that was killed while it wrote
        shutil.rmtree(left)
    try:
        aside.mkdir(parents=True)
        save_policy(aside)
        torch.save(optimizer.state_dict(), aside / OPTIMIZER)
        files = [path for path in sorted(aside.rglob("*")) if path.is_file()]
        digests = {}
        for path in files:
            with path.open("rb") as file:
                digests[str(path.relative_to(aside))] = file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
        sizes = {name: (aside / name).stat().st_size for name in digests}
        inventory = {
            "step": step,
            "settings": dict(settings),
            "history": dict(history),
            "files": sizes,
            "sha256": digests,
        }
        write_atomically(aside / INVENTORY, json.dumps(inventory, indent=2) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
    except (OSError, RuntimeError, SafetensorError) as error:
        # A full disk is a RuntimeError to torch and an error of its own to safetensors.
        shutil.rmtree(aside, ignore_errors=True)
        last, reason = latest(folder), str(error).partition("\n")[0]
        mend = f"make room, then --resume {f'goes on from {last}' if last else 'begins the run anew'}"
        raise UserError(f"the checkpoint of step {step} cannot be written to {folder} ({reason}): {mend}") from error
    return final


def read(checkpoint: Path, resuming: bool = True) -> Inventory:
    """The inventory of a checkpoint; UserError, with the reason, when it is torn, damaged or not one of ours.

    resuming: whether the optimizer has to be there and whole too; it is most of the bytes.
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
    for name, size in files.items():
        if name == OPTIMIZER and not resuming:
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


def check_source(model: str) -> None:
    """Refuse a model that is a checkpoint of a run and not whole; others are not looked at. Raises UserError."""
    if (Path(model) / INVENTORY).is_file():
        read(Path(model), resuming=False)


def load_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer) -> None:
    """Restore the optimizer; only tensors and plain containers are read (no code can run)."""
    path = checkpoint / OPTIMIZER
    try:
        optimizer.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        for parameter, state in optimizer.state.items():
            if {value.shape for value in state.values() if value.ndim} != {parameter.shape}:
                raise ValueError("a moment has another shape than its parameter")
    except Exception as error:  # what torch raises of malformed bytes is no narrower
        # What it says of a file that is not its own spans lines and advises to switch the safety off.
        raise UserError(
            f"{path} is not the optimizer state of this run: delete {checkpoint} to resume from an older one"
        ) from error


def prune(folder: Path, keep_last: int, best: int | None) -> None:
    """Delete all but the newest `keep_last` checkpoints and the one of the best step."""
    for path in complete(folder)[:-keep_last]:
        if best is None or path != at_step(folder, best):
            shutil.rmtree(path)
