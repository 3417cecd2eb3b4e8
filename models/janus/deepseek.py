"""Janus in DeepSeek's own format: what its keys and its config are called in transformers, and back.

The weights of `deepseek-ai/Janus-Pro-*` and of the models that were trained from them are named after DeepSeek's
modules. The same tensors make transformers' `JanusForConditionalGeneration`: prefixes and a few inner names differ,
the understanding tower's attention has q, k and v in one tensor, and its position table has a batch axis.
`vision_model.vision_tower.attn_pool.*` and `gen_vision_model.quantize.codebook_used` have no place there, nor have the
rotary tables of older releases; none is ever read by DeepSeek's forward pass (`NEVER_READ`).

The config names the sizes of the language model, the aligners and the image head; those of the VQ and of the
tower stand in DeepSeek's code, so they are read off the weights.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import JanusConfig, LlamaConfig
from transformers.models.janus.configuration_janus import JanusVisionConfig

from models.errors import ModelError
from models.files.checkpoint import StoredTensor, Weights
from models.parts.vq import RENAMED, count_numbered, infer_config, pixels_per_token

MODEL_TYPE = "multi_modality"
TOWER = "model.vision_model."  # in transformers' names
POSITIONS = "model.vision_model.embeddings.position_embedding.weight"
FUSED, SPLIT = ".attn.qkv.", (".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj.")
HEAD_WIDTH = 64  # of SigLIP-L; the weights do not show it
NEVER_READ = re.compile(
    r"^vision_model\.vision_tower\.attn_pool\.|^gen_vision_model\.quantize\.codebook_used$|\.rotary_emb\.inv_freq$"
)
# Of a language_config: how it was stored or run, not what it is.
NOT_SIZES = {"model_type", "architectures", "torch_dtype", "dtype", "_attn_implementation", "transformers_version"}


class Rule(NamedTuple):
    """A prefix in both formats, and what differs behind it."""

    deepseek: str
    transformers: str
    inner: tuple[tuple[str, str], ...] = ()


TOWER_NAMES = (
    (".attn.proj.", ".self_attn.projection_layer."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
)
RULES = (
    Rule("language_model.model.", "model.language_model."),
    Rule("language_model.lm_head.", "lm_head."),
    Rule("gen_embed.", "model.generation_embeddings."),
    Rule("gen_aligner.layers.0.", "model.generation_aligner.fc1."),
    Rule("gen_aligner.layers.2.", "model.generation_aligner.hidden_layers.0."),
    Rule("gen_head.output_mlp_projector.", "model.generation_head.proj_out."),
    Rule("gen_head.vision_head.", "model.generation_head.vision_head."),
    Rule("gen_vision_model.", "model.vqmodel.", RENAMED),
    Rule("aligner.layers.0.", "model.aligner.fc1."),
    Rule("aligner.layers.2.", "model.aligner.hidden_layers.0."),
    Rule("vision_model.vision_tower.blocks.", "model.vision_model.encoder.layers.", TOWER_NAMES),
    Rule("vision_model.vision_tower.patch_embed.proj.", "model.vision_model.embeddings.patch_embedding."),
    Rule("vision_model.vision_tower.pos_embed", POSITIONS),
    Rule("vision_model.vision_tower.norm.", "model.vision_model.post_layernorm."),
)


def transformers_name(name: str) -> str | None:
    """What transformers calls a tensor of DeepSeek's format, q, k and v still fused; None where no rule applies."""
    for old, new, inner in RULES:
        if name.startswith(old):
            rest = name.removeprefix(old)
            for ours, theirs in inner:
                rest = rest.replace(ours, theirs)
            return new + rest
    return None


def deepseek_name(name: str) -> str:
    """What DeepSeek calls a tensor of transformers' format; q, k and v have the name of the one they come from."""
    for old, new, inner in RULES:
        if name.startswith(new):
            rest = name.removeprefix(new)
            for ours, theirs in inner:
                rest = rest.replace(theirs, ours)
            if name.startswith(TOWER):
                for part in SPLIT:
                    rest = rest.replace(part, FUSED)
            return old + rest
    return name


def to_transformers(weights: Weights) -> dict[str, StoredTensor]:
    """DeepSeek's tensors under the names of transformers; those that no rule knows keep their own."""
    placed: dict[str, StoredTensor] = {}
    for old, stored in weights.items():
        name = transformers_name(old) or old
        if name.startswith(TOWER) and FUSED in name and stored.shape and stored.shape[0] >= len(SPLIT):
            for index, part in enumerate(SPLIT):
                placed[name.replace(FUSED, part)] = _changed(stored, partial(_third, index=index))
        elif name == POSITIONS:
            placed[name] = _changed(stored, partial(torch.squeeze, dim=0))
        else:
            placed[name] = stored
    return placed


def to_deepseek(weights: Weights) -> dict[str, StoredTensor]:
    """The inverse of `to_transformers` for what is placed; a tied text head gets its own copy."""
    restored: dict[str, StoredTensor] = {}
    if "lm_head.weight" not in weights:
        embedding = weights["model.language_model.embed_tokens.weight"]
        weights = {**weights, "lm_head.weight": _changed(embedding, torch.clone)}
    for name, stored in weights.items():
        old = deepseek_name(name)
        if old in restored:  # the second and third part of a fused tensor
            continue
        if name.startswith(TOWER) and FUSED in old:
            part = next(part for part in SPLIT if part in name)
            parts = [weights[name.replace(part, other)] for other in SPLIT]
            shape = (sum(part.shape[0] for part in parts), *stored.shape[1:])
            restored[old] = StoredTensor(stored.where, shape, stored.dtype, partial(_join, parts))
        elif name == POSITIONS:
            restored[old] = _changed(stored, partial(torch.unsqueeze, dim=0))
        else:
            restored[old] = stored
    return restored


def _changed(stored: StoredTensor, change: Callable[[Tensor], Tensor]) -> StoredTensor:
    shape = tuple(change(torch.empty(stored.shape, device="meta")).shape)
    return StoredTensor(stored.where, shape, stored.dtype, lambda: change(stored.read()))


def _third(fused: Tensor, index: int) -> Tensor:
    return fused.tensor_split(3)[index]


def _join(parts: list[StoredTensor]) -> Tensor:
    return torch.cat([part.read() for part in parts])


def janus_config(path: Path, config: Mapping[str, Any], weights: Weights) -> JanusConfig:
    """transformers' config of a checkpoint in DeepSeek's format.

    path: the config's, for errors.
    weights: in DeepSeek's names. Without a tower among them, the tower's sizes mean nothing.

    Raises ModelError that names the key which is absent, in the config or among the weights.
    """

    def param(section: str, name: str) -> Any:
        found = config.get(section)
        params = found.get("params") if isinstance(found, dict) else None
        if not isinstance(params, dict) or name not in params:
            raise ModelError(f"{path} lacks {section}.params.{name}: copy the checkpoint's own config.json")
        return params[name]

    def shape(name: str) -> tuple[int, ...]:
        if name not in weights:
            raise ModelError(f"{path.parent} lacks the weight {name}: copy the checkpoint again")
        return weights[name].shape

    language = config.get("language_config")
    if not isinstance(language, dict):
        raise ModelError(f"{path} lacks language_config: copy the checkpoint's own config.json")
    text_config = LlamaConfig(**{name: value for name, value in language.items() if name not in NOT_SIZES})

    prefix = "gen_vision_model."
    pixels = {
        name.removeprefix(prefix): torch.empty(stored.shape, device="meta")
        for name, stored in weights.items()
        if name.startswith(prefix)
    }
    image_size, patch = param("vision_config", "image_size"), pixels_per_token(pixels)
    try:
        vq_config = infer_config(pixels, image_size // patch)
    except KeyError as error:
        raise ModelError(
            f"{path.parent} lacks the weight {prefix}{error.args[0]}: copy the checkpoint again"
        ) from error
    vq_config.embed_dim = param("gen_vision_config", "n_embed")
    vq_config.num_embeddings = param("gen_vision_config", "image_token_size")
    vq_config.projection_dim = param("gen_aligner_config", "n_embed")
    vq_config.num_hidden_layers = param("gen_aligner_config", "depth")
    vq_config.image_token_embed_dim = param("gen_head_config", "image_token_embed")

    sizes = {"image_size": image_size, "patch_size": patch, "num_image_tokens": (image_size // patch) ** 2}
    tower = "vision_model.vision_tower."
    if any(name.startswith(tower) for name in weights):
        width, _, own_patch, _ = shape(f"{tower}patch_embed.proj.weight")
        if own_patch != patch:
            raise ModelError(
                f"{path.parent}: the understanding tower's patches are {own_patch} pixels and the VQ's {patch}: "
                "transformers' Janus has one grid for both, so this is no Janus-Pro"
            )
        sizes |= {
            "hidden_size": width,
            "num_hidden_layers": count_numbered(weights, f"{tower}blocks."),
            "num_attention_heads": max(1, width // HEAD_WIDTH),
            "mlp_ratio": shape(f"{tower}blocks.0.mlp.fc1.weight")[0] / width,
            "projection_dim": param("aligner_config", "n_embed"),
            "depth": param("aligner_config", "depth"),
        }
    return JanusConfig(
        text_config=text_config,
        vision_config=JanusVisionConfig(**sizes),
        vq_config=vq_config,
        tie_word_embeddings=False,
        architectures=["JanusForConditionalGeneration"],
        **({"prompt_style": config["prompt_style"]} if "prompt_style" in config else {}),
    )


def deepseek_config(config: Any) -> dict[str, Any]:
    """DeepSeek's config of transformers' `JanusConfig`.

    DeepSeek's code knows one VQ, `VQ-16`, and one tower, SigLIP-L/16: another size loads here, not there.
    """
    text, vision, vq = config.text_config, config.vision_config, config.vq_config
    projector = {"projector_type": "mlp_gelu"}
    style = (
        {"prompt_style": config.prompt_style} if hasattr(config, "prompt_style") else {}
    )  # ours: models/janus/policy.py
    return {
        **style,
        "architectures": ["MultiModalityCausalLM"],
        "model_type": MODEL_TYPE,
        "language_config": {
            "model_type": "llama",
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.max_position_embeddings,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_theta": text.rope_parameters["rope_theta"],
        },
        "vision_config": {
            "cls": "CLIPVisionTower",
            "model_type": "vision",
            "params": {
                "image_size": vision.image_size,
                "model_name": "siglip_large_patch16_384",
                "select_feature": "same",
                "select_layer": -1,
            },
        },
        "aligner_config": {
            "cls": "MlpProjector",
            "model_type": "aligner",
            "params": projector
            | {"depth": vision.depth, "input_dim": vision.hidden_size, "n_embed": vision.projection_dim},
        },
        "gen_vision_config": {
            "cls": "VQ-16",
            "model_type": "gen_vision",
            "params": {"image_token_size": vq.num_embeddings, "n_embed": vq.embed_dim},
        },
        "gen_aligner_config": {
            "cls": "MlpProjector",
            "model_type": "gen_aligner",
            "params": projector
            | {"depth": vq.num_hidden_layers, "input_dim": vq.embed_dim, "n_embed": vq.projection_dim},
        },
        "gen_head_config": {
            "cls": "vision_head",
            "model_type": "gen_head",
            "params": {
                "image_token_embed": vq.image_token_embed_dim,
                "image_token_size": vq.num_embeddings,
                "n_embed": text.hidden_size,
            },
        },
    }
