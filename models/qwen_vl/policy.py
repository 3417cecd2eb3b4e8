"""Qwen2.5-VL and Qwen3-VL as policies that answer in text, on transformers' own classes.

A checkpoint is a folder in transformers' format, or what the hub calls it: the model, its tokenizer, its image
processor and its chat template. A prompt is one user message in that template, with the template's own system turn.

There is no branch without a prompt: the second branch, where there is one, is a negative prompt's. An answer ends with
a stop token, which belongs to it; its tokens stand at the positions that follow the prompt's largest. The vision tower
is trained, as in the release, and read once per picture of a pass, whatever the number of answers to it.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.utils import logging

from models.errors import ModelError
from models.parts import llama
from models.parts.control_tokens import control_tokens
from models.parts.decoding import Decoding, Prefilled, hiding
from models.parts.frozen import frozen_copy
from models.parts.logits import logits
from models.parts.padding import trimmed
from models.parts.rollout_weights import RolloutWeights
from models.policy import Condition, Rows, TokenLayout, picked
from models.question import Question, question
from models.qwen_vl.checkpoint import open_checkpoint, stop_tokens
from models.qwen_vl.pictures import Picture, read_picture, tower_inputs
from models.qwen_vl.positions import mrope_positions
from models.qwen_vl.prompts import prompt_ids

CACHE_SLOTS = 256  # by which the cache grows: most answers are far shorter than they may be


@dataclass(frozen=True)
class VisionCondition(Condition):
    """Ids, lengths and positions of the prompts, left-padded, and the pictures in each of them.

    pictures: by branch, then by prompt. One that several prompts have is one object.
    """

    pictures: tuple[tuple[tuple[Picture, ...], ...], ...]

    def take(self, rows: Rows) -> Self:
        taken = Condition(self.prompts, self.tensors).take(rows)
        pictures = tuple(picked(branch, rows) for branch in self.pictures)
        return type(self)(taken.prompts, taken.tensors, pictures)

    def alike(self) -> Bool[Tensor, " P"]:
        shown = [one == other for one, other in zip(self.pictures[0], self.pictures[-1], strict=True)]
        return super().alike() & torch.tensor(shown, dtype=torch.bool)


@dataclass(frozen=True)
class Read:
    """Prompts as the text model reads them: embedded, placed, and what it adds after its first layers."""

    embedded: Float[Tensor, "B L D"]
    positions: Int[Tensor, "3 B L"]
    pads: Int[Tensor, " B"] | None
    deep: list[Float[Tensor, "B L D"]]


@dataclass
class QwenState:
    """One decoding run, whose buffers grow with the answers, and where the next token of each stands."""

    decoding: Decoding
    position: Int[Tensor, "3 B 1"]


class QwenVLPolicy:
    """A Qwen-VL and its processor behind the `Policy` protocol."""

    def __init__(self, model: Any, processor: Any) -> None:
        """model: a `Qwen2_5_VLForConditionalGeneration` or `Qwen3VLForConditionalGeneration`."""
        self.model, self.processor = model.eval().requires_grad_(True), processor
        # An answer has at most as many tokens as the model has positions.
        longest = model.config.text_config.max_position_embeddings
        self.layout = TokenLayout(maps=((1, longest),), blocks=(1,) * longest)
        self.default_guidance = 1.0
        self.vocabulary = model.lm_head.out_features
        self.stop_tokens = stop_tokens(model, processor)
        marks = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        self.never: tuple[int, ...] = tuple(getattr(model.config, mark) for mark in marks)
        self.gradient_checkpointing = self.compiled = False
        self.rollout_weights = self._rollout_weights()

    @classmethod
    def load(cls, source: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Self:
        """From a folder or a hub id. Raises ModelError for what is not a whole Qwen-VL."""
        return cls(*open_checkpoint(source, dtype, device))

    @property
    def module(self) -> torch.nn.Module:
        return self.model

    @property
    def layers(self) -> torch.nn.ModuleList:
        return self.language_model.layers

    @property
    def language_model(self) -> Any:
        return self.model.model.language_model

    @property
    def tower(self) -> Any:
        return self.model.model.visual

    @property
    def device(self) -> torch.device:
        return self.language_model.norm.weight.device

    @property
    def control_tokens(self) -> frozenset[str]:
        """The chat's own. `<think>` and its like, of which questions speak, are none."""
        return control_tokens(self.processor.tokenizer)

    def encode(
        self, prompts: Sequence[str | Question], negative_prompts: Sequence[str | Question] | None = None
    ) -> VisionCondition:
        """Ids `[K, P, L]`, left-padded, their true lengths `[K, P]` and positions `[K, P, 3, L]`; K is 1 or 2.

        Raises ModelError for pictures that do not fit their prompt.
        """
        asked = [question(prompt) for prompt in prompts]
        branches = [asked] if negative_prompts is None else [asked, [question(prompt) for prompt in negative_prompts]]
        known: dict[tuple[tuple[int, ...], bytes], Picture] = {}
        pictures = tuple(tuple(self._pictures(one, known) for one in branch) for branch in branches)
        image, merge = self.model.config.image_token_id, self.processor.image_processor.merge_size
        rows: list[list[list[int]]] = []
        places: list[list[Tensor]] = []
        for branch, seen in zip(branches, pictures, strict=True):
            grids = [[picture.grid for picture in row] for row in seen]
            rows.append(
                [
                    prompt_ids(self.processor, image, one, [height * width // merge**2 for height, width in sizes])
                    for one, sizes in zip(branch, grids, strict=True)
                ]
            )
            places.append(
                [mrope_positions(row, image, sizes, merge) for row, sizes in zip(rows[-1], grids, strict=True)]
            )
        width = max(len(row) for branch in rows for row in branch)
        pad = self.processor.tokenizer.pad_token_id
        tensors = {
            "ids": torch.tensor([[[pad] * (width - len(row)) + row for row in branch] for branch in rows]),
            "positions": torch.stack(
                [torch.stack([F.pad(at, (width - at.shape[1], 0)) for at in branch]) for branch in places]
            ),
        }
        tensors = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        tensors["lengths"] = torch.tensor([[len(row) for row in branch] for branch in rows])
        return VisionCondition(tuple(one.key for one in asked), tensors, pictures)

    def question_tokens(self, asked: Question) -> int:
        """The tokens of a question with its pictures. Raises ModelError for marks that do not fit them."""
        image = self.processor.image_processor
        cells = [image.get_number_of_image_patches(*one.shape[:2]) // image.merge_size**2 for one in asked.pictures]
        return len(prompt_ids(self.processor, self.model.config.image_token_id, asked, cells))

    def _pictures(self, asked: Question, known: dict[tuple[tuple[int, ...], bytes], Picture]) -> tuple[Picture, ...]:
        """The question's pictures, resized; `known` are those of the batch, so that none is there twice."""
        found = []
        for pixels in asked.pictures:
            key = (pixels.shape, pixels.tobytes())
            if key not in known:
                known[key] = read_picture(self.processor.image_processor, pixels)
            found.append(known[key])
        return tuple(found)

    def guidance(self, scale: float) -> Float[Tensor, " blocks"]:
        """Constant over the answer."""
        return torch.full((self.layout.tokens,), scale, device=self.device)

    @torch.no_grad()
    def prefill(
        self, condition: VisionCondition, group_size: int, branches: int, into: QwenState | None = None
    ) -> QwenState:
        """Each prompt is read once, and expanded to its group; every run has buffers of its own, which grow."""
        read = self._read(condition, branches)
        batch, width, _ = read.embedded.shape
        cache = llama.KeyValueCache.empty(self.language_model, batch, width)
        rope, mask = llama.rope_at(self.language_model, read.positions), llama.causal_mask(read.pads, width)
        hidden = llama.run(self.language_model, read.embedded, rope, mask, cache, deep=read.deep)

        self.rollout_weights.refresh()
        cos, sin = (table[:, 0].transpose(0, 1) for table in rope)
        found = Prefilled(cache, (cos, sin), hiding(read.pads, cache), hidden[:, -1])
        rows = torch.arange(batch, device=self.device).repeat_interleave(group_size)
        decoding = Decoding.of(found, rows, self.rollout_weights, branches)
        return QwenState(decoding, after(read.positions)[:, rows])

    def next_logits(self, state: QwenState) -> Float[Tensor, "K R 1 V"]:
        return state.decoding.logits()

    @torch.no_grad()
    def append(self, state: QwenState, tokens: Int[Tensor, "R 1"]) -> None:
        decoding = state.decoding
        if decoding.filled == len(decoding.cos):
            decoding.lengthen(CACHE_SLOTS)
        for table, at in zip(
            (decoding.cos, decoding.sin), llama.rope_at(self.language_model, state.position), strict=True
        ):
            table[decoding.filled] = at[:, 0, 0]
        decoding.append(tokens)
        state.position = state.position + 1

    def hidden(self, condition: VisionCondition, tokens: Int[Tensor, "R N"], branches: int) -> Float[Tensor, "K R N D"]:
        read = self._read(condition, branches)
        fed = tokens.shape[1] - 1
        answer = self.language_model.embed_tokens(tokens[:, :-1]).repeat(branches, 1, 1)
        embedded = torch.cat([read.embedded, answer], dim=1)
        follow = after(read.positions) + torch.arange(fed, device=self.device)
        rope = llama.rope_at(self.language_model, torch.cat([read.positions, follow], dim=-1))
        states = llama.run(
            self.language_model,
            embedded,
            rope,
            llama.causal_mask(read.pads, embedded.shape[1]),
            recompute=self.gradient_checkpointing,
            deep=[F.pad(features, (0, 0, 0, fed)) for features in read.deep],
            compiled=self.compiled,
        )
        return states[:, read.embedded.shape[1] - 1 :].unflatten(0, (branches, -1))

    def head(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        return logits(self.model.lm_head, hidden)

    def token_embeddings(
        self, tokens: Int[Tensor, "R N"], kind: Literal["lm_input", "codebook"]
    ) -> Float[Tensor, "R N E"]:
        """The embeddings of words; there is no codebook."""
        if kind == "codebook":
            raise ModelError("the tokens of a model that answers in text have no codebook: compare them by lm_input")
        return self.language_model.embed_tokens(tokens)

    def decode(self, tokens: Int[Tensor, "R N"]) -> list[str]:
        """The answers up to their stop tokens, without special tokens."""
        stops = torch.tensor(self.stop_tokens, device=tokens.device)
        ended = torch.isin(tokens, stops).cumsum(-1) > 0
        rows = [row[~end].tolist() for row, end in zip(tokens, ended, strict=True)]
        return self.processor.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def trainable_parameters(self) -> Iterator[torch.nn.Parameter]:
        """All, the vision tower's among them, as in the release."""
        return (parameter for parameter in self.model.parameters() if parameter.requires_grad)

    def reference(self) -> Self:
        return self.over(frozen_copy(self.model))

    def over(self, module: Any) -> Self:
        twin = copy.copy(self)
        twin.model = module
        twin.rollout_weights = twin._rollout_weights()
        return twin

    def save(self, path: Path) -> None:
        logging.disable_progress_bar()
        self.model.save_pretrained(path)
        self.processor.save_pretrained(path)

    def _rollout_weights(self) -> RolloutWeights:
        text = self.language_model
        return RolloutWeights(text, [text.embed_tokens], lambda: text.embed_tokens.weight, [self.model.lm_head])

    def _read(self, condition: VisionCondition, branches: int) -> Read:
        """The prompts of the first branches. Raises ModelError for one that is not there."""
        ids, lengths, positions = (condition.tensors[name] for name in ("ids", "lengths", "positions"))
        if len(ids) < branches:
            raise ModelError(
                "a model that answers in text has no branch without a prompt: give a negative prompt, or guidance 1"
            )
        lengths = lengths[:branches].flatten()
        ids, pads = trimmed(ids[:branches].flatten(0, 1), lengths)
        positions, _ = trimmed(positions[:branches].flatten(0, 1), lengths, axis=2)
        rows = [row for branch in condition.pictures[:branches] for row in branch]
        embedded = self.language_model.embed_tokens(ids)
        deep: list[Tensor] = []
        if any(rows):
            main, *others = self._features([picture for row in rows for picture in row])
            here = (ids == self.model.config.image_token_id)[..., None]
            deep = [torch.zeros_like(embedded).masked_scatter(here, features.to(embedded)) for features in others]
            embedded = embedded.masked_scatter(here, main.to(embedded))
        return Read(embedded, positions.movedim(1, 0), pads, deep)

    def _features(self, pictures: Sequence[Picture]) -> list[Float[Tensor, "cells D"]]:
        """The tower's output for pictures in turn, then what it hands out on its way; each is read once."""
        distinct = list(dict.fromkeys(pictures))
        pixels, grids = tower_inputs(self.processor.image_processor, distinct, self.language_model.norm.weight)
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        with recomputed(self.tower.blocks) if recompute else nullcontext():
            read = self.tower(pixels, grid_thw=grids, return_dict=True)
        cells = (grids.prod(-1) // self.tower.spatial_merge_size**2).tolist()
        found = []
        for features in (read.pooler_output, *getattr(read, "deepstack_features", ())):
            parts = dict(zip(distinct, features.split(cells), strict=True))
            found.append(torch.cat([parts[picture] for picture in pictures]))
        return found


@contextmanager
def recomputed(blocks: Iterable[torch.nn.Module]) -> Iterator[None]:
    """The blocks keep only their inputs for the backward pass, which then runs each once more."""
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def after(positions: Int[Tensor, "3 B L"]) -> Int[Tensor, "3 B 1"]:
    """Where the first token of the answers stands: behind the largest position of the prompt, on all axes."""
    return positions.amax((0, 2), keepdim=True).expand(3, -1, -1) + 1
