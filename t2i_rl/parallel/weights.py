"""The weights of a run: those that everything reads, and those that the optimizer changes.

One process alone has one policy for both, and so have several where every one of them holds all that is trained
(adapters, `parallel.shard 1`). Otherwise what is trained is split among the processes (`t2i_rl.parallel.sharding`).
"""

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor
from torch.distributed.tensor import DTensor

from models.policy import Policy, Rebuilt
from t2i_rl.errors import UserError
from t2i_rl.parallel.ranks import Ranks
from t2i_rl.parallel.settings import Parallel


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A small tensor that the processes hold together; all ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Weights(Protocol):
    """policy: what samples, measures and is saved: all weights, plain tensors.
    trained: what the update differentiates and the optimizer changes.
    part, parts: which part of them the process holds, and of how many; the others that hold the same have `copy` > 0.
    """

    policy: Policy
    trained: Policy
    part: int
    parts: int
    copy: int

    def reference(self, policy: Policy) -> Policy:
        """A frozen copy of a policy with the same weights by name, held as `trained` is."""
        ...

    def add_up(self, gradients: Iterable[Tensor]) -> None:
        """What each process has of the gradient becomes the whole, where that is not so already."""
        ...

    def refresh(self) -> None:
        """Let the policy have the weights that the optimizer left."""
        ...


class Whole:
    """Every process holds all weights."""

    part, parts = 0, 1

    def __init__(self, policy: Policy, ranks: Ranks) -> None:
        self.policy = self.trained = policy
        self.ranks, self.copy = ranks, ranks.rank

    def reference(self, policy: Policy) -> Policy:
        return policy.reference()

    def add_up(self, gradients: Iterable[Tensor]) -> None:
        self.ranks.add(gradients)

    def refresh(self) -> None:
        """There is nothing to do."""


def weights_of(policy: Policy, ranks: Ranks, settings: Parallel) -> Weights:
    """The weights of a run. Raises UserError for adapters in shares, and where processes make up no whole copies."""
    shard = min(settings.shard or ranks.world, ranks.world)
    if shard == 1 or (settings.shard == 0 and not isinstance(policy, Rebuilt)):
        return Whole(policy, ranks)
    if not isinstance(policy, Rebuilt):
        raise UserError(f"parallel.shard is {settings.shard}, but adapters are whole in every process: leave it out")
    if ranks.world % shard:
        raise UserError(
            f"parallel.shard is {shard}, which does not divide the {ranks.world} processes: choose one that does"
        )
    from t2i_rl.parallel.sharding import Sharded

    return Sharded(policy, ranks, shard, settings.reshard, settings.offload)
