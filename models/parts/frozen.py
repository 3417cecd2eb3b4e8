"""A frozen copy of a network, for the policy that a run began with."""

import copy
from collections.abc import Iterable
from typing import TypeVar

from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def frozen_copy(network: Network, also: Iterable[Tensor] = ()) -> Network:
    """Nothing of it is trained. It shares with the network the parameters that are frozen there already, and `also`."""
    frozen = (parameter for parameter in network.parameters() if not parameter.requires_grad)
    shared = {id(tensor): tensor for tensor in (*also, *frozen)}
    return copy.deepcopy(network, memo=dict(shared)).requires_grad_(False)
