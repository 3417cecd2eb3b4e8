"""Janus checkpoints in both formats: read into one model, written in either.

`transformers`: `model_type` "janus", as `deepseek-community/Janus-Pro-*` and the tiny model.
`deepseek`: `model_type` "multi_modality", as `deepseek-ai/Janus-Pro-*` and what was trained from them.

The understanding tower is kept when the weights have it and left out when they do not; generation never runs it.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    LlamaConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from models.errors import ModelError
from models.files.checkpoint import Weights, in_memory, locate, open_weights, write_weights
from models.files.config import check_not_quantized, read_json
from models.files.tensors import check_tensors, plain_weights, read_tensors
from models.janus import deepseek
from models.parts.vq import count_numbered
from models.policy import MOST_SIDE

Format = Literal["deepseek", "transformers"]
FORMATS: dict[str, Format] = {deepseek.MODEL_TYPE: "deepseek", "janus": "transformers"}  # by model_type
LEFT_OVER = "deepseek_only.safetensors"  # in transformers' format: what only DeepSeek's has a place for
# Looked up by these names, as DeepSeek's processor does; tokenizer configs in the wild leave some out.
BOS, PAD, BEGIN_OF_IMAGE = "<｜begin▁of▁sentence｜>", "<｜▁pad▁｜>", "<begin_of_image>"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
SHARED_FILES = (*TOKENIZER_FILES, "special_tokens_map.json", "generation_config.json")  # the same in both formats
OWN_FILES = ("config.json", "preprocessor_config.json", "processor_config.json")
UNDERSTANDING = ("vision_model.", "aligner.", "model.vision_model.", "model.aligner.")  # in either format
PIXELS = "model.vqmodel."
LAYERS = "model.language_model.layers."
BUFFERS = re.compile(r"\.rotary_emb\.inv_freq$|\.embeddings\.position_ids$")  # older releases stored these
ATTENTION = {"attn_implementation", "_attn_implementation"}  # of a config: may name a hub's kernel, which is code
TEXT_HEAD, TEXT_EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"


@dataclass(frozen=True)
class DeepSeekParts:
    """What a checkpoint in DeepSeek's format has beside the model: small files as they were, and tensors."""

    files: Mapping[str, bytes]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class JanusCheckpoint:
    """An opened checkpoint, whole and of one mind, nothing of it read yet.

    tower: whether it has the understanding tower.
    weights: in transformers' names, whatever the format.
    left: tensors that transformers' model has no place for, in DeepSeek's names.
    """

    folder: Path
    format: Format
    config: JanusConfig
    tower: bool
    weights: Weights
    left: Weights

    @classmethod
    def open(cls, source: str | Path) -> "JanusCheckpoint":
        """From a folder or a hub id. Raises ModelError for what is not a whole Janus."""
        folder = locate(source)
        path = folder / "config.json"
        config = read_json(path)
        family = config.get("model_type")
        if family not in list(FORMATS):
            raise ModelError(f"{path} has model_type {family!r}: a Janus has 'janus' or '{deepseek.MODEL_TYPE}'")
        stored = open_weights(folder)
        in_deepseek = family == deepseek.MODEL_TYPE
        weights: Weights = plain_weights(folder, stored, deepseek.NEVER_READ if in_deepseek else BUFFERS)
        check_not_quantized(path, config)
        tower = any(name.startswith(UNDERSTANDING) for name in weights)
        left: Weights
        try:
            if in_deepseek:
                sizes = deepseek.janus_config(path, config, weights)
                left = {name: stored[name] for name in stored.keys() - weights.keys()}
                weights = deepseek.to_transformers(weights)
            else:
                check_grid(path, config)
                sizes = JanusConfig.from_dict({name: config[name] for name in config.keys() - ATTENTION})
                # A text head of its own is one, whatever the config says.
                sizes.tie_word_embeddings = sizes.tie_word_embeddings and TEXT_HEAD not in weights
                left = left_over(folder / LEFT_OVER)
            check_repeats(path, weights, sizes)
            wanted = on_meta(sizes, tower).state_dict()
        except ModelError:
            raise
        except Exception as error:  # what transformers raises of a config is no narrower
            reason = " ".join(str(error).split())
            raise ModelError(f"{path} does not describe a Janus ({reason}): copy the checkpoint again") from error
        if sizes.tie_word_embeddings:
            del wanted[TEXT_HEAD]
        check_tensors(folder, weights, wanted, deepseek.deepseek_name if in_deepseek else str)
        return cls(folder, FORMATS[family], sizes, tower, weights, left)

    def model(self, dtype: torch.dtype, device: str) -> JanusForConditionalGeneration:
        """The model with its weights, the VQ in float32 and the rest in `dtype`.

        Each tensor is read, cast and moved by itself, so there is never a second copy of the model.
        """
        model = on_meta(self.config, self.tower)
        names = [name for name in model.state_dict() if name in self.weights]
        tensors = {
            name: self.weights[name].read().to(device, torch.float32 if name.startswith(PIXELS) else dtype, copy=True)
            for name in names
        }
        if self.config.tie_word_embeddings:
            tensors[TEXT_HEAD] = tensors[TEXT_EMBEDDING]
        model.load_state_dict(tensors, assign=True)
        model.tie_weights()
        # The buffers that no checkpoint holds are still without storage.
        rope = LlamaRotaryEmbedding(cast(LlamaConfig, self.config.text_config))
        model.model.language_model.rotary_emb = rope.to(device)
        if self.tower:
            embeddings = model.model.vision_model.embeddings
            embeddings.position_ids = torch.arange(embeddings.num_positions, device=device)[None]
        generation = self.folder / "generation_config.json"
        if generation.is_file():
            try:
                model.generation_config = GenerationConfig.from_dict(read_json(generation))
            except (TypeError, ValueError, AttributeError) as error:
                reason = " ".join(str(error).split())
                raise ModelError(f"{generation} is no generation config ({reason}): copy it again") from error
        return model

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """From `tokenizer.json` as it is; no class that a config names is looked up. Raises ModelError."""
        for name in TOKENIZER_FILES:
            if not (self.folder / name).is_file():
                raise ModelError(f"{self.folder / name} does not exist: copy the tokenizer beside the weights")
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(self.folder)
        except Exception as error:  # what the tokenizers library raises is no narrower
            raise ModelError(f"{self.folder / 'tokenizer.json'} is no tokenizer ({error}): copy it again") from error
        known, size = tokenizer.get_vocab(), cast(LlamaConfig, self.config.text_config).vocab_size
        for token in (BOS, PAD, BEGIN_OF_IMAGE):
            # One that the files name but the vocabulary lacks is given the next free id.
            if known.get(token, size) >= size:
                raise ModelError(
                    f"{self.folder / 'tokenizer.json'} has no {token}: copy the checkpoint's own tokenizer"
                )
        tokenizer.bos_token, tokenizer.pad_token = BOS, PAD
        return tokenizer

    def deepseek_parts(self) -> DeepSeekParts | None:
        """What writing DeepSeek's format again needs beside the model; None for the other format."""
        if self.format == "transformers":
            return None
        names = [name for name in (*OWN_FILES, *SHARED_FILES) if (self.folder / name).is_file()]
        return DeepSeekParts(
            {name: (self.folder / name).read_bytes() for name in names},
            {name: stored.read().clone() for name, stored in self.left.items()},
        )

    def export(self, format: Format, folder: Path) -> None:
        """Write the checkpoint in a format, every tensor bit for bit, one shard in memory at a time."""
        if format == "deepseek":
            write_weights(folder, {**deepseek.to_deepseek(self.weights), **self.left})
        else:
            write_weights(folder, self.weights)
            if self.left:
                save_file({name: stored.read().clone() for name, stored in self.left.items()}, folder / LEFT_OVER)
        if format == "deepseek" != self.format:
            config = json.dumps(deepseek.deepseek_config(self.config), indent=2, sort_keys=True) + "\n"
            (folder / "config.json").write_text(config, encoding="utf-8")
        elif format == "transformers" != self.format:
            self.config.save_pretrained(folder)
        for name in SHARED_FILES if format != self.format else (*OWN_FILES, *SHARED_FILES):
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)


def on_meta(config: JanusConfig, tower: bool) -> JanusForConditionalGeneration:
    """A model without storage, with or without the understanding tower."""
    with torch.device("meta"):
        model = JanusForConditionalGeneration(config)
    if not tower:
        del model.model.vision_model, model.model.aligner
    return model


def save_deepseek(folder: Path, model: JanusForConditionalGeneration, parts: DeepSeekParts) -> None:
    """Write a model in DeepSeek's format, with what its checkpoint had beside it."""
    weights = deepseek.to_deepseek(in_memory(model.state_dict()))
    write_weights(folder, {**weights, **in_memory(parts.tensors)})
    for name, content in parts.files.items():
        (folder / name).write_bytes(content)


def left_over(path: Path) -> Weights:
    """What only DeepSeek's format has a place for, where the file exists. Raises ModelError for anything else in it."""
    if not path.is_file():
        return {}
    left = in_memory(read_tensors(path))
    if strange := sorted(name for name in left if not deepseek.NEVER_READ.search(name)):
        raise ModelError(f"{path} has {strange[0]}, which DeepSeek's format has another place for: export it again")
    return left


def check_repeats(path: Path, weights: Weights, config: JanusConfig) -> None:
    """The language model has the config's layers, and nothing else is repeated more often than there are tensors.

    weights: in transformers' naming. Raises ModelError: the model would lack its end, or take hours to build.
    """
    text, vision = cast(LlamaConfig, config.text_config), cast(JanusVisionConfig, config.vision_config)
    vq = cast(JanusVQVAEConfig, config.vq_config)
    found, said = count_numbered(weights, LAYERS), text.num_hidden_layers
    if found != said:
        raise ModelError(
            f"{path.parent} has weights of {found} layers, but its config.json says {said}: copy config and weights "
            "again"
        )
    repeated = {
        "layers in the understanding tower": vision.num_hidden_layers,
        "layers in the understanding tower's aligner": vision.depth,
        "layers in the image aligner": vq.num_hidden_layers,
        "residual blocks in a level of the image tokenizer": vq.num_res_blocks,
        "levels in the image tokenizer": len(vq.channel_multiplier),
    }
    for what, count in repeated.items():
        if count > len(weights):
            raise ModelError(
                f"{path} asks for {count} {what}, but there are {len(weights)} weights: copy config and weights again"
            )
    if vq.num_patches > MOST_SIDE:
        raise ModelError(f"{path} asks for {vq.num_patches} tokens a side: no image has more than {MOST_SIDE}")


def check_grid(path: Path, config: Mapping[str, Any]) -> None:
    """The config names one grid: transformers overrides `num_patches` in silence. Raises ModelError."""
    vision, vq = config.get("vision_config") or {}, config.get("vq_config") or {}
    if {"image_size", "patch_size"} <= vision.keys() and "num_patches" in vq:
        side = vision["image_size"] // vision["patch_size"]
        if vq["num_patches"] != side:
            raise ModelError(
                f"{path}: vq_config.num_patches is {vq['num_patches']}, but vision_config's "
                f"image_size // patch_size is {side}: set both to the checkpoint's grid"
            )
