"""Decoding with Llama's decoder, one token at a time, in shapes that do not change from token to token.

Everything that changes is a tensor: the slot, the tokens, what may be seen. So one run of `feed` can be captured and
replayed. What attention reads is a bucket of slots, of which those that are not filled yet are masked: on a GPU buckets
are wide, so that there are few of them to capture; on a CPU a bucket ends with the last slot that is filled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from models.parts.llama import KeyValueCache, rms_norm, rotate
from models.parts.rollout_weights import LayerWeights, RolloutWeights

BUCKETS = {"cuda": 64}  # slots, by kind of device; 1 on others
ROUNDED = 64  # what the number of slots is a multiple of, so that prompts that are a little longer fit too


@dataclass
class Prefilled:
    """Prompts that were read, before they are expanded to their groups.

    cache: holds `length` slots; rope: cosines and sines of every slot of the run.
    bias: what is added to the scores of the slots of a prompt: -inf hides one.
    hidden: of the last position.
    """

    cache: KeyValueCache
    rope: tuple[Float[Tensor, "slots b d"], Float[Tensor, "slots b d"]]
    bias: Float[Tensor, "b length"]
    hidden: Float[Tensor, "b D"]


def hiding(pads: Int[Tensor, " b"] | None, cache: KeyValueCache) -> Float[Tensor, "b length"]:
    """What hides the padding before prompts of a batch that were read."""
    bias = cache.entries.new_zeros(cache.entries.shape[1], cache.length)
    return (
        bias
        if pads is None
        else bias.masked_fill(torch.arange(cache.length, device=bias.device) < pads[:, None], -torch.inf)
    )


@dataclass
class Decoding:
    """One decoding run: the weights, the buffers that it fills, and where it is.

    filled: slots that hold keys and values, as the host counts them; `slot` is where the next ones go.
    bucket: slots by which attention reads.
    halves: what a layer does before attention and behind it (`models.parts.decoding`), or the same compiled.
    """

    weights: RolloutWeights
    branches: int
    cache: KeyValueCache
    cos: Float[Tensor, "slots B d"]
    sin: Float[Tensor, "slots B d"]
    bias: Float[Tensor, "B 1 1 slots"]
    hidden: Float[Tensor, "B D"]
    slot: Int[Tensor, " 1"]
    halves: tuple[Callable[..., Tensor], Callable[..., Tensor]]
    bucket: int
    filled: int = 0

    @classmethod
    def of(
        cls,
        read: Prefilled,
        rows: Int[Tensor, " B"],
        weights: RolloutWeights,
        branches: int,
        into: "Decoding | None" = None,
    ) -> "Decoding":
        """The run of the given rows of what was read.

        into: an earlier run. If its buffers are of the same shape or have more slots, they are this one's.
        """
        (cos, sin), hidden = (table[:, rows] for table in read.rope), read.hidden[rows]
        slots = len(cos)
        if into is None or not into.takes(weights, branches, cos):
            if into is not None:
                vars(into).clear()  # the old buffers first: both might not fit
            into = cls.empty(read, len(rows), weights, branches, -(-slots // ROUNDED) * ROUNDED)
        into.filled = read.cache.length
        if weights.layers[0].paired:
            read.cache.keys.copy_(read.cache.keys.unflatten(-1, (2, -1)).mT.flatten(-2))
        into.cache.take(read.cache, rows)
        into.cos[:slots], into.sin[:slots] = cos, sin
        into.bias.zero_()
        into.bias[:, 0, 0, : into.filled] = read.bias[rows]
        into.hidden.copy_(hidden)
        into.slot.fill_(into.filled)
        return into

    @classmethod
    def empty(cls, read: Prefilled, rows: int, weights: RolloutWeights, branches: int, slots: int) -> "Decoding":
        """Buffers of zeros: a slot that is masked still counts, as zero times what is there."""
        hidden, table = read.hidden, read.rope[0]
        return cls(
            weights,
            branches,
            cache=read.cache.zeros(rows, slots),
            cos=table.new_zeros(slots, rows, table.shape[-1]),
            sin=table.new_zeros(slots, rows, table.shape[-1]),
            bias=hidden.new_zeros(rows, 1, 1, slots),
            hidden=hidden.new_zeros(rows, hidden.shape[-1]),
            slot=torch.zeros(1, dtype=torch.long, device=hidden.device),
            halves=(before_attention, behind_attention),
            bucket=BUCKETS.get(hidden.device.type, 1),
        )

    def takes(self, weights: RolloutWeights, branches: int, cos: Float[Tensor, "slots B d"]) -> bool:
        """Whether a run with these tables fits into the buffers."""
        same = self.weights is weights and self.branches == branches
        return same and self.cos.shape[1:] == cos.shape[1:] and len(cos) <= len(self.cos)

    def lengthen(self, slots: int) -> None:
        """By so many slots: other buffers, for runs whose length nobody knows."""
        self.cache = self.cache.longer(slots)
        self.cos, self.sin = (F.pad(table, (0, 0, 0, 0, 0, slots)) for table in (self.cos, self.sin))
        self.bias = F.pad(self.bias, (0, slots))

    @property
    def visible(self) -> int:
        """Slots that attention reads in the next step."""
        return -(-(self.filled + 1) // self.bucket) * self.bucket

    @property
    def buckets(self) -> Sequence[int]:
        """All that `visible` can be."""
        return range(self.bucket, len(self.cos) + 1, self.bucket)

    @torch.no_grad()
    def append(self, tokens: Int[Tensor, "R 1"]) -> None:
        """Feed what was drawn."""
        self.feed(tokens, self.visible)
        self.filled += 1

    @torch.no_grad()
    def feed(self, tokens: Int[Tensor, "R 1"], visible: int) -> None:
        """The same without anything that the host has to know, but for how many slots attention reads."""
        x = F.embedding(tokens[:, 0], self.weights.table).repeat(self.branches, 1)
        rope = self.rope()
        hidden = torch.arange(visible, device=x.device) > self.slot
        bias = self.bias[..., :visible].masked_fill(hidden, -torch.inf)
        before, behind = self.halves
        for layer, entries in zip(self.weights.layers, self.cache.entries, strict=False):
            query = before(layer, x, rope, entries, self.slot)
            keys, values = entries[:, :, :, :visible].unbind(1)
            grouped = query.shape[1] != keys.shape[1]
            attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, enable_gqa=grouped)
            x = behind(layer, x, attended)
        self.hidden.copy_(rms_norm(self.weights.decoder.norm, x))
        self.slot.add_(1)

    def rope(self) -> tuple[Tensor, ...]:
        """What turns queries and keys at the slot, and leaves values as they are: cosines and sines `[B, heads, d]`, or
        as one complex number for the channels that lie side by side."""
        layer, kept = self.weights.layers[0], self.cache.entries.shape[3]
        turning = layer.qkv.weight.shape[1] // layer.head - kept
        cos, sin = (
            table.index_select(0, self.slot)[0, :, None].expand(-1, turning, -1) for table in (self.cos, self.sin)
        )
        cos, sin = F.pad(cos, (0, 0, 0, kept), value=1.0), F.pad(sin, (0, 0, 0, kept))
        half = layer.head // 2
        return (torch.complex(cos[..., :half], sin[..., half:]),) if layer.paired else (cos, sin)

    @torch.no_grad()
    def logits(self) -> Float[Tensor, "K R 1 V"]:
        """Of the next token."""
        return self.weights.logits(self.hidden)[:, None].unflatten(0, (self.branches, -1))


def before_attention(
    layer: LayerWeights,
    x: Float[Tensor, "B D"],
    rope: tuple[Tensor, ...],
    entries: Float[Tensor, "B 2 H slots d"],
    slot: Int[Tensor, " 1"],
) -> Float[Tensor, "B heads 1 d"]:
    """The queries; keys and values are written where they belong."""
    qkv, kept = layer.qkv(x).unflatten(-1, (-1, layer.head)), entries.shape[2]
    if layer.norms is not None:
        of_query, of_key = layer.norms
        query, key, value = qkv[:, : -2 * kept], qkv[:, -2 * kept : -kept], qkv[:, -kept:]
        qkv = torch.cat([rms_norm(of_query, query), rms_norm(of_key, key), value], dim=1)
    if layer.paired:
        pairs = torch.view_as_complex(qkv.unflatten(-1, (-1, 2)))
        qkv = torch.view_as_real(pairs * rope[0]).flatten(-2)
    else:
        qkv = rotate(qkv, *rope)
    entries.index_copy_(3, slot, qkv[:, -2 * kept :].unflatten(1, (2, -1))[:, :, :, None])
    return qkv[:, : -2 * kept, None]


def behind_attention(
    layer: LayerWeights, x: Float[Tensor, "B D"], attended: Float[Tensor, "B heads 1 d"]
) -> Float[Tensor, "B D"]:
    x = layer.out.added(attended.flatten(1), to=x)
    gate, up = layer.gate_up(x).chunk(2, dim=-1)
    return layer.down.added(layer.activation(gate) * up, to=x)
