"""LlamaGen's text-conditional models (arXiv:2406.06525) as a policy.

A checkpoint is a folder with

    t2i_XL_stage1_256.pt     the transformer as released (`peizesun/llamagen_t2i`; the number at the end of the
                             name is the image size); or `model.safetensors` or `pytorch_model.bin`, whole or
                             sharded, with `config.json`: what we save, and the copies in transformers' style
    vq_ds16_t2i.pt           the image tokenizer, of `peizesun/llamagen_t2i`; or vq_ds16_t2i.safetensors
    t5/                      the text encoder `google/flan-t5-xl`; also as flan-t5-xl/, t5/flan-t5-xl/ or
                             t5-ckpt/flan-t5-xl/; without it, what config.json names as `text_encoder`, else the hub

A config.json beside them may change two things:

    "cfg_interval": 100        tokens 0 to 101 are guided, later ones follow the conditional branch; -1 guides all
    "clean_captions": false    captions are only set in lower case, not cleaned as those of the training were

Tokenizer and text encoder may lie one folder up as well. A transformer's file may be named instead of its
folder, and both may be on the hub: `peizesun/llamagen_t2i/t2i_XL_stage1_256.pt`, `zghhui/LlamaGen-T2I`.

The unconditional branch is a learnt caption, of which it sees as many rows (the last ones) as the prompt has
tokens. A checkpoint of ours keeps the key names of the one it was trained from; the text encoder, which never
changes, is named in its config.json and not copied.

Differences from the released code: no dropout and no dropped captions in any pass; a caption's padding is left
out instead of masked (`models.llamagen.transformer`); a guidance scale below 1 is used as it is, where the
original samples from the conditional branch alone.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusVQVAE

from models.errors import ModelError
from models.files.checkpoint import SINGLE_FILES, in_memory, locate, open_weights, write_weights
from models.files.config import check_not_quantized, read_json
from models.files.hub import fetch
from models.files.tensors import plain_weights, read_plain
from models.llamagen.text_features import TextFeatures
from models.llamagen.transformer import NEVER_READ, LlamaGenTransformer, grid_side, rope_table
from models.parts import llama
from models.parts.control_tokens import control_tokens
from models.parts.decoding import Decoding, Prefilled
from models.parts.frozen import frozen_copy
from models.parts.logits import logits
from models.parts.padding import trimmed
from models.parts.pixels import to_bytes
from models.parts.rollout_weights import RolloutWeights
from models.parts.vq import TRAINING_COUNTER, load_vq, original_weights, pixels_per_token
from models.policy import Condition, TokenLayout
from models.question import Question, texts

DEFAULT_GUIDANCE = 7.5  # of the official demo
DECODE_BATCH = 16  # images per pass of the pixel decoder
VQ = ("vq_ds16_t2i.safetensors", "vq_ds16_t2i.pt")
VQ_ON_HUB = "peizesun/llamagen_t2i/vq_ds16_t2i.pt"
TEXT_ENCODERS = ("t5", "flan-t5-xl", "t5/flan-t5-xl", "t5-ckpt/flan-t5-xl")
TEXT_ENCODER_ON_HUB = "google/flan-t5-xl"
WRAPPERS = ("model", "module", "state_dict")  # where the released files keep the weights


class LlamaGenPolicy:
    """A LlamaGen transformer, its image tokenizer and its text encoder behind the `Policy` protocol."""

    def __init__(
        self,
        transformer: LlamaGenTransformer,
        vq: JanusVQVAE,
        text: TextFeatures,
        config: Mapping[str, Any],
    ) -> None:
        """config: what the checkpoint's config.json says; saved with it. Raises ModelError for what cannot be."""
        self.transformer = transformer.eval().requires_grad_(True)
        self.vq, self.text, self.config = vq, text, dict(config)
        self.cfg_interval = config.get("cfg_interval", -1)
        if type(self.cfg_interval) is not int or self.cfg_interval < -1:
            raise ModelError(f"config.json has cfg_interval {self.cfg_interval!r}: it has to be a whole number from -1")
        side = vq.config.num_patches
        self.layout = TokenLayout(maps=((side, side),), blocks=(1,) * side**2)
        self.vocabulary = transformer.lm_head.out_features
        self.stop_tokens: tuple[int, ...] = ()
        self.never: tuple[int, ...] = ()
        self.default_guidance = DEFAULT_GUIDANCE
        self.gradient_checkpointing = self.compiled = False
        self.rollout_weights = self._rollout_weights()

    @classmethod
    def load(cls, source: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Self:
        """From a folder or file laid out as above, or from the hub. Raises ModelError, which names what is wrong."""
        transformer_file = find_transformer(locate(source))
        folder = transformer_file if transformer_file.is_dir() else transformer_file.parent
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        vq_file = find_beside(folder, VQ) or (None if Path(source).exists() else fetch(VQ_ON_HUB))
        if vq_file is None:
            raise ModelError(f"{folder / VQ[-1]} does not exist: put the image tokenizer there, from {VQ_ON_HUB}")
        encoder = find_beside(folder, [f"{name}/config.json" for name in TEXT_ENCODERS])
        text_source = encoder.parent if encoder else str(config.get("text_encoder", TEXT_ENCODER_ON_HUB))

        vq_weights = read_weights(vq_file, TRAINING_COUNTER)
        side = grid_side(config, transformer_file, pixels_per_token(vq_weights))
        vq = load_vq(vq_weights, side, vq_file)
        weights = read_weights(transformer_file, NEVER_READ)
        transformer = LlamaGenTransformer.from_weights(weights, config, transformer_file)
        check_not_quantized(folder / "config.json", config)
        codes = transformer.lm_head.out_features
        if vq.config.num_embeddings != codes:
            raise ModelError(
                f"{vq_file} has {vq.config.num_embeddings} codes, but {transformer_file} predicts {codes}: "
                "take the image tokenizer that it was trained with"
            )
        rows = len(transformer.captions.uncond_embedding)
        clean = config.get("clean_captions", True)
        if type(clean) is not bool:
            raise ModelError(f"the config.json of {folder} has clean_captions {clean!r}: it has to be true or false")
        text = TextFeatures(text_source, rows, dtype, device, clean=clean)
        place: Any = torch.device(device)  # transformers types `to` as if its models did not take one
        return cls(transformer.to(place, dtype), vq.to(place), text, config)

    @property
    def module(self) -> LlamaGenTransformer:
        return self.transformer

    @property
    def layers(self) -> torch.nn.ModuleList:
        return self.transformer.model.layers

    @property
    def device(self) -> torch.device:
        return self.transformer.lm_head.weight.device

    @property
    def control_tokens(self) -> frozenset[str]:
        """The text encoder's, also where the cleaning of captions takes them for mark-up."""
        return control_tokens(self.text.tokenizer)

    def encode(
        self, prompts: Sequence[str | Question], negative_prompts: Sequence[str | Question] | None = None
    ) -> Condition:
        """Caption features `[2, P, L, C]`, left-padded with zeros, and their true lengths `[2, P]`."""
        captions = texts(prompts)
        rows = self.text(captions)
        null_rows = self.null_rows(rows) if negative_prompts is None else self.text(texts(negative_prompts))
        return self.condition_from_features(captions, [rows, null_rows])

    def null_rows(self, rows: Sequence[Float[Tensor, "n C"]]) -> list[Float[Tensor, "n C"]]:
        """The end of the learnt null caption, as long as each prompt."""
        return [self.transformer.captions.uncond_embedding[-len(row) :] for row in rows]

    def cut(self, prompts: Sequence[str]) -> tuple[int, int]:
        return self.text.max_tokens, self.text.longer(prompts)

    def condition_from_features(
        self, prompts: Sequence[str], branches: Sequence[Sequence[Float[Tensor, "n C"]]]
    ) -> Condition:
        """Left-pad the caption features of all branches to one width."""
        lengths = torch.tensor([[len(row) for row in rows] for rows in branches])
        width = int(lengths.max())
        like = self.transformer.lm_head.weight
        padded = [torch.stack([F.pad(row.to(like), (0, 0, width - len(row), 0)) for row in rows]) for rows in branches]
        return Condition(tuple(prompts), {"features": torch.stack(padded), "lengths": lengths})

    def guidance(self, scale: float) -> Float[Tensor, " blocks"]:
        """The scale, up to the end of `cfg_interval`."""
        factors = torch.full((self.layout.tokens,), scale, device=self.device)
        if self.cfg_interval >= 0:
            factors[self.cfg_interval + 2 :] = 1
        return factors

    @torch.no_grad()
    def prefill(self, condition: Condition, group_size: int, branches: int, into: Decoding | None = None) -> Decoding:
        """Each caption is read once. Of its keys and values the image tokens see the sum (`collapsed`)."""
        text, pads = self._read_text(condition, branches)
        batch, width, _ = text.shape
        cos, sin = self._rope(width)
        cache = llama.KeyValueCache.empty(self.transformer.model, batch, width)
        mask = llama.causal_mask(pads, width)
        hidden = llama.run(self.transformer.model, text, (cos[:width], sin[:width]), mask, cache)

        self.rollout_weights.refresh()
        summed, bias = collapsed(cache, pads)
        cos, sin = (table[:, None].expand(-1, batch, -1) for table in self._rope(summed.length))
        read = Prefilled(summed, (cos, sin), bias, hidden[:, -1])
        rows = torch.arange(batch, device=self.device).repeat_interleave(group_size)
        return Decoding.of(read, rows, self.rollout_weights, branches, into)

    def next_logits(self, state: Decoding) -> Float[Tensor, "K R 1 V"]:
        return state.logits()

    def append(self, state: Decoding, tokens: Int[Tensor, "R 1"]) -> None:
        state.append(tokens)

    def hidden(self, condition: Condition, tokens: Int[Tensor, "R N"], branches: int) -> Float[Tensor, "K R N D"]:
        text, pads = self._read_text(condition, branches)
        image = self.transformer.model.embed_tokens(tokens[:, :-1]).repeat(branches, 1, 1)
        embedded = torch.cat([text, image], dim=1)
        rope, mask = self._rope(text.shape[1]), llama.causal_mask(pads, embedded.shape[1])
        states = llama.run(
            self.transformer.model, embedded, rope, mask, recompute=self.gradient_checkpointing, compiled=self.compiled
        )
        return states[:, text.shape[1] - 1 :].unflatten(0, (branches, -1))

    def head(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        return logits(self.transformer.lm_head, hidden)

    def token_embeddings(
        self, tokens: Int[Tensor, "R N"], kind: Literal["lm_input", "codebook"]
    ) -> Float[Tensor, "R N E"]:
        """The transformer's token embeddings, or the unit-length codebook rows."""
        if kind == "lm_input":
            return self.transformer.model.embed_tokens(tokens)
        return F.normalize(self.vq.quantize.embedding(tokens), dim=-1)

    @torch.no_grad()
    def decode(self, tokens: Int[Tensor, "R N"]) -> UInt8[Tensor, "R 3 H W"]:
        """Pixels, in float32, rounded to bytes as the official code does."""
        pixels = torch.cat([self.vq.decode(part) for part in tokens.split(DECODE_BATCH)])
        return to_bytes(127.5 * pixels + 128)

    def trainable_parameters(self) -> Iterator[torch.nn.Parameter]:
        """The whole transformer's, caption projection and head included, as the released trainer's optimiser gets
        them; the null caption is a buffer, text encoder and image tokenizer stay fixed."""
        return (parameter for parameter in self.transformer.parameters() if parameter.requires_grad)

    def reference(self) -> Self:
        return self.over(frozen_copy(self.transformer, self.transformer.buffers()))

    def over(self, module: LlamaGenTransformer) -> Self:
        twin = copy.copy(self)
        twin.transformer = module
        twin.rollout_weights = twin._rollout_weights()
        return twin

    def save(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        model = self.transformer.model
        said = {
            "model_type": "llamagen",
            "n_head": model.config.num_attention_heads,
            "n_layer": model.config.num_hidden_layers,
            "norm_eps": model.config.rms_norm_eps,
            "rope_base": self.transformer.rope_base,
            "block_size": self.layout.tokens,
            "text_encoder": self.text.source,
        }
        (path / "config.json").write_text(json.dumps({**self.config, **said}, indent=2) + "\n", encoding="utf-8")
        write_weights(path, in_memory(self.transformer.named_weights()))
        save_file({name: tensor.contiguous() for name, tensor in original_weights(self.vq).items()}, path / VQ[0])

    def _rollout_weights(self) -> RolloutWeights:
        model, head = self.transformer.model, self.transformer.lm_head
        return RolloutWeights(model, [model.embed_tokens], lambda: model.embed_tokens.weight, [head])

    def _read_text(
        self, condition: Condition, branches: int
    ) -> tuple[Float[Tensor, "B L D"], Int[Tensor, " B"] | None]:
        """The projected captions of the first branches, and their padding where there is some."""
        features, lengths = condition.tensors["features"][:branches], condition.tensors["lengths"][:branches]
        features, pads = trimmed(features.flatten(0, 1), lengths.flatten())
        return self.transformer.captions(features), pads

    def _rope(self, text_rows: int) -> tuple[Float[Tensor, "S d"], Float[Tensor, "S d"]]:
        """The tables of all slots: the last image token is never fed."""
        like = self.transformer.lm_head.weight
        side = self.layout.maps[0][0]
        cos, sin = rope_table(side, text_rows, self.transformer.head_width, self.transformer.rope_base, like)
        return cos[:-1], sin[:-1]


def collapsed(
    cache: llama.KeyValueCache, pads: Int[Tensor, " B"] | None
) -> tuple[llama.KeyValueCache, Float[Tensor, "B 2"]]:
    """What an image token reads of n visible rows of text, as two slots and what is added to their scores.

    Keys of text are zero, so an image token gives each of the n rows the score 0 and reads the mean of their values,
    as often as n says: one slot with that mean and the score ln(n) is the same. Scores of half precision would round
    ln(n) by a percent of n, so it is shared out: the second slot has what the first leaves.
    """
    values, width = cache.values, cache.length
    pads = values.new_zeros(values.shape[1], dtype=torch.long) if pads is None else pads
    real = (torch.arange(width, device=pads.device) >= pads[:, None])[:, None, :, None]
    count = (width - pads).double()
    mean = ((values.double() * real).sum(-2, keepdim=True) / count[:, None, None, None]).to(values.dtype)
    most = (count.log() - 1 / 32).to(values.dtype)
    rest = (count - most.double().exp()).log().to(values.dtype)
    entries = torch.stack([torch.zeros_like(mean), mean], dim=2).repeat_interleave(2, dim=-2)
    return llama.KeyValueCache(entries, length=2), torch.stack([most, rest], dim=-1)


def find_transformer(source: Path) -> Path:
    """The transformer's file, or the folder that is a copy in transformers' style. Raises ModelError."""
    if source.is_file() or any(
        (source / f"{name}{end}").is_file() for name in SINGLE_FILES for end in ("", ".index.json")
    ):
        return source
    released = sorted(source.glob("t2i_*.pt"))
    if len(released) > 1:
        names = ", ".join(path.name for path in released)
        raise ModelError(f"{source} holds several transformers ({names}): name the file instead of the folder")
    if not released:
        raise ModelError(
            f"{source} has no transformer: neither a t2i_*.pt as released nor {SINGLE_FILES[0]}, so copy one there"
        )
    return released[0]


def find_beside(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of the names that exists in the folder, or in the one above."""
    return next((place / name for place in (folder, folder.parent) for name in names if (place / name).exists()), None)


def read_weights(path: Path, ignored: re.Pattern[str]) -> dict[str, Tensor]:
    """The tensors by name of a folder's weights or of one file, without what a training script stored beside them.

    ignored: names of tensors that are never read. Raises ModelError for those that are no plain weights.
    """
    if path.is_dir():
        stored = plain_weights(path, open_weights(path), ignored)
        return {name: tensor.read() for name, tensor in stored.items()}
    found = read_plain(path)
    if isinstance(found, dict):
        found = next((found[name] for name in WRAPPERS if isinstance(found.get(name), dict)), found)
    if not isinstance(found, dict):
        raise ModelError(f"{path} does not hold tensors by name: it is another kind of checkpoint")
    tensors = {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, Tensor)}
    return plain_weights(path, tensors, ignored)
