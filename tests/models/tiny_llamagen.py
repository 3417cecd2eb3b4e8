"""A random LlamaGen of two layers on a 4x4 grid, laid out on disk as the released one is, with a tiny T5."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast, T5Config, T5EncoderModel
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from models.llamagen.transformer import LlamaGenTransformer, Naming
from models.parts.vq import original_weights

WORDS = ["a", "photo", "of", "red", "green", "blue", "circle", "square", "ring", "and", "two", "three"]
CODES, GRID, PIXELS = 32, 4, 16
TEXT_ROWS, CAPTION_WIDTH = 12, 24


def sharpened(module: torch.nn.Module, factor: float) -> torch.nn.Module:
    """With larger matrices: at its initialisation every image looks alike to a test."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
    return module


def transformer_weights(naming: Naming = "original", seed: int = 0) -> dict[str, Tensor]:
    """Two heads of 64 channels, as wide as the released ones, so that no config.json is needed."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=CODES,
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
    )
    transformer = LlamaGenTransformer(config, CAPTION_WIDTH, TEXT_ROWS, naming)
    transformer.captions.uncond_embedding.normal_()
    return {name: tensor.clone() for name, tensor in sharpened(transformer, 4).named_weights().items()}


def vq_weights(seed: int = 0, codes: int = CODES) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    config = JanusVQVAEConfig(
        num_embeddings=codes,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1, 2],
        num_res_blocks=1,
        num_patches=GRID,
    )
    return original_weights(sharpened(JanusVQVAE(config), 3))


def save_text_encoder(folder: Path, seed: int = 0) -> None:
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(vocabulary), d_model=CAPTION_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.5
    )
    T5EncoderModel(config).save_pretrained(folder)


def save_release(folder: Path) -> None:
    """The files as one has them after downloading the released ones."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": transformer_weights()}, folder / f"t2i_tiny_{PIXELS}.pt")
    torch.save({"model": vq_weights()}, folder / "vq_ds16_t2i.pt")
    save_text_encoder(folder / "t5")
