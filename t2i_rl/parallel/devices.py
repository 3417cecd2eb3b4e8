"""What the surroundings of a process say, as torchrun sets them: how many there are, and which device is its own."""

import os


def processes() -> int:
    """How many share the run (WORLD_SIZE); 1 where nothing says so."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def own_device(device: str) -> str:
    """Of several processes on one machine, each takes its own GPU (LOCAL_RANK)."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device
