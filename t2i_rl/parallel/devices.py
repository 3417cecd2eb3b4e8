"""Which device of a machine a process takes."""

import os


def own_device(device: str) -> str:
    """Of several processes on one machine, each takes its own GPU (LOCAL_RANK, as torchrun sets it)."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device
