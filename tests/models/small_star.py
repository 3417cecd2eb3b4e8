"""A random-weight STAR that every test can afford: two layers, scales 1 2 3 4, a text model of two layers."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast
from transformers.models.janus.configuration_janus import JanusVQVAEConfig

from models.star.policy import NullText, StarConfig, StarPolicy
from models.star.transformer import StarSizes, StarTransformer
from models.star.vae import StarVae

WORDS = ["a", "and", "blue", "circle", "of", "photo", "red", "ring", "rings", "square", "two"]
ENDS = ("<|startoftext|>", "<|endoftext|>")
TEXT_LENGTH = 14


def word_tokenizer() -> PreTrainedTokenizerFast:
    """CLIP's framing of a text, over whole words."""
    vocabulary = {token: index for index, token in enumerate(["!", "<unk>", *WORDS, *ENDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{ENDS[0]} $A {ENDS[1]}", special_tokens=[(end, vocabulary[end]) for end in ENDS]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=ENDS[0], eos_token=ENDS[1], pad_token="!", unk_token="<unk>"
    )


def random_text_encoder(width: int = 24) -> CLIPTextModel:
    tokens = len(WORDS) + 4
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=tokens,
            hidden_size=width,
            intermediate_size=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=tokens - 2,
            eos_token_id=tokens - 1,
            initializer_factor=10.0,
        )
    )


def random_star(seed: int = 0, null_text: NullText = "pair", scales: tuple[int, ...] = (1, 2, 3, 4)) -> StarPolicy:
    torch.manual_seed(seed)
    codes, code_width, text_width = 32, 8, 24
    sizes = StarSizes(
        width=32,
        heads=2,
        depth=2,
        scales=len(scales),
        codes=codes,
        code_width=code_width,
        text_width=text_width,
        mlp=64,
    )
    transformer = StarTransformer(sizes)
    networks = JanusVQVAEConfig(
        embed_dim=code_width,
        latent_channels=code_width,
        num_embeddings=codes,
        base_channels=32,
        channel_multiplier=[1, 1],
        num_res_blocks=1,
        double_latent=False,
    )
    with torch.no_grad():
        for parameter in transformer.parameters():
            # The defaults are nearly flat: without sharper weights every image looks alike to a test.
            nn.init.normal_(parameter, std=0.3) if parameter.ndim < 4 else parameter.uniform_(1, 5)
    return StarPolicy(
        StarConfig(scales, null_text=null_text),
        transformer,
        StarVae(scales, networks),
        random_text_encoder(text_width),
        word_tokenizer(),
    )
