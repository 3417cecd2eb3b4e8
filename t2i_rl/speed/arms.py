"""The ways to sample a group that are compared: all take the same prompt and weights, and sample all tokens alike.

- `captured`: ours, each decoding step one CUDA graph;
- `eager`: ours, the same functions called one by one; both measure what `cfg` and `critical` ask for on the way;
- `transformers`: `JanusForConditionalGeneration.generate(generation_mode="image")`, a static cache of which every
  step reads all slots, masked;
- `growing`: the loop of research repositories, branches interleaved, a cache that is concatenated anew in every layer
  of every step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, JanusForConditionalGeneration

from models.policy import Condition, Policy
from t2i_rl.rollout.noise import Noise
from t2i_rl.rollout.sampler import sample_group
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.rollout.steps import KEPT, Kept
from t2i_rl.speed.random_model import janus

MEASURED = ("entropy", "kl_cond_uncond", "logp_cond", "logp_uncond", "logp_guided")


@dataclass(frozen=True)
class Work:
    """What an arm samples.

    images: of each prompt. tokens: of each image. greedy: the most likely tokens, or drawn ones.
    kept: what our arms keep between rollouts: captured steps, buffers; each its own.
    """

    policy: Policy
    condition: Condition
    images: int
    tokens: int
    guidance: float
    greedy: bool = False
    seed: int = 0
    kept: dict[bool, Kept] = field(default_factory=dict)


def eager(work: Work) -> Int[Tensor, "R N"]:
    return ours(work, capture=False)


def captured(work: Work) -> Int[Tensor, "R N"]:
    if janus(work.policy).device.type != "cuda":
        raise RuntimeError("steps are captured on CUDA alone")
    return ours(work, capture=True)


def ours(work: Work, capture: bool) -> Int[Tensor, "R N"]:
    KEPT[work.policy] = work.kept.setdefault(capture, Kept(capture=capture))
    sampling = Sampling(work.guidance, temperature=0.0 if work.greedy else 1.0)
    rollout = sample_group(
        work.policy, work.condition, work.images, sampling, Noise(work.seed), MEASURED, max_tokens=work.tokens
    )
    return rollout.tokens.flatten(0, 1)


def prompt_rows(work: Work) -> tuple[Int[Tensor, "K R L"], Int[Tensor, "K R L"]]:
    """Token ids and attention masks, one row per image."""
    rows = work.condition.repeat(work.images).tensors
    ids, lengths = rows["ids"], rows["lengths"].to(rows["ids"].device)
    slots = torch.arange(ids.shape[-1], device=ids.device)
    return ids, (slots >= ids.shape[-1] - lengths[..., None]).long()


def transformers(work: Work) -> Int[Tensor, "R N"]:
    model, tokenizer = janus(work.policy).model, janus(work.policy).tokenizer
    ids, mask = prompt_rows(work)
    settings = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=not work.greedy,
        guidance_scale=work.guidance,
        max_length=ids.shape[-1] + work.tokens,
        generation_kwargs={"boi_token_id": int(ids[0, 0, -1])},
    )
    with drawing(model, work.tokens):
        return model.generate(ids[0], mask[0], generation_config=settings, generation_mode="image")


@contextmanager
def drawing(model: JanusForConditionalGeneration, tokens: int) -> Iterator[None]:
    """`generate` draws as many tokens as the config of the vision tower says."""
    config: Any = model.model.vision_model.config
    whole, config.num_image_tokens = config.num_image_tokens, tokens
    try:
        yield
    finally:
        config.num_image_tokens = whole


@torch.no_grad()
def growing(work: Work) -> Int[Tensor, "R N"]:
    whole = janus(work.policy).model
    ids, mask = (rows.transpose(0, 1).flatten(0, 1) for rows in prompt_rows(work))
    model, cache, tokens = whole.model, DynamicCache(), []
    embedded = model.language_model.embed_tokens(ids)
    for _ in range(work.tokens):
        states = model.language_model(
            inputs_embeds=embedded, attention_mask=mask, cache=cache, use_cache=True
        ).last_hidden_state
        logits = model.generation_head(states[:, -1]).float()
        guided = logits[1::2] + work.guidance * (logits[0::2] - logits[1::2])
        token = guided.argmax(-1, keepdim=True) if work.greedy else guided.softmax(-1).multinomial(1)
        tokens.append(token)
        embedded = whole.prepare_embeddings_for_image_generation(token.repeat_interleave(2, dim=0))
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return torch.cat(tokens, dim=1)


ARMS: dict[str, Callable[[Work], Int[Tensor, "R N"]]] = {
    "captured": captured,
    "eager": eager,
    "transformers": transformers,
    "growing": growing,
}
OURS = ("captured", "eager")
