"""Llama's decoder for the three ways a policy runs it: prefill, one step, teacher forcing.

It is Qwen's as well: with biases where the layers have them, and with the norms on queries and keys of Qwen3.

The weights stay in transformers' modules. This file only decides what is computed: keys and values go
into a static cache in place, attention reads the filled part of it and no more, and the text head is
never touched.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from models.parts.forward import as_forward


@dataclass
class KeyValueCache:
    """Static keys and values, `[layers, B, 2, heads, slots, head]`, of which `length` slots are filled."""

    entries: Tensor
    length: int = 0

    @property
    def keys(self) -> Float[Tensor, "layers B heads slots head"]:
        return self.entries[:, :, 0]

    @property
    def values(self) -> Float[Tensor, "layers B heads slots head"]:
        return self.entries[:, :, 1]

    @classmethod
    def empty(cls, model: LlamaModel, batch: int, slots: int) -> "KeyValueCache":
        attention: Any = model.layers[0].self_attn
        heads = attention.k_proj.out_features // attention.head_dim
        return cls(model.norm.weight.new_empty(len(model.layers), batch, 2, heads, slots, attention.head_dim))

    def zeros(self, batch: int, slots: int) -> "KeyValueCache":
        """Another with nothing in it, of so many batch rows and slots."""
        layers, _, _, heads, _, head = self.entries.shape
        return KeyValueCache(self.entries.new_zeros(layers, batch, 2, heads, slots, head))

    def take(self, other: "KeyValueCache", rows: Int[Tensor, " B"]) -> None:
        """Be filled as far as the other, with copies of its batch rows."""
        self.length = other.length
        self.entries[..., : self.length, :] = other.entries[:, rows, ..., : self.length, :]

    def keep(self, layer: int, key: Float[Tensor, "B H T d"], value: Float[Tensor, "B H T d"]) -> tuple[Tensor, Tensor]:
        """Put a layer's new keys and values behind the filled slots; returns all that are there then."""
        end = self.length + key.shape[2]
        self.keys[layer, :, :, self.length : end] = key
        self.values[layer, :, :, self.length : end] = value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def expand(self, rows: Int[Tensor, " B"], slots: int) -> "KeyValueCache":
        """A cache of `slots` slots whose batch rows are copies of the given ones."""
        expanded = self.zeros(len(rows), slots)
        expanded.take(self, rows)
        return expanded

    def longer(self, slots: int) -> "KeyValueCache":
        """The same with so many more slots."""
        return KeyValueCache(F.pad(self.entries, (0, 0, 0, slots)), self.length)


def rope_table(model: LlamaModel, positions: int) -> tuple[Float[Tensor, "S d"], Float[Tensor, "S d"]]:
    """Cosines and sines of the rotary embedding at positions 0..S-1, as `rotate` wants them."""
    cos, sin = rope_at(model, torch.arange(positions, device=model.norm.weight.device)[None])
    return cos[0, 0], sin[0, 0]


def rope_at(
    model: LlamaModel, positions: Int[Tensor, "*axes B T"]
) -> tuple[Float[Tensor, "B 1 T d"], Float[Tensor, "B 1 T d"]]:
    """Cosines and sines of the rotary embedding at positions, the sines of the first half negated.

    `rotate` then needs one multiplication and one swap of the halves. Qwen's text models place a token on three axes.
    """
    cos, sin = model.rotary_emb(model.norm.weight, positions)
    first, second = sin.chunk(2, dim=-1)
    return cos[:, None], torch.cat([-first, second], dim=-1)[:, None]


def rotate(x: Float[Tensor, "B H T d"], cos: Float[Tensor, "B 1 T d"], sin: Float[Tensor, "B 1 T d"]) -> Tensor:
    """Rotary embedding in the half-split convention."""
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def rms_norm(norm: LlamaRMSNorm, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def causal_mask(pads: Int[Tensor, " B"] | None, width: int) -> Bool[Tensor, "B 1 T T"] | None:
    """What each position sees when the first `pads` are padding; None where plain causality says it all.

    Padding sees itself: a row that sees nothing would be NaN, and so would its gradient.
    """
    if pads is None:
        return None
    slot = torch.arange(width, device=pads.device)
    real = slot[None, None] >= pads[:, None, None]
    return ((slot[:, None] >= slot) & real | torch.eye(width, dtype=torch.bool, device=pads.device))[:, None]


def decoder_layer(
    layer: Any,
    x: Float[Tensor, "B T D"],
    cos: Float[Tensor, "B 1 T d"],
    sin: Float[Tensor, "B 1 T d"],
    visible: Bool[Tensor, "B 1 T S"] | None,
    causal: bool,
    keep: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Float[Tensor, "B T D"]:
    """One of transformers' decoder layers.

    causal: whether each position sees those before it alone, where `visible` does not say what it sees.
    keep: takes the keys and values and gives those that are attended to; without it they are the same.
    """
    attention = layer.self_attn
    normed = rms_norm(layer.input_layernorm, x)
    query, key, value = (
        projection(normed).view(*x.shape[:2], -1, attention.head_dim)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if hasattr(attention, "q_norm"):
        query, key = rms_norm(attention.q_norm, query), rms_norm(attention.k_norm, key)
    query, key, value = (heads.transpose(1, 2) for heads in (query, key, value))
    query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    if keep is not None:
        key, value = keep(key, value)
    attended = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=visible,
        is_causal=causal,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    x = x + attention.o_proj(attended.transpose(1, 2).reshape(x.shape))
    return x + layer.mlp(rms_norm(layer.post_attention_layernorm, x))


@cache
def compiled_layer() -> Callable[..., Float[Tensor, "B T D"]]:
    """The same, compiled once for all layers and lengths; its twin above is what tests compare it with."""
    return torch.compile(decoder_layer, dynamic=True)


def run(
    model: LlamaModel,
    x: Float[Tensor, "B T D"],
    rope: tuple[Float[Tensor, "B 1 T d"], Float[Tensor, "B 1 T d"]],
    visible: Bool[Tensor, "B 1 T S"] | None,
    cache: KeyValueCache | None = None,
    recompute: bool = False,
    deep: Sequence[Float[Tensor, "B T D"]] = (),
    compiled: bool = False,
) -> Float[Tensor, "B T D"]:
    """The decoder's output after its final norm, for T new positions.

    rope: cosines and sines at the new positions (`rope_table`).
    visible: which of the S positions each new one sees, those in the cache first; None is causal.
    cache: receives the new keys and values behind the `length` slots it holds.
    recompute: keep only the layers' inputs for the backward pass, which then runs each layer once more.
    deep: what is added to the output of the first layers: of Qwen3, what the vision tower saw on its way.
    compiled: whether the layers are, where there is no cache.
    """
    through, causal = compiled_layer() if compiled else decoder_layer, visible is None and x.shape[1] > 1
    for index, layer in enumerate(model.layers):
        given = x, *rope, visible, causal, None if cache is None else partial(cache.keep, index)
        if recompute and torch.is_grad_enabled():
            x = checkpoint(as_forward, layer, through, *given, use_reentrant=False, preserve_rng_state=False)
        else:
            x = as_forward(layer, through, *given)
        if index < len(deep):
            x = x + deep[index]
    if cache is not None:
        cache.length += x.shape[1]
    return rms_norm(model.norm, x)
