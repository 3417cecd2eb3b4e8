"""What a rule of token credit is given and what it returns; and the plainest rule.

Nothing here imports torch before it is called: the command line reads the rules' settings for its help.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from jaxtyping import Bool, Float

from t2i_rl.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from models.policy import TokenLayout
    from t2i_rl.rollout.groups import Rollout

Embedding = Literal["lm_input", "codebook"]


@dataclass(frozen=True)
class TokenCredit:
    """What the tokens of a rollout have earned; constant during the update.

    weight: factor of the policy term, at least 0.
    mask: tokens that are updated; the KL to the reference is taken over them too.
    classes: named sets of tokens for pictures.
    kl: factor of the KL to the reference, where the rule changes that.
    advantages: of the tokens, where the rule makes them differ within an image; they replace the image's.
    """

    weight: Float[Tensor, "P G N"]
    mask: Bool[Tensor, "P G N"]
    classes: Mapping[str, Bool[Tensor, "P G N"]] = field(default_factory=dict)
    kl: Float[Tensor, "P G N"] | None = None
    advantages: Float[Tensor, "P G N"] | None = None

    @classmethod
    def checked(cls, found: object, rollout: Rollout, method: str) -> TokenCredit:
        """What the rule of a method gave. Raises UserError for anything but the credit of every token."""
        if not isinstance(found, cls):
            raise UserError(f"the method {method} gave {type(found).__name__}: its rule has to return a TokenCredit")
        for name, values in (("weight", found.weight), ("mask", found.mask)):
            if values.shape != rollout.tokens.shape:
                raise UserError(
                    f"the method {method} gave a {name} of shape {list(values.shape)} for tokens of shape "
                    f"{list(rollout.tokens.shape)}: its rule has to return one number for each token"
                )
        return found

    def within(self, valid: Bool[Tensor, "P G N"]) -> TokenCredit:
        """The same, and none for the other tokens."""
        kl, advantages = (
            None if values is None else values.masked_fill(~valid, 0) for values in (self.kl, self.advantages)
        )
        return TokenCredit(self.weight.masked_fill(~valid, 0), self.mask & valid, self.classes, kl, advantages)

    def first(self, groups: int) -> TokenCredit:
        """Of so many groups."""
        return TokenCredit(
            self.weight[:groups],
            self.mask[:groups],
            {name: tokens[:groups] for name, tokens in self.classes.items()},
            None if self.kl is None else self.kl[:groups],
            None if self.advantages is None else self.advantages[:groups],
        )


@dataclass(frozen=True)
class Context:
    """What a rule may know of the update beside its rollout.

    advantages: of the images; None where they are not known.
    step, steps: the number of the update, from 1, and of all updates of the run.
    seed: of the run.
    everyone: values of the rollout's groups to those of all groups in the batch, of which a process has its share.
    """

    advantages: Float[Tensor, "P G"] | None = None
    step: int = 1
    steps: int = 1
    seed: int = 0
    everyone: Callable[[Float[Tensor, "P ..."]], Float[Tensor, "Q ..."]] = lambda values: values

    @property
    def progress(self) -> float:
        """The share of the run that is done, in [0, 1)."""
        return (self.step - 1) / self.steps

    def known_advantages(self, rule: str) -> Float[Tensor, "P G"]:
        """The advantages, or ValueError in the name of the rule that needs them."""
        if self.advantages is None:
            raise ValueError(f"{rule} needs the advantages of the images: pass them in the context")
        return self.advantages


UNKNOWN = Context()


class CreditRule(Protocol):
    """Settings of a rule that turns a rollout into credit; a frozen dataclass."""

    @property
    def statistics(self) -> tuple[str, ...]:
        """Which statistics the sampler must measure: some of `StatisticName`."""
        ...

    @property
    def embeddings(self) -> Embedding | None:
        """The kind of token embeddings that the rule looks at, if any."""
        ...

    @property
    def compares(self) -> bool:
        """Whether it compares the images of a group, so that one image alone has no credit."""
        ...

    @property
    def places(self) -> bool:
        """Whether it looks at places of a picture, or at one place in several: answers in text have none."""
        ...

    def __call__(
        self,
        rollout: Rollout,
        embeddings: Float[Tensor, "P G N E"] | None,
        layout: TokenLayout,
        context: Context = UNKNOWN,
    ) -> TokenCredit:
        """The credit of every token. Groups must be whole; `embeddings` are of the kind asked for, else None."""
        ...


@dataclass(frozen=True)
class UniformCredit:
    """GRPO: every token earns the same."""

    statistics: ClassVar[tuple[str, ...]] = ()
    embeddings: ClassVar[Embedding | None] = None
    compares: ClassVar[bool] = False
    places: ClassVar[bool] = False

    def __call__(
        self,
        rollout: Rollout,
        embeddings: Float[Tensor, "P G N E"] | None,
        layout: TokenLayout,
        context: Context = UNKNOWN,
    ) -> TokenCredit:
        return TokenCredit(rollout.valid.float(), rollout.valid)
