"""Where the golden numbers lie: `$T2I_RL_GOLDEN`, by default the subset committed in tests/golden."""

import os
from pathlib import Path

DEFAULT = Path(__file__).parents[1] / "golden"


def golden_folder(name: str) -> Path:
    """The folder of one set. A set that lacks it fails: parity is never skipped."""
    folder = Path(os.environ.get("T2I_RL_GOLDEN") or DEFAULT) / name
    if not folder.is_dir():
        raise FileNotFoundError(f"no golden numbers in {folder}: point T2I_RL_GOLDEN at a complete set")
    return folder
