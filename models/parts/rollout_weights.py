"""What decoding reads of a Llama decoder. It is not what the optimizer writes, so it has a place of its own.

A policy has one `RolloutWeights` for the whole run. Its tensors stay at their addresses, so that a captured step may
read them again and again, and take the weights as they are whenever a prompt is read after these have changed. Linear
layers that read the same input are one product: queries, keys and values; gate and up. Adapters are added to a copy of
what they adapt, in float32, and the sum is rounded once; the update still sees both apart. On a card that does not hold
the copy (`holds_twice`) they stay apart here too.

On a CPU in float32, where a few rows meet the same matrices hundreds of times, the products are copies laid out as a
matrix product likes them best, input by output. The weight of the norm before is multiplied into them, and the channels
that the rotary embedding turns together lie side by side, as one complex number. Elsewhere the layers' own parameters
become parts of the joined matrix, which then takes neither memory nor a copy.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from models.parts.llama import rms_norm
from models.parts.logits import wide_product

MERGED = 1 / 3  # of the memory that is free before, at most: caches and the update come later
optimizer_steps = 0  # of the process: a fused optimizer does not count up the versions of what it changes


def _count(*_: Any) -> None:
    global optimizer_steps
    optimizer_steps += 1


register_optimizer_step_post_hook(_count)


def seen(modules: Iterable[nn.Module]) -> list[tuple[int, int, int]]:
    """What is another list once a parameter of the modules has changed."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return [(p.data_ptr(), p._version, optimizer_steps if p.requires_grad else 0) for p in parameters]


def whole(linear: Any) -> Float[Tensor, "E D"]:
    """All that a linear layer multiplies with: its parameter itself or, with adapters, the sum."""
    weight = linear.weight.detach()  # of peft's layers, the one that is adapted
    if not adapted(linear):
        return weight
    changes = sum(linear.get_delta_weight(name) for name in linear.active_adapters)
    return (weight.float() + changes).to(weight.dtype)


def adapted(linear: Any) -> bool:
    return hasattr(linear, "get_delta_weight")


def factors(linears: Sequence[Any]) -> tuple[Float[Tensor, "D r"], Float[Tensor, "r E"]]:
    """The adapters of layers that read the same input, as two matrices whose product is added to the layers' own."""
    found = [
        (linear.lora_A[name].weight, linear.lora_B[name].weight * linear.scaling[name], index)
        for index, linear in enumerate(linears)
        for name in (linear.active_adapters if adapted(linear) else ())
    ]
    low = torch.cat([down for down, _, _ in found])
    sizes = [len(linear.weight) for linear in linears]
    blocks = [
        [up if index == at else up.new_zeros(size, up.shape[1]) for at, size in enumerate(sizes)]
        for _, up, index in found
    ]
    like = linears[0].weight
    return low.T.to(like), torch.cat([torch.cat(rows) for rows in blocks], dim=1).T.to(like)


def copied(weight: Tensor) -> bool:
    """Whether products are copies, laid out anew."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def side_by_side(rows: Float[Tensor, "heads*d ..."], head: int) -> Float[Tensor, "heads*d ..."]:
    """The rows of each head from pairs across its halves (k, k + d/2) to neighbours (2k, 2k + 1)."""
    return rows.unflatten(0, (-1, 2, head // 2)).transpose(1, 2).flatten(0, 2)


def holds_twice(layers: nn.ModuleList) -> bool:
    """Whether a card has the memory to merge adapters: the layers' matrices once more."""
    size = sum(part.weight.nbytes for part in layers.modules() if isinstance(part, nn.Linear))
    device = next(layers.parameters()).device
    return device.type != "cuda" or size <= MERGED * torch.cuda.mem_get_info(device)[0]


class Product:
    """Linear layers that read the same input as one product, without gradient."""

    weight: Float[Tensor, "D E"]
    bias: Float[Tensor, " E"] | None = None
    norm: Any = None  # that the input goes through first
    floor: Tensor | None = None  # where the norm's weight is in the matrix: what its epsilon adds to a row's length
    low: Float[Tensor, "D r"] | None = None  # adapters that stay apart
    high: Float[Tensor, "r E"] | None = None

    def __init__(self, merge: bool = True) -> None:
        """merge: whether adapters are added to the weights, which takes the memory of these once more."""
        self.merge = merge
        self.seen: list[tuple[int, int, int]] = []

    def refresh(self, linears: Sequence[Any], norm: Any = None, heads: Sequence[int] = ()) -> None:
        """Take the weights as they are now.

        norm: of the input, which is done here too.
        heads: for each layer, the channels of a head whose pairs are laid side by side, or 0.
        """
        now = seen([*linears, *([] if norm is None else [norm])])
        if now == self.seen:
            return
        like, sizes = linears[0].weight, [len(linear.weight) for linear in linears]
        transposed, heads = copied(like), heads or [0] * len(linears)
        if not self.seen:
            shape = sum(sizes), like.shape[1]
            self.weight = like.new_empty(shape[::-1]) if transposed else like.new_empty(shape).T
        for linear, part, head in zip(linears, self.weight.T.split(sizes), heads, strict=True):
            weight = whole(linear) if self.merge else linear.weight.detach()
            own = weight.data_ptr() == linear.weight.data_ptr()
            if weight.data_ptr() != part.data_ptr():
                part.copy_(side_by_side(weight, head) if head else weight)
                if own and not transposed:
                    linear.weight.data = part
        if not self.merge and any(map(adapted, linears)):
            low, high = factors(linears)
            if self.low is None or self.high is None:
                self.low, self.high = low, high
            else:
                self.low.copy_(low)
                self.high.copy_(high)
        if norm is not None and transposed:
            self.weight.mul_(norm.weight[:, None] * len(self.weight) ** 0.5)
            self.floor = like.new_tensor(len(self.weight) * norm.variance_epsilon).sqrt()
        else:
            self.norm = norm
        if linears[0].bias is not None:
            pairs = zip(linears, heads, strict=True)
            biases = torch.cat([side_by_side(one.bias, head) if head else one.bias for one, head in pairs])
            self.bias = biases if self.bias is None else self.bias.copy_(biases)
        self.seen = seen([*linears, *([] if norm is None else [norm])])

    def normed(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        if self.floor is not None:
            return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot(self.floor)
        return x if self.norm is None else rms_norm(self.norm, x)

    def __call__(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        x = self.normed(x)
        found = torch.mm(x, self.weight) if self.bias is None else torch.addmm(self.bias, x, self.weight)
        return self._adapted(x, found)

    def added(self, x: Float[Tensor, "B D"], to: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
        """`to` and the product."""
        found = torch.addmm(to, x, self.weight)
        return self._adapted(x, found if self.bias is None else found + self.bias)

    def _adapted(self, x: Float[Tensor, "B D"], found: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
        return found if self.low is None or self.high is None else torch.addmm(found, torch.mm(x, self.low), self.high)

    def wide(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        """The product in float32, whatever precision the model runs in."""
        return self(x) if x.dtype == torch.float32 else wide_product(x, self.weight.T, self.bias)


class LayerWeights:
    """One transformer layer.

    norms: of queries and of keys, where the layer has them.
    paired: whether the channels of queries and keys that are turned together lie side by side.
    """

    norms: tuple[Any, Any] | None
    activation: Callable[[Tensor], Tensor]
    head: int  # channels of one
    paired: bool

    def __init__(self, merge: bool) -> None:
        self.qkv, self.out, self.gate_up, self.down = (Product(merge) for _ in range(4))

    def refresh(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.norms = (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None
        self.paired = self.norms is None and copied(layer.input_layernorm.weight)
        head = attention.head_dim
        self.qkv.refresh(
            [attention.q_proj, attention.k_proj, attention.v_proj],
            layer.input_layernorm,
            [head, head, 0] if self.paired else (),
        )
        self.out.refresh([attention.o_proj])
        self.gate_up.refresh([mlp.gate_proj, mlp.up_proj], layer.post_attention_layernorm)
        self.down.refresh([mlp.down_proj])
        self.activation, self.head = mlp.act_fn, head


class RolloutWeights:
    """The layers, what they read of a token, and the head.

    decoder: transformers' Llama, or a text model of Qwen, which is built alike.
    embeddings: the modules that `embed` reads.
    embed: what the first layer reads of every token.
    head: its linear layers in turn; `activation` stands between them.
    """

    table: Float[Tensor, "V D"]

    def __init__(
        self,
        decoder: Any,
        embeddings: Sequence[nn.Module],
        embed: Callable[[], Float[Tensor, "V D"]],
        head: Sequence[nn.Module],
        activation: Callable[[Tensor], Tensor] = F.silu,
    ) -> None:
        self.decoder, self.embeddings, self.embed = decoder, embeddings, embed
        self.head_layers, self.activation = head, activation
        self.layers: list[LayerWeights] = []
        self.head = [Product() for _ in head]
        self.seen: list[tuple[int, int, int]] = []

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the weights as they are now; nothing is done for those that have not changed."""
        if not self.layers:
            merge = holds_twice(self.decoder.layers)
            self.layers = [LayerWeights(merge) for _ in self.decoder.layers]
        for weights, layer in zip(self.layers, self.decoder.layers, strict=True):
            weights.refresh(layer)
        for product, linear in zip(self.head, self.head_layers, strict=True):
            product.refresh([linear])
        if (now := seen(self.embeddings)) != self.seen:
            table = self.embed().detach()
            if not self.seen:
                self.table = table
            elif self.table.data_ptr() != table.data_ptr():
                self.table.copy_(table)
            self.seen = now

    def logits(self, hidden: Float[Tensor, "B D"]) -> Float[Tensor, "B V"]:
        """Of what has gone through the decoder and its last norm; float32."""
        *inner, last = self.head
        for product in inner:
            hidden = self.activation(product(hidden))
        return last.wide(hidden)
