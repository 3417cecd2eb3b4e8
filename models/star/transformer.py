"""STAR's transformer (arXiv:2406.10797): all tokens of a scale at once, after every token of the earlier scales.

The modules carry the names of the released state dict, so that it loads and saves as it is.

Legend: `B` rows, `T` positions, `C` width, `H` heads of `d` channels, `L` text positions.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.errors import ModelError
from models.files.tensors import check_tensors, plain_weights
from models.parts.forward import as_forward
from models.parts.llama import KeyValueCache

ROPE_BASE = 10000.0
ROPE_SPAN = 64.0  # every scale's map is stretched over this many positions
NORM_EPS = 1e-6
MOST_SCALE = math.log(100)  # bound of the learned logarithm that multiplies normalised queries

SAMPLER = r"^(feat_extract_blocks|word_embed_head|lvl_embed_2|encoder_proj2|head_proj|head_logits2)\.|^pos_start_last$"
TABLES = r"^(lvl_1L|attn_bias_for_masking)$"  # they follow from the scales
UNUSED = re.compile(f"{SAMPLER}|{TABLES}")

TextKeys = list[tuple[Tensor, Tensor]]  # of each layer: keys and values [B, H, L, d]


@dataclass(frozen=True)
class StarSizes:
    """Sizes of the transformer; `scales` is how many, `classes` the rows of a table that is never read."""

    width: int
    heads: int
    depth: int
    scales: int
    codes: int
    code_width: int
    text_width: int
    mlp: int
    classes: int = 1

    @classmethod
    def of(cls, path: Path, weights: Mapping[str, Tensor]) -> "StarSizes":
        """From the shapes of a state dict. Raises ModelError where those to read are absent."""

        def shape(name: str, axes: int = 2) -> tuple[int, ...]:
            if name not in weights or weights[name].ndim != axes:
                raise ModelError(f"{path} lacks {name} of {axes} axes: it is not STAR's transformer")
            return tuple(weights[name].shape)

        width, code_width = shape("word_embed.weight")
        heads = shape("blocks.0.attn.scale_mul_1H11", axes=4)[1]
        if not heads or width % (4 * heads):
            raise ModelError(
                f"{path}: a width of {width} has no {heads} heads with whole pairs: copy the checkpoint again"
            )
        return cls(
            width=width,
            heads=heads,
            depth=len({name.split(".")[1] for name in weights if name.startswith("blocks.")}),
            scales=shape("lvl_embed.weight")[0],
            codes=shape("head_logits.weight")[0],
            code_width=code_width,
            text_width=shape("encoder_proj.weight")[1],
            mlp=shape("blocks.0.ffn.fc1.weight")[0],
            classes=shape("class_emb.weight")[0],
        )


class SelfAttention(nn.Module):
    """Attention of normalised queries and keys with a learned scale per head."""

    def __init__(self, sizes: StarSizes) -> None:
        super().__init__()
        width = sizes.width
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, sizes.heads, 1, 1), math.log(4)))
        self.proj = nn.Linear(width, width)

    def heads(self, x: Float[Tensor, "B T C"], rope: Float[Tensor, "T 2 d/2"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[B, H, T, d]`, ready for attention."""
        bias = torch.cat([self.q_bias, self.get_buffer("zero_k_bias"), self.v_bias])
        query, key, value = split_heads(self.mat_qkv(x) + bias, 3, self.scale_mul_1H11.shape[1])
        return scaled(rotate(query, rope), self.scale_mul_1H11), F.normalize(rotate(key, rope), dim=-1), value


class CrossAttention(nn.Module):
    """The same attention, to the text."""

    def __init__(self, sizes: StarSizes) -> None:
        super().__init__()
        width = sizes.width
        self.mat_q = nn.Linear(width, width, bias=False)
        self.mat_kv = nn.Linear(sizes.text_width, 2 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, sizes.heads, 1, 1), math.log(4)))
        self.proj = nn.Linear(width, width)

    def keys(self, text: Float[Tensor, "B L D"]) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, H, L, d]` of the text; they serve every scale."""
        bias = torch.cat([self.get_buffer("zero_k_bias"), self.v_bias])
        key, value = split_heads(self.mat_kv(text) + bias, 2, self.scale_mul_1H11.shape[1])
        return F.normalize(key, dim=-1), value

    def forward(
        self, x: Float[Tensor, "B T C"], keys: tuple[Tensor, Tensor], visible: Bool[Tensor, "B 1 1 L"]
    ) -> Float[Tensor, "B T C"]:
        (query,) = split_heads(self.mat_q(x) + self.q_bias, 1, self.scale_mul_1H11.shape[1])
        return self.proj(attend(scaled(query, self.scale_mul_1H11), *keys, visible))


class Block(nn.Module):
    def __init__(self, sizes: StarSizes) -> None:
        super().__init__()
        self.attn = SelfAttention(sizes)
        self.cross_attn = CrossAttention(sizes)
        self.ffn = nn.ModuleDict({"fc1": nn.Linear(sizes.width, sizes.mlp), "fc2": nn.Linear(sizes.mlp, sizes.width)})


class StarTransformer(nn.Module):
    """The transformer without its image tokenizer; what it reads and predicts is decided by `models.star.policy`."""

    def __init__(self, sizes: StarSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.word_embed = nn.Linear(sizes.code_width, sizes.width)
        self.class_emb = nn.Embedding(sizes.classes, sizes.width)  # in the checkpoints, never read
        self.pos_start = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.lvl_embed = nn.Embedding(sizes.scales, sizes.width)
        self.encoder_proj = nn.Linear(sizes.text_width, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.head_logits = nn.Linear(sizes.width, sizes.codes)

    @classmethod
    def from_tensors(cls, path: Path, weights: Mapping[str, Tensor]) -> "StarTransformer":
        """From a released state dict, by whose shapes it is sized. Raises ModelError.

        What only the variant with a sampler has is left out, so it decodes as the others do.
        """
        weights = plain_weights(path, weights, UNUSED)
        with torch.device("meta"):
            model = cls(StarSizes.of(path, weights))
        check_tensors(path, weights, model.state_dict())
        model.load_state_dict(weights, assign=True)
        return model

    def start(self, pooled: Float[Tensor, "B D"]) -> Float[Tensor, "B 1 C"]:
        """The input of the first scale."""
        return self.encoder_proj(pooled)[:, None] + self.pos_start + self.lvl_embed.weight[0]

    def text_keys(self, text: Float[Tensor, "B L D"]) -> TextKeys:
        """Keys and values of the text for every layer."""
        return [block.cross_attn.keys(text) for block in self.layers]

    @property
    def layers(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def empty_cache(self, rows: int, slots: int) -> KeyValueCache:
        heads, like = self.sizes.heads, self.pos_start
        return KeyValueCache(like.new_empty(self.sizes.depth, rows, 2, heads, slots, self.sizes.width // heads))

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        rope: Float[Tensor, "T 2 d/2"],
        text: TextKeys | Float[Tensor, "b L D"],
        text_visible: Bool[Tensor, "b 1 1 L"],
        visible: Bool[Tensor, "T T"] | None = None,
        cache: KeyValueCache | None = None,
        recompute: bool = False,
    ) -> Float[Tensor, "B T C"]:
        """The output of the last layer, before its norm, for T new positions.

        text: of the first b rows, as it is or as its keys (`text_keys`). Where b is less than B, only those rows look
            at the text, and the rows of the other branch receive what the conditional ones found there.
        visible: which of the T positions each one sees; without it, all of them and those in the cache.
        cache: receives the new keys and values behind the `length` slots it holds.
        recompute: keep only the layers' inputs for the backward pass, which then runs each layer once more.
        """
        shared = len(x) // len(text_visible)

        def through(block: Block, index: int, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
            keys = block.cross_attn.keys(text) if isinstance(text, Tensor) else text[index]
            query, key, value = block.attn.heads(norm(x), rope)
            if cache is not None:
                end = cache.length + x.shape[1]
                cache.keys[index, :, :, cache.length : end] = key
                cache.values[index, :, :, cache.length : end] = value
                key, value = cache.keys[index, :, :, :end], cache.values[index, :, :, :end]
            x = x + block.attn.proj(attend(query, key, value, visible))
            x = x + block.cross_attn(norm(x[: len(text_visible)]), keys, text_visible).repeat(shared, 1, 1)
            return x + block.ffn["fc2"](F.gelu(block.ffn["fc1"](norm(x)), approximate="tanh"))

        for index, block in enumerate(self.layers):
            if recompute and torch.is_grad_enabled():
                x = checkpoint(as_forward, block, through, index, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = as_forward(block, through, index, x)
        if cache is not None:
            cache.length += x.shape[1]
        return x


def norm(x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def split_heads(x: Float[Tensor, "B T _"], parts: int, heads: int) -> list[Tensor]:
    """The parts of a joint projection, each `[B, H, T, d]`."""
    return list(x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind())


def scaled(query: Float[Tensor, "B H T d"], log_scale: Float[Tensor, "1 H 1 1"]) -> Float[Tensor, "B H T d"]:
    return F.normalize(query, dim=-1) * log_scale.clamp(max=MOST_SCALE).exp()


def attend(query: Tensor, key: Tensor, value: Tensor, visible: Bool[Tensor, "..."] | None) -> Float[Tensor, "B T C"]:
    """Attention whose scores are the products themselves; heads joined again."""
    return F.scaled_dot_product_attention(query, key, value, visible, scale=1.0).transpose(1, 2).flatten(2)


def rotate(x: Float[Tensor, "B H T d"], rope: Float[Tensor, "T 2 d/2"]) -> Float[Tensor, "B H T d"]:
    """Rotary embedding of channels 2k and 2k + 1 as a pair, in float32."""
    cos, sin = rope.unbind(1)
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2).to(x.dtype)


def rope_table(scales: Sequence[int], width: int) -> Float[Tensor, "N 2 d/2"]:
    """Cosines and sines of every token of every scale: half of the pairs turn with the column, half with the row.

    A p x p map has the positions `index / (p - 1) * 64`, so that all scales cover the same span.
    """
    frequencies = ROPE_BASE ** (-4 * torch.arange(width // 4) / width)
    angles = []
    for side in scales:
        turned = torch.arange(side)[:, None] / max(side - 1, 1) * ROPE_SPAN * frequencies
        column, row = turned[None].expand(side, -1, -1), turned[:, None].expand(-1, side, -1)
        angles.append(torch.cat([column, row], -1).flatten(0, 1))
    table = torch.cat(angles)
    return torch.stack([table.cos(), table.sin()], 1)
