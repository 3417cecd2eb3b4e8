"""How long the phases of a step take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from t2i_rl.errors import fitting

SMALLER = {  # what makes a phase take less memory
    "sample": "a smaller rollout.micro-batch or rollout.group-size",
    "decode": "a smaller rollout.micro-batch or rollout.group-size",
    "reference": "a smaller update.micro-batch",
    "score_wait": "a smaller rollout.micro-batch, or a --reward that is served on another GPU",
    "update": "a smaller update.micro-batch, update.gradient-checkpointing or a lora.rank",
}


class Clock:
    """Wall time by phase, the device's work included; a phase that comes again adds up."""

    def __init__(self) -> None:
        self.began, self.seconds = time.perf_counter(), dict[str, float]()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Raises UserError for one that does not fit into memory."""
        began = time.perf_counter()
        with fitting(f"the phase {name} of a step", SMALLER[name]):
            yield
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        self.add(name, time.perf_counter() - began)

    def add(self, name: str, seconds: float) -> None:
        """Time that was measured elsewhere."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self.began
