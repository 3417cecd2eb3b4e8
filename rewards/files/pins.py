"""Pins: the SHA-256 of each file that was fetched, recorded when it was first seen and compared from then on.

They lie in `pins.json` of the cache: `$T2I_RL_CACHE`, else `t2i-rl` below `$XDG_CACHE_HOME` or `~/.cache`.
Nothing here imports torch.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rewards.errors import RewardError

PINS = "pins.json"


def cache_folder() -> Path:
    """Raises RewardError for a user without a home, who names no folder."""
    if own := os.environ.get("T2I_RL_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "t2i-rl"
    except RuntimeError as error:
        raise RewardError("this user has no home folder: let T2I_RL_CACHE name one for what is fetched") from error


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pins() -> dict[str, dict[str, str]]:
    """What was recorded, by key: nothing where there is no cache. Raises RewardError for a file that is not JSON."""
    try:
        path = cache_folder() / PINS
    except RewardError:
        return {}
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(seen["sha256"], str) for seen in found.values()):
            raise TypeError("a file's SHA-256 is no text")
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RewardError(f"{path} is damaged ({error}): repair it, or remove it to record the files anew") from error


def compare(key: str, place: str | Path, digest: str) -> None:
    """Raise RewardError, which names the place, if another SHA-256 is recorded under `key`."""
    recorded = pins().get(key, {}).get("sha256", digest)
    if recorded != digest:
        raise RewardError(
            f"{place} is not the file that was first used (SHA-256 {digest[:8]}..., then {recorded[:8]}...): "
            f"restore it, or remove {key!r} from {cache_folder() / PINS} to accept the new one"
        )


def pin(key: str, path: Path, **seen: str) -> str:
    """Record the file's SHA-256 (and what else was `seen`) under `key`, or compare; returns it. Raises RewardError."""
    digest = sha256(path)
    if key in pins():
        compare(key, path, digest)
        return digest
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if key in (known := pins()):
            compare(key, path, digest)
            return digest
        aside = folder / f"{PINS}.{os.getpid()}"
        text = json.dumps(known | {key: {"sha256": digest, **seen}}, indent=2, sort_keys=True)
        try:
            aside.write_text(text + "\n", encoding="utf-8")
            aside.replace(folder / PINS)
        finally:
            aside.unlink(missing_ok=True)
    return digest


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time records: each writes what it has read, and one more. Not on a file system without locks."""
    with (folder / f"{PINS}.lock").open("a", encoding="utf-8") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
