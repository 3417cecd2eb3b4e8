"""The last product of an image head, in float32 whatever precision the model runs in.

A half-precision product is rounded to 8 or 11 bits when it is written, and guidance multiplies that error. On CUDA the
product of half-precision matrices adds up in float32 anyway and can be written so at no cost; on a CPU the inputs are
made float32 first. Float32 models are computed as they always were.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def logits(last: nn.Linear, x: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
    """What the head's last linear layer says of `x`, float32, with gradient."""
    return wide_product(x, last.weight, last.bias)


def wide_product(
    x: Float[Tensor, "... D"], weight: Float[Tensor, "V D"], bias: Float[Tensor, " V"] | None
) -> Float[Tensor, "... V"]:
    """The product of a linear layer, float32, with gradient."""
    if x.is_cuda and weight.dtype != torch.float32:
        product = WideProduct.apply(x.flatten(0, -2), weight).unflatten(0, x.shape[:-1])
        return product if bias is None else product + bias
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float())


class WideProduct(torch.autograd.Function):
    """`x @ weight.T` of half-precision matrices on CUDA, written in float32; torch has no derivative of it.

    The incoming gradient is rounded to the matrices' precision, as that of a plain half-precision product is.
    """

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "T D"], weight: Float[Tensor, "V D"]) -> Float[Tensor, "T V"]:
        ctx.save_for_backward(x, weight)
        return torch.mm(x, weight.T, out_dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, pulled: Float[Tensor, "T V"]) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        pulled = pulled.to(weight.dtype)
        own, others = ctx.needs_input_grad
        return pulled @ weight if own else None, pulled.T @ x if others else None
