"""A random-weight Janus that every test can afford: two layers, a 4x4 grid, the shapes world's words."""

from collections.abc import Iterator

import pytest
import torch
from transformers import JanusForConditionalGeneration, LlamaConfig
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig

from models.janus.policy import JanusPolicy
from rewards.catalogue import REWARDS
from scripts.build_tiny import build_config, build_tokenizer
from t2i_rl.methods.catalogue import METHODS


def random_janus(seed: int = 0, grid: int = 4, codes: int = 32) -> JanusPolicy:
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    config = build_config(tokenizer)
    config.text_config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
    )
    config.vision_config = JanusVisionConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=2 * grid,
        patch_size=2,
        mlp_ratio=1.0,
        projection_dim=32,
        num_image_tokens=grid**2,
        depth=1,
    )
    config.vq_config = JanusVQVAEConfig(
        num_embeddings=codes,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1],
        num_res_blocks=1,
        num_patches=grid,
        projection_dim=32,
        image_token_embed_dim=32,
    )
    model = JanusForConditionalGeneration(config)
    # transformers' initialisation is nearly flat: without sharper heads every image looks alike to a test.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return JanusPolicy(model, tokenizer)


@pytest.fixture
def policy() -> JanusPolicy:
    return random_janus()


@pytest.fixture(autouse=True)
def names_are_left_as_they_were() -> Iterator[None]:
    """A reward or method that one test makes known would be found by whichever test its process runs next.

    Torn down last, after whatever a test's own fixtures put back.
    """
    known = {*REWARDS}, {*METHODS}
    yield
    assert ({*REWARDS}, {*METHODS}) == known
