"""What the processes that share a run tell each other. One process alone is `Ranks()`: it has everything itself.

Nothing is pickled: what is told is numbers, or values that JSON can hold.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class Ranks:
    """A process among those of its run. Every process has to make the same calls in the same order.

    rank, world: its number, and how many there are.
    """

    rank = 0
    world = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and speaks for all."""
        return self.rank == 0

    def share(self, items: int) -> range:
        """Which of so many items are its own: consecutive ones, of which no process has two more than another."""
        return range(items * self.rank // self.world, items * (self.rank + 1) // self.world)

    def each(self, value: Any) -> list[Any]:
        """The value that each process gives, by its number: what JSON can hold."""
        return [value]

    def gather(self, rows: Float[Tensor, "R ..."]) -> Float[Tensor, "S ..."]:
        """The rows of all processes, in their order."""
        return rows

    def sum(self, values: Tensor) -> Tensor:
        """A few numbers, each added up over all processes: the same bits in every one."""
        return values

    def totals(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Named numbers, each added up over all processes."""
        summed = self.sum(torch.tensor([*numbers.values()], dtype=torch.float64))
        return dict(zip(numbers, summed.tolist(), strict=True))

    def mean(self, values: Tensor) -> float:
        """Of the values that all processes have."""
        total, number = self.sum(torch.stack([values.double().sum(), values.new_tensor(values.numel()).double()]))
        return (total / number).item()

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Add large tensors up over all processes, in place."""

    def meet(self) -> None:
        """Wait for all the others."""
        self.each(None)


ALONE = Ranks()
