"""Where models run: devices by name. Nothing here imports torch before it is asked."""

import os

from models.errors import ModelError

AUTO = "auto"


def device_of(asked: str) -> str:
    """The device that is meant: `auto` is a GPU where there is one, else the CPU.

    Raises ModelError for what is no device, is none that models run on, or is not in this machine.
    """
    import torch

    if asked == AUTO:
        return "cuda" if torch.cuda.device_count() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise ModelError(f"{asked!r} is no device: choose auto, cpu or cuda") from error
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if device.type not in there:
        raise ModelError(f"models do not run on {asked}: choose auto, {', '.join(there)}")
    count = there[device.type]
    if (device.index or 0) >= count:
        sees = f"{device.type}:0 to {device.type}:{count - 1}: choose one" if count else "no such device: choose cpu"
        raise ModelError(f"the device {asked} is not there: torch sees {sees}")
    return asked


def memory_of(device: str) -> int:
    """Bytes that the device has in all, its own or, for what has none of its own, the machine's."""
    import torch

    if torch.device(device).type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def in_words(device: str) -> str:
    """A device as people know it: `cuda, NVIDIA H100 80GB HBM3 with 85 GB`, `cpu, 2 cores with 17 GB`."""
    import torch

    of_gpu = torch.device(device).type == "cuda"
    name = torch.cuda.get_device_name(device) if of_gpu else f"{os.cpu_count()} cores"
    return f"{device}, {name} with {memory_of(device) / 1e9:.0f} GB"
