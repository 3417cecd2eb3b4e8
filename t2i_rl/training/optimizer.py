"""AdamW for weights in half precision: it steps on float32 copies of them.

At the learning rates of the papers a step is about a millionth of a weight, and bfloat16 cannot add less than a 256th
of one: without the copies most steps would be rounded away. The policy keeps the copies rounded to its own precision,
so sampling and scoring cost what they did. Gradients are handed over as they are made and add up in float32 too.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from t2i_rl.configuration.config import UpdateConfig


class MasterAdamW(torch.optim.AdamW):
    """AdamW whose parameters are the float32 copies; one that is float32 already is its own."""

    def __init__(self, weights: Iterable[Parameter], **settings: Any) -> None:
        self.weights = list(weights)
        self.masters = [
            weight if weight.dtype == torch.float32 else Parameter(weight.detach().float()) for weight in self.weights
        ]
        super().__init__(self.masters, **settings)
        self.taking = [
            weight.register_post_accumulate_grad_hook(partial(hand_over, master))
            for weight, master in zip(self.weights, self.masters, strict=True)
            if master is not weight
        ]

    def close(self) -> None:
        """Take no more gradients: another optimizer of the same weights shall have them."""
        for handle in self.taking:
            handle.remove()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nothing here re-evaluates a loss
        super().step(closure)
        self.round()

    @torch.no_grad()
    def round(self) -> None:
        """Let the weights be their copies, as far as their precision goes."""
        for weight, master in zip(self.weights, self.masters, strict=True):
            if master is not weight:
                weight.copy_(master)


def hand_over(master: Parameter, weight: Tensor) -> None:
    """Add the gradient of a weight to its copy's."""
    assert weight.grad is not None
    if master.grad is None:
        master.grad = weight.grad.float()
    else:
        master.grad += weight.grad
    weight.grad = None


def adamw(weights: Iterable[Parameter], update: UpdateConfig) -> torch.optim.AdamW:
    """torch's own for float32 weights, such as adapters; for others the one above.

    On CUDA one kernel steps on all weights at once (not run on a GPU yet); a CPU keeps the bits that it had.
    """
    weights = list(weights)
    whole = all(weight.dtype == torch.float32 for weight in weights)
    kind = torch.optim.AdamW if whole else MasterAdamW
    fused = True if all(weight.is_cuda for weight in weights) else None
    return kind(weights, lr=update.learning_rate, betas=update.betas, weight_decay=update.weight_decay, fused=fused)
