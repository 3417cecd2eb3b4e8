"""The protocol of an autoregressive policy, and the nouns it speaks in.

Legend of the shapes used everywhere: `P` prompts, `G` samples per prompt (the group), `R = P * G` rows,
prompt-major; `K` guidance branches (0 conditional, 1 unconditional), leading and never interleaved;
`N` tokens, `V` codebook size, `(h, w)` a token map.

Decoding is a sequence of blocks of tokens: N blocks of one token for a raster model (Janus-Pro,
LlamaGen), one block per scale for a next-scale model (STAR). The sampler and the trainer know only this.
A sample is a picture of N tokens, or a text of at most N: a map of height 1 whose rows end at a stop token.
What stands behind a row's end is any token, and nothing that it holds reaches what is before.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from models.question import Question

Item = TypeVar("Item")
Rows = Sequence[int] | slice  # of a batch; a slice of a tensor is a view, and no device is asked for it

MOST_SIDE = 1024  # tokens along a map, beyond every model: where a config says more, it is damaged


@dataclass(frozen=True)
class TokenLayout:
    """Where tokens lie and how they are decoded.

    maps: (height, width) of each two-dimensional map, in token order, each row by row from the top left.
    blocks: how many tokens each decoding step yields.
    """

    maps: tuple[tuple[int, int], ...]
    blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        if sum(h * w for h, w in self.maps) != sum(self.blocks):
            raise ValueError(f"the maps {self.maps} and the blocks {self.blocks} hold different numbers of tokens")

    @property
    def tokens(self) -> int:
        return sum(self.blocks)

    def split(self, values: Tensor) -> list[Tensor]:
        """Token values `[..., N]` as one `[..., h, w]` picture per map."""
        parts = values.split([h * w for h, w in self.maps], dim=-1)
        return [part.unflatten(-1, size) for part, size in zip(parts, self.maps, strict=True)]


@dataclass(frozen=True)
class Condition:
    """What the prompts become: one tensor `[K, P, ...]` per name, opaque outside its model family.

    prompts: what each is known by, `models.question.Question.key`.
    tensors: on the policy's device, but for `lengths`, which say how wide a batch is: they stay on the CPU.
    """

    prompts: tuple[str, ...]
    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: Rows) -> Self:
        """The condition of the given prompts, in that order, repetitions allowed."""
        index = rows if isinstance(rows, slice) else torch.as_tensor(rows, dtype=torch.long)
        return type(self)(picked(self.prompts, rows), {name: tensor[:, index] for name, tensor in self.tensors.items()})

    def repeat(self, group_size: int) -> Self:
        """One row per sample: each prompt `group_size` times, prompt-major."""
        return self.take([row for row in range(len(self)) for _ in range(group_size)])

    def alike(self) -> Bool[Tensor, " P"]:
        """For which prompts the second branch is the first once more, so that nothing tells them apart; on the CPU."""
        same = [(one[0] == one[-1])[..., None].flatten(1).all(1).cpu() for one in self.tensors.values()]
        return torch.stack(same).all(0)


def picked(items: Sequence[Item], rows: Rows) -> tuple[Item, ...]:
    return tuple(items[rows] if isinstance(rows, slice) else [items[row] for row in rows])


State = Any  # of one decoding run; every family has its own
Samples = UInt8[Tensor, "R 3 H W"] | list[str]  # one per row


class Policy(Protocol):
    """An autoregressive model of pictures or of answers, with gradients where the trainer needs them.

    Results for a prompt do not depend on what else is in its batch.
    """

    layout: TokenLayout
    stop_tokens: tuple[int, ...]  # that end a row and belong to it; none where every row has all N tokens
    vocabulary: int  # V, how many tokens there are to choose from
    never: tuple[int, ...]  # tokens that are not drawn, whatever their probability
    default_guidance: float  # the scale that the checkpoint asks to be sampled with
    gradient_checkpointing: bool  # whether `hidden` keeps only each layer's input for the backward pass

    @property
    def module(self) -> torch.nn.Module:
        """The weights, of which training changes some."""
        ...

    @property
    def layers(self) -> torch.nn.ModuleList:
        """The transformer layers among them."""
        ...

    @property
    def control_tokens(self) -> frozenset[str]:
        """What the tokenizer takes for its own marks, in angle brackets; no prompt may hold one, in any case."""
        ...

    def encode(
        self, prompts: Sequence[str | Question], negative_prompts: Sequence[str | Question] | None = None
    ) -> Condition:
        """The conditional branch of each prompt and its unconditional one (or a negative prompt's).

        A model without an unconditional branch has the first alone, unless there are negative prompts.
        """
        ...

    def guidance(self, scale: float) -> Float[Tensor, " blocks"]:
        """The factor g of `u + g * (c - u)` at each block."""
        ...

    def prefill(self, condition: Condition, group_size: int, branches: int, into: State | None = None) -> State:
        """Read each prompt once and expand what was read to its group, with the weights as they are now.

        into: an earlier run's state, which is over: its buffers may be used again.
        """
        ...

    def next_logits(self, state: State) -> Float[Tensor, "K R block V"]:
        """Logits of the next block, float32."""
        ...

    def append(self, state: State, tokens: Int[Tensor, "R block"]) -> None:
        """Feed the sampled block."""
        ...

    def hidden(self, condition: Condition, tokens: Int[Tensor, "R N"], branches: int) -> Float[Tensor, "K R N D"]:
        """Teacher-forced states that predict each token, one pass; `condition` has R rows."""
        ...

    def head(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Logits, float32. Apart from the trunk, so that it runs in chunks and only where needed."""
        ...

    def token_embeddings(
        self, tokens: Int[Tensor, "R N"], kind: Literal["lm_input", "codebook"]
    ) -> Float[Tensor, "R N E"]:
        """The tokens as the language model reads them, or as the image decoder does. Raises ModelError without one."""
        ...

    def decode(self, tokens: Int[Tensor, "R N"]) -> Samples:
        """Pixels, or the texts up to each row's end."""
        ...

    def trainable_parameters(self) -> Iterator[torch.nn.Parameter]:
        """The parameters that an update may change."""
        ...

    def reference(self) -> "Policy":
        """A frozen copy that shares every tensor which training does not change."""
        ...

    def save(self, path: Path) -> None:
        """Write the checkpoint in the format it is loaded from."""
        ...


@runtime_checkable
class Rebuilt(Policy, Protocol):
    """A policy whose weights can lie in other modules of the same names, such as shares of them."""

    def over(self, module: Any) -> "Rebuilt":
        """The same policy over a copy of its `module`."""
        ...


@runtime_checkable
class CompilesLayers(Protocol):
    """What a policy offers besides whose layers can be compiled for `hidden`."""

    compiled: bool


@runtime_checkable
class ReadsQuestions(Protocol):
    """What a policy offers besides that refuses a question which is too long for it."""

    def question_tokens(self, asked: Question) -> int:
        """The tokens of a question with its pictures, which need not be read. Raises ModelError as `encode` does."""
        ...


@runtime_checkable
class ReadsBeginnings(Protocol):
    """What a policy offers besides whose text encoder reads so many tokens of a prompt and no more."""

    def cut(self, prompts: Sequence[str]) -> tuple[int, int] | None:
        """The tokens that it reads, those at the ends included, and how many of the prompts have more."""
        ...


@runtime_checkable
class FixedShapes(Protocol):
    """What the state of a policy offers besides whose decoding steps compute the same shapes at every token.

    slot: where the next keys and values go, on the device; filled: how many there are, as the host counts them.
    halves: the functions of a layer before attention and behind it.
    """

    slot: Int[Tensor, " 1"]
    filled: int
    halves: tuple[Callable[..., Tensor], Callable[..., Tensor]]

    @property
    def visible(self) -> int:
        """Slots that attention reads in the next step: one of `buckets`."""
        ...

    @property
    def buckets(self) -> Sequence[int]:
        """All that `visible` can be."""
        ...

    def feed(self, tokens: Int[Tensor, "R 1"], visible: int) -> None:
        """`Policy.append` without what the host counts: nothing changes but tensors."""
        ...
