"""Checkpoints that are never torn: written aside, closed with an inventory, then renamed into place.

A checkpoint is a folder `step-000020` with the policy in its own format, `optimizer.pt` and, last,
`complete.json`: the step and the size of every file. Only a folder whose inventory matches is loaded.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from t2i_rl.errors import UserError

INVENTORY = "complete.json"
OPTIMIZER = "optimizer.pt"


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file in one move."""
    aside = path.with_name(f".{path.name}.new")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def at_step(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:06d}"


def save(folder: Path, step: int, save_policy: Callable[[Path], None], optimizer: torch.optim.Optimizer) -> Path:
    """Write the checkpoint of a step; the ones before it are untouched whatever happens.

    Raises UserError when the disk is full.
    """
    final = at_step(folder, step)
    aside = final.with_name(f".{final.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        save_policy(aside)
        torch.save(optimizer.state_dict(), aside / OPTIMIZER)
        files = [path for path in sorted(aside.rglob("*")) if path.is_file()]
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sizes = {str(path.relative_to(aside)): path.stat().st_size for path in files}
        write_atomically(aside / INVENTORY, json.dumps({"step": step, "files": sizes}, indent=2) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
    except (OSError, RuntimeError, SafetensorError) as error:
        # A full disk is a RuntimeError to torch and an error of its own to safetensors.
        shutil.rmtree(aside, ignore_errors=True)
        last = latest(folder)
        kept = f"the last good one is {last}" if last else "there is none yet"
        raise UserError(
            f"the checkpoint of step {step} could not be written to {folder} ({error}); {kept}: "
            "free some space and continue with --resume"
        ) from error
    return final


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint; UserError, with the reason, when it is torn or not a checkpoint of ours."""
    try:
        inventory = json.loads((checkpoint / INVENTORY).read_text())
        files, step = dict(inventory["files"]), int(inventory["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{checkpoint} is not a complete checkpoint: it has no valid {INVENTORY}") from error
    for name, size in files.items():
        path = checkpoint / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise UserError(
                f"the checkpoint {checkpoint} is torn: {name} {state}; delete it to resume from an older one"
            )
    return step


def complete(folder: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first; half-written ones do not carry the final name."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def latest(folder: Path) -> Path | None:
    found = complete(folder)
    return found[-1] if found else None


def load_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer) -> None:
    """Restore the optimizer; only tensors and plain containers are read (no code can run)."""
    state: dict[str, Any] = torch.load(checkpoint / OPTIMIZER, weights_only=True)
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError) as error:
        raise UserError(f"the optimizer state in {checkpoint} belongs to another model: {error}") from error


def prune(folder: Path, keep_last: int, best: int | None) -> None:
    """Delete all but the newest `keep_last` checkpoints and the one of the best step."""
    for path in complete(folder)[:-keep_last]:
        if best is None or path != at_step(folder, best):
            shutil.rmtree(path)
