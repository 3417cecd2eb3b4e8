"""Linear layers for decoding on a CPU, where a few rows meet the same weights hundreds of times.

A float32 product in torch re-packs its weights at every call, which at a few rows costs more than the product itself.
Here each matrix is brought into oneDNN's own layout once per rollout (what that is worth: scripts/bench_rollout.py).
"""

import copy
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class PackedLinear(nn.Module):
    """The product of a linear layer as its weights are now; it gives no gradient."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... E"]:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def packed(module: Module) -> Module:
    """A twin of the module with packed linear layers, which shares all else; itself where there is nothing to pack.

    It does not see later changes of the weights: pack anew for every rollout.
    """
    if type(module) is nn.Linear:
        return PackedLinear(module) if packable(module.weight) else module  # type: ignore[return-value, arg-type]
    twin = copy.copy(module)
    twin._modules = {name: None if child is None else packed(child) for name, child in module._modules.items()}
    return twin


def packable(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
