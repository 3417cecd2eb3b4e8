"""OpenMMLab's names of Mask2Former's weights, turned into transformers' names and layouts, and the sizes they imply.

The detector of GenEval is published by OpenMMLab; transformers holds the same architecture under other names. Three
things are more than a name: fused query-key-value projections are split (in that order), the Swin downsamplings gather
their 2x2 neighbours in another order, and the decoder of transformers counts one layer more than it builds. Every key
must be consumed and every weight filled.
"""

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor
from transformers import Mask2FormerConfig, SwinConfig

from rewards.detectors.openmmlab import canonical
from rewards.errors import RewardError

# Stems, to which `.weight` or `.bias` may be added; N is a number, the same on both sides. Several targets: the tensor
# is split evenly along its first axis. No target: the tensor is computed anew by transformers.
_SWIN, _SWIN_TO = "backbone.stages.N.blocks.N.", "model.pixel_level_module.encoder.swin.encoder.layers.N.blocks.N."
_PIXEL, _PIXEL_TO = "panoptic_head.pixel_decoder.", "model.pixel_level_module.decoder."
_ENCODER, _ENCODER_TO = _PIXEL + "encoder.layers.N.", _PIXEL_TO + "encoder.layers.N."
_HEAD, _HEAD_TO = "panoptic_head.", "model.transformer_module."
_DECODER, _DECODER_TO = _HEAD + "transformer_decoder.layers.N.", _HEAD_TO + "decoder.layers.N."
_EMBEDDER = _HEAD_TO + "decoder.mask_predictor.mask_embedder."
_MERGING = "model.pixel_level_module.encoder.swin.encoder.layers.N.downsample."


def _projections(stem: str, leaf: str = "") -> tuple[str, ...]:
    return tuple(f"{stem}{part}_proj{leaf}" for part in "qkv")


RULES: dict[str, tuple[str, ...]] = {
    "backbone.patch_embed.projection": (
        "model.pixel_level_module.encoder.swin.embeddings.patch_embeddings.projection",
    ),
    "backbone.patch_embed.norm": ("model.pixel_level_module.encoder.swin.embeddings.norm",),
    _SWIN + "norm1": (_SWIN_TO + "layernorm_before",),
    _SWIN + "norm2": (_SWIN_TO + "layernorm_after",),
    _SWIN + "attn.w_msa.qkv": _projections(_SWIN_TO + "attention."),
    _SWIN + "attn.w_msa.proj": (_SWIN_TO + "attention.o_proj",),
    _SWIN + "attn.w_msa.relative_position_bias_table": (
        _SWIN_TO + "attention.relative_position_bias.relative_position_bias_table",
    ),
    _SWIN + "attn.w_msa.relative_position_index": (),
    _SWIN + "ffn.layers.0.0": (_SWIN_TO + "mlp.fc1",),
    _SWIN + "ffn.layers.1": (_SWIN_TO + "mlp.fc2",),
    "backbone.stages.N.downsample.norm": (_MERGING + "norm",),
    "backbone.stages.N.downsample.reduction": (_MERGING + "reduction",),
    **{f"backbone.norm{i}": (f"model.pixel_level_module.encoder.hidden_states_norms.stage{i + 1}",) for i in range(4)},
    _PIXEL + "input_convs.N.conv": (_PIXEL_TO + "input_projections.N.0",),
    _PIXEL + "input_convs.N.gn": (_PIXEL_TO + "input_projections.N.1",),
    **{
        _ENCODER + f"self_attn.{name}": (_ENCODER_TO + f"self_attn.{name}",)
        for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    },
    _ENCODER + "norms.0": (_ENCODER_TO + "self_attn_layer_norm",),
    _ENCODER + "norms.1": (_ENCODER_TO + "final_layer_norm",),
    _ENCODER + "ffn.layers.0.0": (_ENCODER_TO + "fc1",),
    _ENCODER + "ffn.layers.1": (_ENCODER_TO + "fc2",),
    _PIXEL + "level_encoding.weight": (_PIXEL_TO + "level_embed",),
    _PIXEL + "lateral_convs.0.conv": (_PIXEL_TO + "adapter_1.0",),
    _PIXEL + "lateral_convs.0.gn": (_PIXEL_TO + "adapter_1.1",),
    _PIXEL + "output_convs.0.conv": (_PIXEL_TO + "layer_1.0",),
    _PIXEL + "output_convs.0.gn": (_PIXEL_TO + "layer_1.1",),
    _PIXEL + "mask_feature": (_PIXEL_TO + "mask_projection",),
    _DECODER + "cross_attn.attn.in_proj_weight": (_DECODER_TO + "cross_attn.in_proj_weight",),
    _DECODER + "cross_attn.attn.in_proj_bias": (_DECODER_TO + "cross_attn.in_proj_bias",),
    _DECODER + "cross_attn.attn.out_proj": (_DECODER_TO + "cross_attn.out_proj",),
    _DECODER + "self_attn.attn.in_proj_weight": _projections(_DECODER_TO + "self_attn.", ".weight"),
    _DECODER + "self_attn.attn.in_proj_bias": _projections(_DECODER_TO + "self_attn.", ".bias"),
    _DECODER + "self_attn.attn.out_proj": (_DECODER_TO + "self_attn.out_proj",),
    _DECODER + "norms.0": (_DECODER_TO + "cross_attn_layer_norm",),
    _DECODER + "norms.1": (_DECODER_TO + "self_attn_layer_norm",),
    _DECODER + "norms.2": (_DECODER_TO + "final_layer_norm",),
    _DECODER + "ffn.layers.0.0": (_DECODER_TO + "fc1",),
    _DECODER + "ffn.layers.1": (_DECODER_TO + "fc2",),
    _HEAD + "transformer_decoder.post_norm": (_HEAD_TO + "decoder.layernorm",),
    _HEAD + "query_feat": (_HEAD_TO + "queries_features",),
    _HEAD + "query_embed": (_HEAD_TO + "queries_embedder",),
    _HEAD + "level_embed": (_HEAD_TO + "level_embed",),
    **{_HEAD + f"mask_embed.{2 * i}": (f"{_EMBEDDER}{i}.0",) for i in range(3)},
    _HEAD + "cls_embed": ("class_predictor",),
}

_PATTERNS = {
    re.compile(re.escape(stem).replace("N", r"(\d+)") + r"(\.weight|\.bias)?"): targets
    for stem, targets in RULES.items()
}

# What the official checkpoint does not hold and the detector never reads: Swin's classifier norm, a loss constant.
UNUSED = {
    "model.pixel_level_module.encoder.swin.layernorm.weight",
    "model.pixel_level_module.encoder.swin.layernorm.bias",
    "criterion.empty_weight",
}


def reorder_merging(tensor: Tensor) -> Tensor:
    """The last axis of a downsampling's norm or reduction, `4 * c + 2 * row + column`, by transformers' order.

    That is four blocks of C channels: (row, column) = (0, 0), (1, 0), (0, 1), (1, 1).
    """
    return tensor.unflatten(-1, (-1, 4))[..., [0, 2, 1, 3]].transpose(-1, -2).flatten(-2)


def convert(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """OpenMMLab's tensors (2.x or 3.x names) by transformers' names, in float32. Raises RewardError."""
    converted: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        targets, leaf = _targets(canonical(key), key, source)
        if not targets:
            continue
        try:
            ordered = reorder_merging(tensor) if ".downsample." in key else tensor
            parts = ordered.float().unflatten(0, (len(targets), -1)).unbind() if len(targets) > 1 else [ordered.float()]
        except (RuntimeError, IndexError) as error:
            raise RewardError(
                f"{source}: {key} has the shape {tuple(tensor.shape)}: copy the checkpoint again"
            ) from error
        converted |= {target + leaf: part for target, part in zip(targets, parts, strict=True)}
    return converted


def _targets(key: str, original: str, source: str) -> tuple[list[str], str]:
    for pattern, targets in _PATTERNS.items():
        if match := pattern.fullmatch(key):
            *numbers, leaf = match.groups()
            filled = []
            for target in targets:
                for number in numbers:
                    target = target.replace("N", number, 1)
                filled.append(target)
            return filled, leaf or ""
    raise RewardError(
        f"{source}: {original} is no weight of OpenMMLab's Mask2Former: give the Swin COCO instance model"
    )


def config_of(weights: Mapping[str, Tensor], source: str) -> Mask2FormerConfig:
    """The architecture, read from the shapes of OpenMMLab's tensors. Raises RewardError for a key that is not there."""
    named = {canonical(key): tensor for key, tensor in weights.items()}

    def rows(key: str, axis: int = 0) -> int:
        if key not in named:
            raise RewardError(f"{source} lacks {key}: give the whole checkpoint of OpenMMLab's Mask2Former")
        if named[key].ndim < 2:
            raise RewardError(f"{source}: {key} has the shape {tuple(named[key].shape)}: copy the checkpoint again")
        return named[key].shape[axis]

    def count(pattern: str) -> int:
        return len({match.group(1) for key in named if (match := re.match(pattern, key))})

    stages = range(count(r"backbone\.stages\.(\d+)\."))
    tables = [f"backbone.stages.{stage}.blocks.0.attn.w_msa.relative_position_bias_table" for stage in stages]
    width = rows("backbone.patch_embed.projection.weight")
    backbone: dict[str, Any] = {
        "embed_dim": width,
        "patch_size": rows("backbone.patch_embed.projection.weight", -1),
        "depths": [count(rf"backbone\.stages\.{stage}\.blocks\.(\d+)\.") for stage in stages],
        "num_heads": [rows(table, 1) for table in tables],
        "window_size": (isqrt(rows("backbone.stages.0.blocks.0.attn.w_msa.relative_position_bias_table")) + 1) // 2,
        "mlp_ratio": rows("backbone.stages.0.blocks.0.ffn.layers.0.0.weight") / width,
        "out_features": [f"stage{stage + 1}" for stage in stages],
    }
    encoder, decoder = "panoptic_head.pixel_decoder.encoder.layers.", "panoptic_head.transformer_decoder.layers."
    sizes: dict[str, Any] = {
        "feature_size": rows("panoptic_head.pixel_decoder.mask_feature.weight", 1),
        "hidden_dim": rows("panoptic_head.query_feat.weight", 1),
        "mask_feature_size": rows("panoptic_head.pixel_decoder.mask_feature.weight"),
        "encoder_layers": count(re.escape(encoder) + r"(\d+)\."),
        "encoder_feedforward_dim": rows(encoder + "0.ffn.layers.0.0.weight"),
        "decoder_layers": count(re.escape(decoder) + r"(\d+)\.") + 1,  # transformers builds one less than it says
        "dim_feedforward": rows(decoder + "0.ffn.layers.0.0.weight"),
        # 3 levels and 4 points per head
        "num_attention_heads": rows(encoder + "0.self_attn.attention_weights.weight") // 12,
        "num_queries": rows("panoptic_head.query_feat.weight"),
        "num_labels": rows("panoptic_head.cls_embed.weight") - 1,
    }
    return Mask2FormerConfig(backbone_config=SwinConfig(**backbone), **sizes)
