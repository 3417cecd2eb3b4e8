"""A function over a module's weights, run as the module's own forward pass.

Our layers are run by functions (`models.parts.llama`), so what torch hangs on a module's `forward` would never be
called: it is hung here instead. That is how sharded weights (FSDP2) are gathered before a layer, let go after it and
gathered again for its gradient.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

Value = TypeVar("Value")
HOOKED = "as_forward"  # an attribute of a module whose weights are sharded


def as_forward(module: nn.Module, function: Callable[..., Value], *inputs: Any) -> Value:
    """`function(module, *inputs)`, with all weights in place that the module has by itself.

    Gradients have to flow through `inputs` and a value that is a tensor, or tuples and dicts of tensors.
    """
    hooked: Callable[..., Value] | None = vars(module).get(HOOKED)
    return function(module, *inputs) if hooked is None else hooked(function, *inputs)
