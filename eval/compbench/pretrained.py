"""Networks in transformers' own format, and what prepares their input."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from rewards.errors import RewardError


def pretrained(what: str, source: str | Path, *kinds: Any) -> list[Any]:
    """One object of each class, from a folder or a repository of the hub. Raises RewardError.

    what: the network, in errors.
    """
    try:
        return [kind.from_pretrained(source) for kind in kinds]
    except Exception as error:  # transformers, the hub's client and every kind of proxy raise their own
        with suppress(Exception):  # what lies here needs none of them
            return [kind.from_pretrained(source, local_files_only=True) for kind in kinds]
        reason = " ".join(str(error).split())
        raise RewardError(f"cannot load {what} from {source}: give a folder, or fetch it first ({reason})") from error
