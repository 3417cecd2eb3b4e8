"""A Janus of a given shape with random weights, and prompts of random words."""

from typing import Any

import torch
from transformers import AutoTokenizer, JanusConfig, JanusForConditionalGeneration, LlamaConfig
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig

from models.janus.policy import JanusPolicy, condition_from_ids
from models.lora import LoraPolicy, adapt
from models.policy import Condition, Policy
from models.registry import TINY
from t2i_rl.speed.settings import Bench, Shape

PROMPT_TOKENS = 16
GAIN = 4.0  # on transformers' initial weights: as they come, all images are alike and greedy decoding repeats itself


def random_policy(bench: Bench, shape: Shape, dtype: torch.dtype) -> Policy:
    """The layers and the image head at full size, the towers around them as small as they come."""
    torch.manual_seed(bench.seed)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    config = JanusConfig(
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.width,
            intermediate_size=shape.mlp,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            max_position_embeddings=256 + shape.grid**2,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        vision_config=JanusVisionConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=shape.grid,
            patch_size=1,
            mlp_ratio=1.0,
            projection_dim=shape.width,
            num_image_tokens=shape.grid**2,
            depth=1,
        ),
        vq_config=JanusVQVAEConfig(
            num_embeddings=shape.codes,
            latent_channels=32,
            base_channels=32,
            channel_multiplier=[1],
            num_res_blocks=1,
            num_patches=shape.grid,
            projection_dim=shape.width,
            image_token_embed_dim=shape.width,
        ),
        image_token_id=tokenizer.unk_token_id or 0,
    )
    with torch.device(bench.device):
        made: Any = JanusForConditionalGeneration(config)  # transformers types `to` as if its models took no dtype
        model = made.to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(GAIN)
    policy = JanusPolicy(model, tokenizer)
    if not bench.lora_rank:
        return policy
    adapted = adapt(policy, bench.model, bench.lora_rank, 2.0 * bench.lora_rank)
    with torch.no_grad():
        for parameter in adapted.trainable_parameters():  # as after some training: adapters begin as nothing
            parameter.normal_(std=0.01)
    return adapted


def janus(policy: Policy) -> JanusPolicy:
    """The model that runs, adapters included."""
    found = policy.adapted if isinstance(policy, LoraPolicy) else policy
    assert isinstance(found, JanusPolicy)
    return found


def random_condition(policy: JanusPolicy, seed: int) -> Condition:
    """One prompt of random words and its null row."""
    generator, tokenizer = torch.Generator().manual_seed(seed), policy.tokenizer
    last = tokenizer.convert_tokens_to_ids("<begin_of_image>")
    words = torch.randint(len(tokenizer) // 2, len(tokenizer), (PROMPT_TOKENS - 2,), generator=generator).tolist()
    bos, pad = tokenizer.bos_token_id, tokenizer.pad_token_id
    rows = [[[bos, *words, last]], [[bos, *[pad] * len(words), last]]]
    return condition_from_ids(("a prompt",), rows, pad, policy.device)
