"""The true architectures of the models that have a name, without their weights: modules on the meta device.

The sizes are those of the released checkpoints, whose configs and shapes say them; here they stand as data, so that a
run can be planned, and a checkpoint compared with them, where nothing can be downloaded.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    JanusConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
    T5Config,
    T5EncoderModel,
)
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from models.errors import ModelError
from models.janus.checkpoint import on_meta
from models.llamagen.transformer import LlamaGenTransformer
from models.qwen_vl.checkpoint import KINDS
from models.registry import MODELS, TINY, TINY_VLM, ModelEntry, find
from models.star.transformer import StarSizes, StarTransformer
from models.star.vae import StarVae

Sizes = dict[str, Any]
JANUS_1B: Sizes = {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 5632}
JANUS_7B: Sizes = {"hidden_size": 4096, "num_hidden_layers": 30, "num_attention_heads": 32, "intermediate_size": 11008}
LLAMAGEN_XL: Sizes = {
    "hidden_size": 1280,
    "num_hidden_layers": 36,
    "num_attention_heads": 20,
    "intermediate_size": 3584,
}
CAPTION_ROWS, CAPTION_WIDTH = 120, 2048  # LlamaGen's, of flan-T5-XL
STAR_DEPTH, STAR_WIDTH, STAR_CLASSES, CLIP_WIDTH = 30, 1920, 1001, 1024

QWEN2_5_7B: Sizes = {
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
    },
}
QWEN3_8B: Sizes = {
    "text_config": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 12288,
    },
    "vision_config": {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "patch_size": 16,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
        "out_hidden_size": 4096,
    },
}
TINY_ANSWER = 40  # tokens of an answer at most, as its presets have it
QWEN: dict[str, tuple[PreTrainedConfig, int]] = {  # and the longest answer that the papers allow
    "qwen2.5-vl-7b": (Qwen2_5_VLConfig(tie_word_embeddings=False, **QWEN2_5_7B), 2048),
    "qwen3-vl-8b": (Qwen3VLConfig(tie_word_embeddings=False, **QWEN3_8B), 8192),
}


@dataclass(frozen=True)
class Architecture:
    """A model as modules without storage.

    module: what the family's checkpoint holds: the whole of Janus and Qwen-VL, the transformer of the others.
    parts: all of the model by what it is for, without overlap; the first part is what training changes by default.
    layers, head: what every token goes through.
    width, kv_width, mlp: channels of a token's queries, of its keys, and inside the MLP.
    untrained: entries of the first part that training leaves as they are.
    in_sequence: whether the prompt is read as a part of the sequence, not beside it.
    """

    family: str
    module: nn.Module
    parts: Mapping[str, tuple[nn.Module, ...]]
    layers: nn.ModuleList
    head: nn.Module
    width: int
    kv_width: int
    mlp: int
    blocks: tuple[int, ...]
    codes: int
    untrained: int = 0
    in_sequence: bool = True

    @property
    def tokens(self) -> int:
        return sum(self.blocks)

    @property
    def trained(self) -> int:
        """Entries that training changes by default."""
        return count(next(iter(self.parts.values()))) - self.untrained

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor of `module`."""
        return {name: tuple(tensor.shape) for name, tensor in self.module.state_dict().items()}


def count(modules: Iterable[nn.Module]) -> int:
    """Entries of the parameters, shared ones once, and of the buffers that a checkpoint holds of these modules."""
    total = 0
    for module in modules:
        total += sum(parameter.numel() for parameter in module.parameters())
        buffers = module.state_dict().keys() - dict(module.named_parameters(remove_duplicate=False)).keys()
        total += sum(module.get_buffer(name).numel() for name in buffers)
    return total


def linear_weights(module: nn.Module) -> int:
    """Entries of the matrices that every token is multiplied with; the text's are not among them."""
    found = ((name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear))
    return sum(part.weight.numel() for name, part in found if not name.endswith("mat_kv"))


def architecture(name: str) -> Architecture:
    """The architecture of a model that has a name. Raises ModelError for another."""
    entry = find(name)
    if entry.name not in MODELS or entry.family is None:
        raise ModelError(f"the architecture of {name} is not written down: give the name of a model (t2i-rl models)")
    with torch.device("meta"):
        return {"janus": _janus, "llamagen": _llamagen, "star": _star, "qwen_vl": _qwen_vl}[entry.family](entry)


def _vq(side: int) -> JanusVQVAEConfig:
    """VQ-16, of Janus and LlamaGen."""
    return JanusVQVAEConfig(num_patches=side, embed_dim=8, num_embeddings=16384, latent_channels=256, base_channels=128)


def _janus(entry: ModelEntry) -> Architecture:
    if entry.source == str(TINY):
        config = JanusConfig.from_pretrained(TINY)
    else:
        sizes = JANUS_7B if "7b" in entry.name else JANUS_1B
        hidden = sizes["hidden_size"]
        vq = _vq(24)
        vq.projection_dim = vq.image_token_embed_dim = hidden
        config = JanusConfig(
            text_config=LlamaConfig(vocab_size=102400, max_position_embeddings=16384, **sizes),
            vision_config=JanusVisionConfig(projection_dim=hidden),  # SigLIP-L/16 at 384 pixels
            vq_config=vq,
            tie_word_embeddings=False,
        )
    return janus_of(config)


def janus_of(config: JanusConfig) -> Architecture:
    """The architecture of a Janus of any sizes."""
    model = on_meta(config, tower=True)
    inner = model.model
    images = inner.generation_embeddings, inner.generation_aligner, inner.generation_head
    parts: dict[str, tuple[nn.Module, ...]] = {
        "language model": (inner.language_model,),
        "image embeddings and head": images,
        "text head": (model.lm_head,),
        "image tokenizer": (inner.vqmodel,),
        "understanding tower": (inner.vision_model, inner.aligner),
    }
    side = cast(JanusVQVAEConfig, config.vq_config).num_patches
    codes = cast(JanusVQVAEConfig, config.vq_config).num_embeddings
    head = inner.generation_head
    text = cast(LlamaConfig, config.text_config)
    width = text.hidden_size
    return Architecture(
        "janus",
        model,
        parts,
        inner.language_model.layers,
        head,
        width,
        width // text.num_attention_heads * (text.num_key_value_heads or text.num_attention_heads),
        text.intermediate_size,
        (1,) * side**2,
        codes,
    )


def _llamagen(entry: ModelEntry) -> Architecture:
    (side,) = entry.scales or ()
    config = LlamaConfig(vocab_size=16384, rms_norm_eps=1e-5, **LLAMAGEN_XL)
    transformer = LlamaGenTransformer(config, CAPTION_WIDTH, CAPTION_ROWS, "original")
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=32128,
            d_model=CAPTION_WIDTH,
            d_kv=64,
            d_ff=5120,
            num_layers=24,
            num_heads=32,
            feed_forward_proj="gated-gelu",
        )
    )
    parts: dict[str, tuple[nn.Module, ...]] = {
        "transformer": (transformer,),
        "image tokenizer": (JanusVQVAE(_vq(side)),),
        "text encoder": (encoder,),
    }
    null_caption = CAPTION_ROWS * CAPTION_WIDTH
    width, mlp = config.hidden_size, config.intermediate_size
    return Architecture(
        "llamagen",
        transformer,
        parts,
        transformer.model.layers,
        transformer.lm_head,
        width,
        width,
        mlp,
        (1,) * side**2,
        config.vocab_size,
        null_caption,
    )


def _star(entry: ModelEntry) -> Architecture:
    scales = entry.scales or ()
    sizes = StarSizes(
        width=STAR_WIDTH,
        heads=STAR_WIDTH // 64,
        depth=STAR_DEPTH,
        scales=len(scales),
        codes=4096,
        code_width=32,
        text_width=CLIP_WIDTH,
        mlp=4 * STAR_WIDTH,
        classes=STAR_CLASSES,
    )
    transformer = StarTransformer(sizes)
    networks = JanusVQVAEConfig(
        embed_dim=32,
        latent_channels=32,
        num_embeddings=4096,
        base_channels=160,
        channel_multiplier=[1, 1, 2, 2, 4],
        num_res_blocks=2,
        double_latent=False,
    )
    encoder = CLIPTextModel(
        CLIPTextConfig(hidden_size=CLIP_WIDTH, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16)
    )
    parts: dict[str, tuple[nn.Module, ...]] = {
        "transformer": (transformer,),
        "image tokenizer": (StarVae(scales, networks),),
        "text encoder": (encoder,),
    }
    # A table that is never read, and buffers that are zero.
    frozen = STAR_CLASSES * STAR_WIDTH + 2 * STAR_DEPTH * STAR_WIDTH
    blocks = tuple(side**2 for side in scales)
    layers, head, width = transformer.blocks, transformer.head_logits, sizes.width
    return Architecture(
        "star", transformer, parts, layers, head, width, width, sizes.mlp, blocks, sizes.codes, frozen, False
    )


def _qwen_vl(entry: ModelEntry) -> Architecture:
    tiny = entry.source == str(TINY_VLM)
    config, answer = (Qwen2_5_VLConfig.from_pretrained(TINY_VLM), TINY_ANSWER) if tiny else QWEN[entry.name]
    model: Any = KINDS[config.model_type](config)
    text: Any = config.text_config
    head_size = text.hidden_size // text.num_attention_heads
    return Architecture(
        "qwen_vl",
        model,
        {"text model and vision tower": (model,)},
        model.model.language_model.layers,
        model.lm_head,
        text.hidden_size,
        text.num_key_value_heads * head_size,
        text.intermediate_size,
        (1,) * answer,
        text.vocab_size,
    )
