"""What a run was started with, beside its settings: `RUN/run.json`, an entry for the start and each time it went on."""

import hashlib
import json
import platform
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

from models.device import in_words
from t2i_rl.outputs import write_atomically

RUN_RECORD = "run.json"
PACKAGES = ("t2i-rl", "torch", "transformers", "numpy", "safetensors", "peft", "open-clip-torch")


def surroundings(device: str, processes: int = 1) -> dict[str, Any]:
    """When, where, on what, by which command and with which versions this process runs, one of so many."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "hardware": f"{processes} x {in_words(device)}" if processes > 1 else in_words(device),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit(),
        "versions": versions,
    }


def commit() -> str:
    """Of the checkout that this code lies in, with `+` behind it where files of it were changed; "" outside of one."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.strip()


def record(run: Path, device: str, processes: int) -> None:
    """Add this process, and those that share the run with it, to those that have trained in the folder.

    With an id by chance, for two runs may begin in one second.
    """
    here = {"id": uuid4().hex, **surroundings(device, processes)}
    write_atomically(run / RUN_RECORD, json.dumps([*read_record(run), here], indent=2) + "\n")


def identity(run: Path) -> str:
    """What tells a run from others of its name elsewhere, in 21 signs, and stays the same when it goes on."""
    began = json.dumps([run.name, *read_record(run)[:1]], sort_keys=True)
    return hashlib.sha256(began.encode()).hexdigest()[:21]


def read_record(run: Path) -> list[dict[str, Any]]:
    """Who has trained there, oldest first; nobody where that was not written down, or is damaged."""
    try:
        found = json.loads((run / RUN_RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []
