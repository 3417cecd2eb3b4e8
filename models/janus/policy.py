"""Janus-Pro as a policy, on transformers' own `JanusForConditionalGeneration`.

Prompt: `<|User|>: {prompt}`, a blank line, `<|Assistant|>:<begin_of_image>`; where the checkpoint's `config.json` has
`"prompt_style": "plain"`, the roles are `User` and `Assistant`, as T2I-R1 and both papers' releases train (one of them
then samples with the others). The unconditional branch is
a row of the same length whose positions between BOS and begin-of-image are PAD, all visible. Prompts of
different lengths are left-padded; what padding adds is hidden by length, never by token id, and positions
count real tokens only, so a prompt's logits are those it has alone.
"""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from transformers import GenerationConfig, JanusForConditionalGeneration, LlamaModel, PreTrainedTokenizerBase
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.utils import logging

from models.errors import ModelError
from models.janus.checkpoint import BEGIN_OF_IMAGE, BOS, PAD, DeepSeekParts, JanusCheckpoint, save_deepseek
from models.parts import llama
from models.parts.control_tokens import control_tokens
from models.parts.decoding import Decoding, Prefilled, hiding
from models.parts.frozen import frozen_copy
from models.parts.logits import logits
from models.parts.padding import trimmed
from models.parts.pixels import to_bytes
from models.parts.rollout_weights import RolloutWeights
from models.policy import Condition, TokenLayout
from models.question import Question, texts

ROLES = {"pro": ("<|User|>", "<|Assistant|>"), "plain": ("User", "Assistant")}  # by prompt style
DEFAULT_GUIDANCE = 5.0  # of the official demo
DECODE_BATCH = 32  # images per pass of the pixel decoder


class JanusPolicy:
    """A Janus-Pro model and its tokenizer behind the `Policy` protocol."""

    def __init__(
        self,
        model: JanusForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        parts: DeepSeekParts | None = None,
    ) -> None:
        """parts: what a checkpoint in DeepSeek's format has beside the model; with them, `save` writes that format."""
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.parts = parts
        self.language_model.requires_grad_(True)
        # PAD takes no gradient. transformers' files say so and DeepSeek's do not, and the null row is little else.
        self.language_model.embed_tokens.padding_idx = tokenizer.pad_token_id
        # Pixels are decoded in float32 whatever the language model runs in.
        self.model.model.vqmodel.float()
        side = cast(JanusVQVAEConfig, model.config.vq_config).num_patches
        self.layout = TokenLayout(maps=((side, side),), blocks=(1,) * side**2)
        self.vocabulary = self.model.model.generation_head.vision_head.out_features
        self.stop_tokens: tuple[int, ...] = ()
        self.never: tuple[int, ...] = ()
        self.default_guidance = model.generation_config.guidance_scale or DEFAULT_GUIDANCE
        self.prompt_style = getattr(model.config, "prompt_style", "pro")
        if self.prompt_style not in ROLES:
            raise ModelError(
                f"config.json has the prompt_style {self.prompt_style!r}: choose one of {', '.join(ROLES)}"
            )
        self.gradient_checkpointing = self.compiled = False
        self.rollout_weights = self._rollout_weights()

    @classmethod
    def load(cls, source: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Self:
        """From a folder or a hub id, in either format. Raises ModelError for what is not a whole Janus."""
        checkpoint = JanusCheckpoint.open(source)
        tokenizer = checkpoint.tokenizer()
        return cls(checkpoint.model(dtype, device), tokenizer, checkpoint.deepseek_parts())

    @property
    def module(self) -> JanusForConditionalGeneration:
        return self.model

    @property
    def layers(self) -> torch.nn.ModuleList:
        return self.language_model.layers

    @property
    def language_model(self) -> LlamaModel:
        return cast(LlamaModel, self.model.model.language_model)

    @property
    def device(self) -> torch.device:
        return self.language_model.norm.weight.device

    @property
    def control_tokens(self) -> frozenset[str]:
        return control_tokens(self.tokenizer, (BOS, PAD, BEGIN_OF_IMAGE, *ROLES[self.prompt_style]))

    def encode(
        self, prompts: Sequence[str | Question], negative_prompts: Sequence[str | Question] | None = None
    ) -> Condition:
        """Token ids `[2, P, L]`, left-padded, and their true lengths `[2, P]`."""
        conditional = texts(prompts)
        rows = self._token_ids(conditional)
        if negative_prompts is None:
            pad = self.tokenizer.pad_token_id
            null_rows = [[row[0], *[pad] * (len(row) - 2), row[-1]] for row in rows]
        else:
            null_rows = self._token_ids(texts(negative_prompts))
        return condition_from_ids(tuple(conditional), [rows, null_rows], self.tokenizer.pad_token_id, self.device)

    def _token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        user, assistant = ROLES[self.prompt_style]
        texts = [f"{user}: {prompt.strip()}\n\n{assistant}:{BEGIN_OF_IMAGE}" for prompt in prompts]
        # Whether a tokenizer adds BOS itself depends on its files and on who reads them, so it is not asked to.
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [[self.tokenizer.bos_token_id, *row] for row in rows]

    def guidance(self, scale: float) -> Float[Tensor, " blocks"]:
        """Constant over the image."""
        return torch.full((self.layout.tokens,), scale, device=self.device)

    @torch.no_grad()
    def prefill(self, condition: Condition, group_size: int, branches: int, into: Decoding | None = None) -> Decoding:
        """Each distinct row is read once: the null rows of prompts of one length are the same row."""
        ids, pads = self._ids(condition, branches)
        keyed = ids if pads is None else torch.cat([ids, pads[:, None]], dim=-1)
        distinct, owner = keyed.unique(dim=0, return_inverse=True)
        width, slots = ids.shape[-1], ids.shape[-1] + self.layout.tokens - 1
        if pads is not None:
            distinct, pads = distinct[:, :width], distinct[:, width]

        cache = llama.KeyValueCache.empty(self.language_model, len(distinct), width)
        cos, sin = self._rope(pads, slots)
        rope = cos[:, :, :width], sin[:, :, :width]
        embedded = self.language_model.embed_tokens(distinct)
        hidden = llama.run(self.language_model, embedded, rope, llama.causal_mask(pads, width), cache)

        self.rollout_weights.refresh()
        cos, sin = (table[:, 0].transpose(0, 1).expand(-1, len(distinct), -1) for table in (cos, sin))
        read = Prefilled(cache, (cos, sin), hiding(pads, cache), hidden[:, -1])
        return Decoding.of(read, owner.repeat_interleave(group_size), self.rollout_weights, branches, into)

    def next_logits(self, state: Decoding) -> Float[Tensor, "K R 1 V"]:
        return state.logits()

    def append(self, state: Decoding, tokens: Int[Tensor, "R 1"]) -> None:
        state.append(tokens)

    def hidden(self, condition: Condition, tokens: Int[Tensor, "R N"], branches: int) -> Float[Tensor, "K R N D"]:
        ids, pads = self._ids(condition, branches)
        image = self._embed(tokens[:, :-1]).repeat(branches, 1, 1)
        embedded = torch.cat([self.language_model.embed_tokens(ids), image], dim=1)
        width = embedded.shape[1]
        rope, mask = self._rope(pads, width), llama.causal_mask(pads, width)
        states = llama.run(
            self.language_model, embedded, rope, mask, recompute=self.gradient_checkpointing, compiled=self.compiled
        )
        return states[:, ids.shape[-1] - 1 :].unflatten(0, (branches, -1))

    def head(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        return image_logits(self.model.model.generation_head, hidden)

    def token_embeddings(
        self, tokens: Int[Tensor, "R N"], kind: Literal["lm_input", "codebook"]
    ) -> Float[Tensor, "R N E"]:
        """The aligned generation embeddings, or the unit-length codebook rows."""
        if kind == "lm_input":
            return self._embed(tokens)
        return F.normalize(self.model.model.vqmodel.quantize.embedding(tokens), dim=-1)

    @torch.no_grad()
    def decode(self, tokens: Int[Tensor, "R N"]) -> UInt8[Tensor, "R 3 H W"]:
        """Pixels, truncated to bytes as the official code does."""
        pixels = torch.cat([self.model.model.vqmodel.decode(part) for part in tokens.split(DECODE_BATCH)])
        return to_bytes((pixels + 1) / 2 * 255)

    def trainable_parameters(self) -> Iterator[torch.nn.Parameter]:
        """The language model's, as in both GCPO papers; heads, aligners, the VQ and PAD's row stay fixed."""
        return (parameter for parameter in self.model.parameters() if parameter.requires_grad)

    def reference(self) -> Self:
        return self.over(frozen_copy(self.model))

    def over(self, module: JanusForConditionalGeneration) -> Self:
        twin = copy.copy(self)
        twin.model = module
        twin.rollout_weights = twin._rollout_weights()
        return twin

    def save(self, path: Path) -> None:
        if self.parts is None:
            logging.disable_progress_bar()
            self.model.generation_config = self.plain_generation()
            self.model.save_pretrained(path)
            self.tokenizer.save_pretrained(path)
        else:
            save_deepseek(path, self.model, self.parts)

    def _rollout_weights(self) -> RolloutWeights:
        """The image embeddings behind their aligner are one table: they are frozen, and looked up at every token."""
        images: Any = self.model.model
        head, codebook = images.generation_head, images.generation_embeddings
        return RolloutWeights(
            self.language_model,
            [codebook, images.generation_aligner],
            lambda: images.generation_aligner(codebook.weight),
            [head.proj_out, head.vision_head],
            head.activation_fn,
        )

    def plain_generation(self) -> GenerationConfig:
        """What transformers' own `generate` needs to sample as we do: the guidance, and the tokens of the null row."""
        config, tokenizer = self.model.generation_config, self.tokenizer
        config.update(
            guidance_scale=self.default_guidance,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        begin = tokenizer.convert_tokens_to_ids(BEGIN_OF_IMAGE)
        config.update(
            allow_custom_entries=True,
            generation_kwargs={"boi_token_id": begin},
            _from_model_config=False,  # or what it has no default for is left out when it is read
        )
        return config

    def _embed(self, tokens: Int[Tensor, "R T"]) -> Float[Tensor, "R T D"]:
        return self.model.prepare_embeddings_for_image_generation(tokens)

    def _ids(self, condition: Condition, branches: int) -> tuple[Int[Tensor, "B L"], Int[Tensor, " B"] | None]:
        """The token ids of the first branches, and their padding where there is some."""
        ids, lengths = condition.tensors["ids"][:branches], condition.tensors["lengths"][:branches]
        return trimmed(ids.flatten(0, 1), lengths.flatten())

    def _rope(
        self, pads: Int[Tensor, " B"] | None, slots: int
    ) -> tuple[Float[Tensor, "B 1 S d"], Float[Tensor, "B 1 S d"]]:
        """Rotary tables by slot, one for all rows if none is padded; positions count from the first real token."""
        cos, sin = llama.rope_table(self.language_model, slots)
        if pads is None:
            return cos[None, None], sin[None, None]
        positions = (torch.arange(slots, device=pads.device) - pads[:, None]).clamp(min=0)
        return cos[positions][:, None], sin[positions][:, None]


def image_logits(head: Any, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
    """transformers' `JanusVQVAEHead` with its last product in float32."""
    return logits(head.vision_head, head.activation_fn(head.proj_out(hidden)))


def condition_from_ids(
    prompts: tuple[str, ...], branches: Sequence[Sequence[Sequence[int]]], pad: int, device: torch.device
) -> Condition:
    """Left-pad the token ids of all branches to one width."""
    width = max(len(row) for rows in branches for row in rows)
    ids = torch.tensor([[[pad] * (width - len(row)) + list(row) for row in rows] for rows in branches])
    lengths = torch.tensor([[len(row) for row in rows] for rows in branches])
    return Condition(prompts, {"ids": ids.to(device), "lengths": lengths})
