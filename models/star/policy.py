"""STAR (arXiv:2406.10797) as a policy: next-scale prediction, one block of tokens per scale.

A checkpoint is a folder with

    star_rope_d30_256-....pth   the transformer, as the hub's `taocrayon/STAR` calls it; or star.pth, or, as we save it,
                                star.safetensors
    config.json                 {"model_type": "star", "scales": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]}, and what else
                                `StarConfig` has: the weights do not tell. Not needed beside a released transformer,
                                whose name does: `RELEASED`
    vae_ch160v4096z32.pth       the image tokenizer, of `FoundationVision/var`; or vae.safetensors
    tokenizer/, text_encoder/   of Stable Diffusion 2.1 (a CLIP text model 1024 wide), or in CLIP/ as `taocrayon/STAR`
                                has them

The transformer's file may be named instead of its folder, and may be on the hub; what is not beside it then comes from
there too. Of the 1024 px variant with a sampler the extra weights are ignored.

Guidance grows with the scale s of S: `(1 + t) c - t u` with `t = scale * s / (S - 1)`, so the first scale is
purely conditional. The unconditional branch is the empty prompt.

In the released code the cross-attention of a batch's first row is added to every row. Run on one prompt, the
unconditional row so receives the conditional row's, and differs by its pooled text alone: `null_text = "pair"` is
that, for every prompt of a batch. `"own"` gives it its own text. Conditional rows are the same in both.
"""

import copy
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from jaxtyping import Bool, Float, Int, UInt8
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerBase

from models.errors import ModelError
from models.files.config import read_json
from models.files.hub import fetch
from models.files.tensors import read_tensors
from models.parts.control_tokens import control_tokens
from models.parts.frozen import frozen_copy
from models.parts.llama import KeyValueCache
from models.parts.logits import logits
from models.parts.pixels import to_bytes
from models.parts.text_encoders import load_encoder, load_tokenizer, longer
from models.policy import MOST_SIDE, Condition, TokenLayout
from models.question import Question, texts
from models.registry import STAR_256, STAR_512, STAR_1024
from models.star.transformer import StarTransformer, TextKeys, norm, rope_table
from models.star.vae import StarVae

NullText = Literal["pair", "own"]
DEFAULT_GUIDANCE = 4.0  # of the official evaluation
DECODE_PIXELS = 2**21  # per pass of the pixel decoder: 32 images of 256 px
TRANSFORMER = ("star.safetensors", "star.pth")
VAE = ("vae.safetensors", "vae_ch160v4096z32.pth")
VAE_ON_HUB = "FoundationVision/var/vae_ch160v4096z32.pth"
TEXT = ("text_encoder", "tokenizer")
TEXT_ON_HUB = "taocrayon/STAR", "CLIP"  # repository and folder


@dataclass(frozen=True)
class StarConfig:
    """What the weights do not tell.

    scales: sides of the token maps.
    enable_logit_norm: whether the last hidden state is normalised before the head.
    null_text: whose cross-attention the unconditional rows receive: that of their conditional row, or their own.
    """

    scales: tuple[int, ...]
    enable_logit_norm: bool = True
    null_text: NullText = "pair"

    def __post_init__(self) -> None:
        rising = all(below < above for below, above in zip(self.scales, self.scales[1:], strict=False))
        whole = all(type(side) is int and side <= MOST_SIDE for side in self.scales)
        if len(self.scales) < 2 or self.scales[0] != 1 or not rising or not whole:
            raise ValueError(f"scales {list(self.scales)} must start with 1 and rise, to {MOST_SIDE} at most")
        if type(self.enable_logit_norm) is not bool:
            raise ValueError(f"enable_logit_norm {self.enable_logit_norm!r} must be true or false")
        if self.null_text not in get_args(NullText):
            raise ValueError(f"null_text {self.null_text!r} must be one of {', '.join(get_args(NullText))}")

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a checkpoint's config.json. Raises ModelError."""
        try:
            found = read_json(path)
            if found.get("model_type") != "star":
                raise ValueError(f"model_type is {found.get('model_type')!r}, not 'star'")
            known = {field.name for field in fields(cls)} | {"model_type"}
            if unknown := sorted(found.keys() - known):
                raise ValueError(f"there is no setting {unknown[0]}")
            settings = {name: value for name, value in found.items() if name != "model_type"}
            return cls(**settings | {"scales": tuple(found["scales"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(
                f"{path} is no config of a STAR model ({error}): see models/star/policy.py for one"
            ) from error


RELEASED = {  # by the image size in the file's name
    "256": StarConfig(STAR_256),
    "512": StarConfig(STAR_512, enable_logit_norm=False),
    "1024": StarConfig(STAR_1024),
}


@dataclass
class StarState:
    """One decoding run: the cache, the text's keys, the feature map so far, the scale at hand and its hidden states."""

    cache: KeyValueCache
    text: TextKeys
    text_visible: Bool[Tensor, "b 1 1 L"]
    features: Float[Tensor, "R E M M"]
    branches: int
    hidden: Float[Tensor, "B p*p C"]
    scale: int = 0


class StarPolicy:
    """A STAR model, its image tokenizer and its text encoder behind the `Policy` protocol.

    The text encoder and the image tokenizer are frozen and run in float32, whatever the transformer runs in.
    """

    def __init__(
        self,
        config: StarConfig,
        transformer: StarTransformer,
        vae: StarVae,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.transformer = transformer.eval().requires_grad_(True)
        self.transformer.class_emb.requires_grad_(False)
        self.vae = vae.float().eval().requires_grad_(False)
        self.text_encoder = text_encoder.float().eval().requires_grad_(False)
        self.layout = TokenLayout(
            maps=tuple((side, side) for side in config.scales), blocks=tuple(side**2 for side in config.scales)
        )
        self.ends = torch.tensor(self.layout.blocks).cumsum(0).tolist()  # of each scale, in tokens
        sizes = transformer.sizes
        self.rope = rope_table(config.scales, sizes.width // sizes.heads).to(self.device)
        self.vocabulary = transformer.head_logits.out_features
        self.stop_tokens: tuple[int, ...] = ()
        self.never: tuple[int, ...] = ()
        self.default_guidance = DEFAULT_GUIDANCE
        self.gradient_checkpointing = False

    @classmethod
    def load(cls, source: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Self:
        """From a folder or file as described above, or from the hub. Raises ModelError for what is no whole STAR."""
        path, on_hub = find_transformer(fetch(source, ("config.json",))), not Path(source).exists()
        config, vae_path = config_of(path), find_vae(path.parent, on_hub)
        text = find_text(path.parent, on_hub)
        keys = ("trainer", "var_wo_ddp") if path.suffix == ".pth" else ()
        transformer = StarTransformer.from_tensors(path, read_tensors(path, *keys))
        if transformer.sizes.scales != len(config.scales):
            raise ModelError(
                f"{path.parent / 'config.json'} has {len(config.scales)} scales, but {path} has "
                f"{transformer.sizes.scales}: set them to the checkpoint's"
            )
        vae = StarVae.from_tensors(vae_path, read_tensors(vae_path), config.scales).to(device)
        encoder = load_encoder(CLIPTextModel, text / TEXT[0], torch.float32, device)
        place: Any = torch.device(device)
        return cls(config, transformer.to(place, dtype), vae, encoder, load_tokenizer(text / TEXT[1]))

    @property
    def module(self) -> StarTransformer:
        return self.transformer

    @property
    def layers(self) -> torch.nn.ModuleList:
        return self.transformer.blocks

    @property
    def device(self) -> torch.device:
        return self.transformer.pos_start.device

    @property
    def control_tokens(self) -> frozenset[str]:
        return control_tokens(self.tokenizer)

    def encode(
        self, prompts: Sequence[str | Question], negative_prompts: Sequence[str | Question] | None = None
    ) -> Condition:
        """CLIP's hidden states `[2, P, L, D]`, which of them are text `[2, P, L]`, and its pooled ones `[2, P, D]`."""
        conditional = texts(prompts)
        both = conditional + (texts(negative_prompts) if negative_prompts else [""] * len(prompts))
        distinct = list(dict.fromkeys(both))
        length = self.text_encoder.config.max_position_embeddings
        read = self.tokenizer(distinct, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        ids, visible = read["input_ids"].to(self.device), read["attention_mask"].to(self.device)
        with torch.no_grad():
            encoded = self.text_encoder(input_ids=ids, attention_mask=visible)
        rows = torch.tensor([distinct.index(text) for text in both], device=self.device).view(2, -1)
        values = {"hidden": encoded.last_hidden_state, "visible": visible.bool(), "pooled": encoded.pooler_output}
        return Condition(tuple(conditional), {name: tensor[rows] for name, tensor in values.items()})

    def cut(self, prompts: Sequence[str]) -> tuple[int, int]:
        length = self.text_encoder.config.max_position_embeddings
        return length, longer(self.tokenizer, prompts, length)

    def guidance(self, scale: float) -> Float[Tensor, " blocks"]:
        """`1 + scale * s / (S - 1)`: from 1 at the first scale to `1 + scale` at the last."""
        return 1 + scale * torch.linspace(0, 1, len(self.layout.blocks), device=self.device)

    @torch.no_grad()
    def prefill(self, condition: Condition, group_size: int, branches: int, into: StarState | None = None) -> StarState:
        """Read the texts and the first scale, once per prompt; every run has buffers of its own."""
        read, visible, start = self._read(condition, branches)
        text = self.transformer.text_keys(read)
        cache = self.transformer.empty_cache(len(start), 1)
        hidden = self._run(start, slice(0, 1), text, visible, cache=cache)
        rows = torch.arange(len(start), device=self.device).repeat_interleave(group_size)
        texts = rows[: len(visible) * group_size]
        side, images = self.config.scales[-1], len(rows) // branches
        return StarState(
            cache=cache.expand(rows, self.layout.tokens),
            text=[(key[texts], value[texts]) for key, value in text],
            text_visible=visible[texts],
            features=torch.zeros(images, self.transformer.sizes.code_width, side, side, device=self.device),
            branches=branches,
            hidden=hidden[rows],
        )

    @torch.no_grad()
    def next_logits(self, state: StarState) -> Float[Tensor, "K R block V"]:
        return self.head(state.hidden).unflatten(0, (state.branches, -1))

    @torch.no_grad()
    def append(self, state: StarState, tokens: Int[Tensor, "R block"]) -> None:
        state.features = state.features + self.vae.contribution(tokens, state.scale)
        state.scale += 1
        read = self.vae.reduced(state.features, state.scale).flatten(2).mT
        slots = slice(self.ends[state.scale - 1], self.ends[state.scale])
        x = self._embed(read, slots).repeat(state.branches, 1, 1)
        state.hidden = self._run(x, slots, state.text, state.text_visible, cache=state.cache)

    def hidden(self, condition: Condition, tokens: Int[Tensor, "R N"], branches: int) -> Float[Tensor, "K R N D"]:
        text, text_visible, start = self._read(condition, branches)
        with torch.no_grad():
            read = self.vae.inputs(tokens)
        later = self._embed(read, slice(1, self.layout.tokens)).repeat(branches, 1, 1)
        everything = slice(0, self.layout.tokens)
        hidden = self._run(torch.cat([start, later], 1), everything, text, text_visible, visible=self.block_causal)
        return hidden.unflatten(0, (branches, -1))

    def head(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        return logits(self.transformer.head_logits, hidden)

    def token_embeddings(
        self, tokens: Int[Tensor, "R N"], kind: Literal["lm_input", "codebook"]
    ) -> Float[Tensor, "R N E"]:
        """The codebook rows, or those rows in the transformer's own space.

        The transformer never reads a token by itself, but sums of enlarged tokens, through the same projection.
        """
        rows = self.vae.codebook(tokens)
        return rows if kind == "codebook" else self.transformer.word_embed(rows.to(self._dtype))

    @torch.no_grad()
    def decode(self, tokens: Int[Tensor, "R N"]) -> UInt8[Tensor, "R 3 H W"]:
        """Pixels, truncated to bytes as the official code does."""
        images = max(1, DECODE_PIXELS // self.vae.image_side**2)
        pixels = torch.cat([self.vae.pixels(self.vae.features(part)[-1]) for part in tokens.split(images)])
        return to_bytes(pixels * 255)

    def trainable_parameters(self) -> Iterator[torch.nn.Parameter]:
        """The whole transformer's, as in its own training; text encoder and image tokenizer stay fixed."""
        return (parameter for parameter in self.transformer.parameters() if parameter.requires_grad)

    def reference(self) -> Self:
        return self.over(frozen_copy(self.transformer))

    def over(self, module: StarTransformer) -> Self:
        twin = copy.copy(self)
        twin.transformer = module
        return twin

    def save(self, path: Path) -> None:
        """The folder described above, with safetensors for the torch files; names inside are the released ones."""
        path.mkdir(parents=True, exist_ok=True)
        config = {"model_type": "star", **asdict(self.config)}
        (path / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        save_file(self.transformer.state_dict(), path / TRANSFORMER[0])
        save_file(self.vae.to_tensors(), path / VAE[0])
        self.text_encoder.save_pretrained(path / "text_encoder")
        self.tokenizer.save_pretrained(path / "tokenizer")

    @property
    def _dtype(self) -> torch.dtype:
        return self.transformer.pos_start.dtype

    @cached_property
    def block_causal(self) -> Bool[Tensor, "N N"]:
        """Which tokens each one sees in one pass: those of its own scale and of the earlier ones."""
        scale = torch.repeat_interleave(torch.tensor(self.layout.blocks)).to(self.device)
        return scale[:, None] >= scale

    def _read(self, condition: Condition, branches: int) -> tuple[Tensor, Bool[Tensor, "b 1 1 L"], Tensor]:
        """The texts `[b, L, D]`, which of their positions exist, and the first scale's input `[K*P, 1, C]`.

        With `pair` only the conditional texts are looked at.
        """
        looking = branches if self.config.null_text == "own" else 1
        hidden, visible = (condition.tensors[name][:looking].flatten(0, 1) for name in ("hidden", "visible"))
        pooled = condition.tensors["pooled"][:branches].flatten(0, 1)
        start = self.transformer.start(pooled.to(self._dtype))
        return hidden.to(self._dtype), visible[:, None, None], start

    def _embed(self, read: Float[Tensor, "R T E"], slots: slice) -> Float[Tensor, "R T C"]:
        """The transformer's input at later scales."""
        scale = torch.bucketize(torch.arange(slots.start, slots.stop), torch.tensor(self.ends), right=True)
        level = self.transformer.lvl_embed(scale.to(self.device))
        return self.transformer.word_embed(read.to(self._dtype)) + level

    def _run(
        self,
        x: Float[Tensor, "B T C"],
        slots: slice,
        text: TextKeys | Float[Tensor, "b L D"],
        text_visible: Bool[Tensor, "b 1 1 L"],
        visible: Bool[Tensor, "T T"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "B T C"]:
        """What the head reads."""
        recompute = self.gradient_checkpointing
        states = self.transformer(x, self.rope[slots], text, text_visible, visible, cache, recompute)
        return norm(states) if self.config.enable_logit_norm else states


def find_transformer(source: Path) -> Path:
    """The transformer's file. Raises ModelError where there is none or no single one."""
    if source.is_file():
        return source
    for name in TRANSFORMER:
        if (source / name).is_file():
            return source / name
    released = sorted(source.glob("star_*.pth"))
    if len(released) > 1:
        names = ", ".join(path.name for path in released)
        raise ModelError(f"{source} holds several transformers ({names}): name the file instead of the folder")
    if not released:
        raise ModelError(
            f"{source} has no transformer, neither {TRANSFORMER[0]} nor a star_*.pth of the hub's taocrayon/STAR: put "
            "one there, or give a name of t2i-rl models"
        )
    return released[0]


def config_of(transformer: Path) -> StarConfig:
    """By the config.json beside the transformer, else by its name. Raises ModelError."""
    config = transformer.parent / "config.json"
    if config.is_file():
        return StarConfig.read(config)
    named = re.match(rf"star_.*_({'|'.join(RELEASED)})[_-]", transformer.name)
    if named is None:
        raise ModelError(f'{config} does not exist: write {{"model_type": "star", "scales": [1, 2, ...]}} into it')
    return RELEASED[named[1]]


def find_vae(folder: Path, on_hub: bool) -> Path:
    """The image tokenizer's file. Raises ModelError."""
    for name in VAE:
        if (folder / name).is_file():
            return folder / name
    if not on_hub:
        raise ModelError(f"{folder / VAE[-1]} does not exist: put the image tokenizer there, from {VAE_ON_HUB}")
    return fetch(VAE_ON_HUB)


def find_text(folder: Path, on_hub: bool) -> Path:
    """The folder that holds the text encoder's and the tokenizer's. Raises ModelError."""
    repository, inner = TEXT_ON_HUB
    place = folder / inner if (folder / inner).is_dir() else folder
    if on_hub and not (place / TEXT[0]).is_dir():
        # No second copy of the weights in other formats or precisions.
        files = ("text_encoder/config.json", "text_encoder/model.safetensors", "text_encoder/pytorch_model.bin")
        place = fetch(repository, [f"{inner}/{name}" for name in (*files, "tokenizer/*")]) / inner
    for name in TEXT:
        if not (place / name).is_dir():
            raise ModelError(
                f"{place / name} does not exist: put the folder {name} of Stable Diffusion 2.1 there, or {inner} of "
                f"{repository}"
            )
    return place
