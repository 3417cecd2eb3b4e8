"""Seconds, bandwidth and memory of a machine that others may use too: arms take turns, and medians are taken."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from t2i_rl.outputs import write_atomically

# Bytes per second that vendors give, by what torch calls the device.
NOMINAL = {
    "NVIDIA H100 80GB HBM3": 3.35e12,
    "NVIDIA H200": 4.8e12,
    "NVIDIA A100-SXM4-80GB": 2.039e12,
    "NVIDIA A100 80GB PCIe": 1.935e12,
}
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of wall time, the device's work included."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def with_peak(work: Callable[[], object], device: torch.device) -> float | None:
    """The most memory that the work held, with all that was there before: in GB, of torch's on a GPU; None: unknown."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        CLEAR.write_text("5", encoding="ascii")  # Linux forgets the peak so far
    except OSError:
        work()
        return None
    work()
    peak = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024 / 1e9


def copy_bandwidth(device: torch.device, size: int = 2**28) -> float:
    """Bytes per second, read plus written, the best of ten copies of `size` bytes."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * size / min(timed(lambda: target.copy_(source), device) for _ in range(10))


def in_turns(
    arms: Sequence[str], rounds: int, run: Callable[[str, int], float]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Seconds of every arm: of the round that warms up, and of those after it; each begins with another arm."""
    first = {arm: run(arm, 0) for arm in arms}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(1, rounds + 1):
        turn = number % len(arms)
        for arm in (*arms[turn:], *arms[:turn]):
            seconds[arm].append(run(arm, number))
    return first, seconds


def ratio(seconds: Mapping[str, Sequence[float]], one: str, other: str) -> list[float]:
    """How many times as long the one takes, round by round: what else the machine does falls on both."""
    return [mine / theirs for mine, theirs in zip(seconds[one], seconds[other], strict=True)]


def spread(values: Sequence[float]) -> float:
    """The median deviation from the median."""
    middle = statistics.median(values)
    return statistics.median(abs(value - middle) for value in values)


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware, versions, and the bandwidth that is measured and that is promised (None: not known)."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    nominal = NOMINAL.get(name)
    return {
        "hardware": name,
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "copy_gb_per_s": copy_bandwidth(device) / 1e9,
        "nominal_gb_per_s": None if nominal is None else nominal / 1e9,
    }


def write(path: Path | None, result: Mapping[str, Any]) -> None:
    if path is not None:
        write_atomically(path, json.dumps(result, indent=2, default=str) + "\n")
