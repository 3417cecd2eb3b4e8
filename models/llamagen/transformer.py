"""LlamaGen's text-conditional transformer (arXiv:2406.06525) on transformers' Llama modules.

What makes it differ from Llama: the sequence begins with caption features instead of tokens, the rotary
embedding knows rows and columns, and its table is zero, not the identity, at text positions. Queries and keys of
text are therefore zero: a text row averages the values of the text it sees, and an image token gives each
visible text row the score 0. So text has no positions, and padding can be left out instead of masked.

The checkpoints pair neighbouring channels in the rotary embedding; here queries and keys are permuted, so that
`models.parts.llama` pairs the halves. The attention scores are the same.
"""

import re
import sys
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any, Literal, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from models.errors import ModelError
from models.files.tensors import check_tensors
from models.parts.vq import count_numbered
from models.policy import MOST_SIDE

Naming = Literal["original", "transformers"]
# Rotary tables, masks and caches that were saved along, and the text encoder that some copies carry.
NEVER_READ = re.compile(
    r"^t5_model\.|(^|\.)(freqs_cis|causal_mask|rotary_emb\.inv_freq)$|^layers\.\d+\.attention\.kv_cache\.[kv]_cache$"
)
HEAD_WIDTH = 64  # of every released size; a config.json may say otherwise

# Beginnings and middles of the keys: the original's, and those of the copies in transformers' style.
TOP = (
    ("tok_embeddings.", "model.embed_tokens."),
    ("cls_embedding.", "model.cls_embedding."),
    ("layers.", "model.layers."),
    ("norm.", "model.norm."),
    ("output.", "lm_head."),
)
INNER = (
    (".attention.wo.", ".self_attn.o_proj."),
    (".feed_forward.w1.", ".mlp.gate_proj."),
    (".feed_forward.w3.", ".mlp.up_proj."),
    (".feed_forward.w2.", ".mlp.down_proj."),
    (".attention_norm.", ".input_layernorm."),
    (".ffn_norm.", ".post_attention_layernorm."),
)
WQKV, QKV = ".attention.wqkv.", tuple(f".self_attn.{name}_proj." for name in "qkv")


class CaptionEmbedding(nn.Module):
    """Caption features to the transformer's width, and the caption that stands for none."""

    uncond_embedding: Float[Tensor, "rows C"]

    def __init__(self, caption_width: int, width: int, rows: int) -> None:
        super().__init__()
        # A buffer: no optimiser ever changed it, and neither do we.
        self.register_buffer("uncond_embedding", torch.zeros(rows, caption_width))
        self.cap_proj = nn.ModuleDict(
            {"fc1": nn.Linear(caption_width, width, bias=False), "fc2": nn.Linear(width, width, bias=False)}
        )

    def forward(self, features: Float[Tensor, "... C"]) -> Float[Tensor, "... D"]:
        return self.cap_proj["fc2"](nn.functional.gelu(self.cap_proj["fc1"](features), approximate="tanh"))


class LlamaGenTransformer(nn.Module):
    """The weights; what is computed with them is decided in `models.parts.llama` and `models.llamagen.policy`."""

    def __init__(self, config: LlamaConfig, caption_width: int, text_rows: int, naming: Naming) -> None:
        super().__init__()
        self.naming = naming
        self.heads = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
        self.head_width = config.hidden_size // self.heads[0]
        self.rope_base = float(cast(dict, config.rope_parameters)["rope_theta"])
        self.model = LlamaModel(config)
        del self.model.rotary_emb  # one-dimensional: `rope_table` replaces it
        self.model.cls_embedding = CaptionEmbedding(caption_width, config.hidden_size, text_rows)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def captions(self) -> CaptionEmbedding:
        return cast(CaptionEmbedding, self.model.cls_embedding)

    @staticmethod
    def from_weights(weights: Mapping[str, Tensor], config: Mapping[str, Any], where: Path) -> "LlamaGenTransformer":
        """From the tensors of a checkpoint in either naming, sizes read from their shapes.

        config: number of heads (and of layers), norm epsilon and rotary base where they are not the released
        ones, in either naming. Raises ModelError, which names `where` and the key.
        """
        if "tok_embeddings.weight" not in weights and "model.embed_tokens.weight" not in weights:
            raise ModelError(f"{where} holds no LlamaGen, for it has no tok_embeddings.weight: give another file")
        naming: Naming = "original" if "tok_embeddings.weight" in weights else "transformers"
        try:
            with torch.device("meta"):
                empty = _empty(weights, config, naming, where)
        except KeyError as error:
            raise ModelError(f"{where} lacks the weight {error.args[0]}: copy the checkpoint again") from error
        except (StrictDataclassError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"the shapes in {where} make no LlamaGen ({reason}): copy the checkpoint again") from error
        expected = empty.named_weights()
        check_tensors(where, weights, expected)
        empty.load_state_dict(empty._ours({name: weights[name].detach() for name in expected}), assign=True)
        return empty

    def named_weights(self) -> dict[str, Tensor]:
        """The tensors as the checkpoint that they came from names and arranges them."""
        heads, kv_heads = self.heads
        named = {}
        for name, tensor in self.state_dict().items():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                tensor = neighbours(tensor, heads if name.endswith("q_proj.weight") else kv_heads)
            named[name] = tensor
        if self.naming == "transformers":
            return named
        for name in [name for name in named if QKV[0] in name]:
            parts = [named.pop(name.replace(QKV[0], part)) for part in QKV]
            named[name.replace(QKV[0], WQKV)] = torch.cat(parts)
        return {original_name(name): tensor for name, tensor in named.items()}

    def _ours(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `named_weights`."""
        heads, kv_heads = self.heads
        named = {}
        for name, tensor in weights.items():
            if self.naming == "original":
                name = transformers_name(name)
            if WQKV in name:
                sizes = [count * self.head_width for count in (heads, kv_heads, kv_heads)]
                for part, rows in zip(QKV, tensor.split(sizes), strict=True):
                    named[name.replace(WQKV, part)] = rows
            else:
                named[name] = tensor
        for part, count in zip(QKV[:2], self.heads, strict=True):
            for name in [name for name in named if part in name]:
                named[name] = halves(named[name], count)
        return {name: tensor.contiguous() for name, tensor in named.items()}


def _empty(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], naming: Naming, where: Path
) -> LlamaGenTransformer:
    """The module that the shapes ask for. Raises KeyError with the name of a missing weight, and ModelError."""

    def shape(name: str) -> torch.Size:
        key = name if naming == "original" else transformers_name(name)
        if weights[key].ndim != 2:
            raise ModelError(f"{where}: {key} is {tuple(weights[key].shape)}, not a matrix: copy the checkpoint again")
        return weights[key].shape

    codes, width = shape("tok_embeddings.weight")
    rows, caption_width = shape("cls_embedding.uncond_embedding")
    heads = setting(config, ("n_head", "num_attention_heads"), max(1, width // HEAD_WIDTH), where)
    if width % heads or width // heads % 4:
        raise ModelError(f"{where}: a width of {width} does not divide into {heads} heads: set n_head in config.json")
    head = width // heads
    if naming == "original":
        kv_width = (shape("layers.0.attention.wqkv.weight")[0] - width) // 2
    else:
        kv_width = shape("layers.0.self_attn.k_proj.weight")[0]
    found = count_numbered(weights, "layers." if naming == "original" else "model.layers.")
    layers = setting(config, ("n_layer", "num_hidden_layers"), found, where)
    if found != layers:
        raise ModelError(
            f"{where} has {found} layers, but its config.json says {layers}: set n_layer to {found}, or copy the "
            "checkpoint again"
        )
    llama = LlamaConfig(
        vocab_size=codes,
        hidden_size=width,
        intermediate_size=shape("layers.0.feed_forward.w1.weight")[0],
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, kv_width // head),
        rms_norm_eps=real(config, ("norm_eps", "rms_norm_eps"), 1e-5, where),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": real(config, ("rope_base", "rope_theta"), 10000.0, where),
        },
    )
    return LlamaGenTransformer(llama, caption_width, rows, naming)


def setting(config: Mapping[str, Any], names: tuple[str, ...], default: int, where: Path) -> int:
    """A whole number above 0 under the first of the names that the config has. Raises ModelError."""
    for name in names:
        value = config.get(name, default)
        if not isinstance(value, int) or value < 1:
            raise ModelError(f"the config.json of {where} has {name} {value!r}: it has to be a whole number above 0")
        if name in config:
            return value
    return default


def real(config: Mapping[str, Any], names: tuple[str, ...], default: float, where: Path) -> float:
    """A number above 0 under the first of the names that the config gives a value. Raises ModelError."""
    for name in names:
        value = config.get(name)
        if value is not None:
            if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
                raise ModelError(f"the config.json of {where} has {name} {value!r}: it has to be a number above 0")
            return float(value)
    return default


def grid_side(config: Mapping[str, Any], where: Path, pixels_per_token: int) -> int:
    """The side of the token grid: by `block_size` in the config, else by the released files' names, `..._256.pt`.

    The weights do not tell. Raises ModelError where nothing does.
    """
    named = re.search(r"_(\d+)\.pt$", where.name)
    if "block_size" not in config and named is None:
        raise ModelError(
            f"nothing tells the image size of {where}: write the number of image tokens as block_size into the "
            "config.json there"
        )
    default = 1 if named is None else (int(named[1]) // pixels_per_token) ** 2
    tokens = setting(config, ("block_size",), default, where)
    if isqrt(tokens) ** 2 != tokens or tokens > MOST_SIDE**2:
        raise ModelError(
            f"the config.json of {where} has block_size {tokens}: it has to be a square number, of "
            f"{MOST_SIDE} tokens a side at most"
        )
    return isqrt(tokens)


def transformers_name(name: str) -> str:
    """A key of the original in the style of transformers; the fused `wqkv` keeps its middle."""
    for original, other in TOP:
        if name.startswith(original):
            name = other + name.removeprefix(original)
            break
    for original, other in INNER:
        name = name.replace(original, other)
    return name


def original_name(name: str) -> str:
    for original, other in INNER:
        name = name.replace(other, original)
    for original, other in TOP:
        if name.startswith(other):
            return original + name.removeprefix(other)
    return name


def halves(weight: Float[Tensor, "heads*d D"], heads: int) -> Float[Tensor, "heads*d D"]:
    """Rows of each head from channels in neighbouring pairs (2k, 2k+1) to pairs across the halves (k, k + d/2)."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def neighbours(weight: Float[Tensor, "heads*d D"], heads: int) -> Float[Tensor, "heads*d D"]:
    """The inverse of `halves`."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def rope_table(
    side: int, text_rows: int, head_width: int, base: float, like: Tensor
) -> tuple[Float[Tensor, "S d"], Float[Tensor, "S d"]]:
    """Cosines and sines for `models.parts.llama.rotate` at text positions (zeros) and then at each image token.

    The first half of a head's pairs turns with the token's row, the second with its column, both counted from 0,
    at frequencies `base^(-2k / (d/2))`.
    """
    exponents = torch.arange(0, head_width // 2, 2, device=like.device) / (head_width // 2)
    angles = torch.arange(side, device=like.device)[:, None] * base**-exponents
    by_row, by_column = angles[:, None].expand(-1, side, -1), angles[None].expand(side, -1, -1)
    angles = torch.cat([by_row, by_column], dim=-1).flatten(0, 1)
    cos, sin = (nn.functional.pad(table, (0, 0, text_rows, 0)) for table in (angles.cos(), angles.sin()))
    return torch.cat([cos, cos], dim=-1).to(like.dtype), torch.cat([-sin, sin], dim=-1).to(like.dtype)
