"""What a piece of work asks of the device: operations, their bytes, and how often the host has to wait for a number."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations whose result, or its shape, the host reads: on a GPU it waits for them.
LOOKS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"}
FREE = {"_unsafe_view", "detach", "alias", "lift_fresh", "_reshape_alias"}  # views that their schema does not call so


@dataclass
class Counts:
    """operations: dispatched, without views. bytes: of what they read and write. looks: for which a host waits."""

    operations: int = 0
    bytes: int = 0
    looks: int = 0

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(self.operations - other.operations, self.bytes - other.bytes, self.looks - other.looks)


class Counting(TorchDispatchMode):
    """Counts what is dispatched while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        result = operation(*arguments, **(named or {}))
        name = operation.overloadpacket.__name__
        if name in LOOKS:
            self.counts.looks += 1
        view = any(given.alias_info and not given.alias_info.is_write for given in operation._schema.returns)
        if not view and name not in FREE:
            self.counts.operations += 1
            moved = tree_leaves((arguments, named, result))
            self.counts.bytes += sum(tensor.nbytes for tensor in moved if isinstance(tensor, Tensor))
        return result


def counted(work: Callable[[], object], device: torch.device) -> Counts:
    """What the work dispatches. On a GPU the looks are those that torch itself warns of (not run on one yet)."""
    mode = Counting()
    if device.type != "cuda":
        with mode:
            work()
        return mode.counts
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with mode:
                work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    mode.counts.looks = sum("synchroniz" in str(warning.message) for warning in caught)
    return mode.counts


def of_one_more(work: Callable[[int], object], at: int, device: torch.device) -> Counts:
    """What `work(at + 1)` dispatches beyond `work(at)`: once both have run, so that nothing is of the first time."""
    work(at)
    few = counted(lambda: work(at), device)
    work(at + 1)
    return counted(lambda: work(at + 1), device) - few
