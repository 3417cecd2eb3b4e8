"""Entropy masks: only the least, or most, certain tokens are updated; and random ones, as a control.

"Beyond the 80/20 rule" (arXiv:2506.01939): the fifth of the tokens of highest entropy carries the learning. TRL takes
the quantile over the whole batch, with linear interpolation; per image is the variant. The loss of the masked batch is
divided by all tokens in TRL: the objective's denominator `tokens`.
The entropy is that of the distribution that was sampled from, in nats; TRL's is that of the scoring pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from jaxtyping import Float

from t2i_rl.errors import UserError
from t2i_rl.methods.credit.rule import UNKNOWN, Context, Embedding, TokenCredit
from t2i_rl.settings import check_choice

if TYPE_CHECKING:
    from torch import Tensor

    from models.policy import TokenLayout
    from t2i_rl.rollout.groups import Rollout


End = Literal["top", "bottom"]
Over = Literal["batch", "image"]


@dataclass(frozen=True)
class EntropyTokens:
    """Updates a share of the tokens, by entropy.

    which: the `top` or the `bottom` of the order.
    over: what is ordered: all tokens of the `batch` (images keep different numbers of tokens), or each `image`'s.
    """

    statistics: ClassVar[tuple[str, ...]] = ("entropy",)
    embeddings: ClassVar[Embedding | None] = None
    compares: ClassVar[bool] = False
    places: ClassVar[bool] = False

    share: float = 0.2
    which: End = "top"
    over: Over = "batch"

    def __post_init__(self) -> None:
        check_share("entropy tokens", self.share)
        check_choice("entropy tokens", "which", self.which, End)
        check_choice("entropy tokens", "over", self.over, Over)

    def __call__(
        self,
        rollout: Rollout,
        embeddings: Float[Tensor, "P G N E"] | None,
        layout: TokenLayout,
        context: Context = UNKNOWN,
    ) -> TokenCredit:
        from t2i_rl.tokenmaps import top_share

        entropy = rollout.statistics["entropy"]
        values = entropy if self.which == "top" else -entropy
        if self.over == "batch":
            there = context.everyone(values.where(rollout.valid, math.nan))
            mask = rollout.valid & (values >= upper_quantile(there[~there.isnan()], self.share))
        else:
            mask = top_share(values, self.share, rollout.valid)
        return TokenCredit(entropy.new_ones(entropy.shape), mask, {"entropy": mask})


@dataclass(frozen=True)
class RandomTokens:
    """Updates a share of each image's tokens, drawn anew at every step: a control for every way of choosing.

    The draw is keyed by seed, step, prompt and sample, so it does not depend on the batch.
    """

    statistics: ClassVar[tuple[str, ...]] = ()
    embeddings: ClassVar[Embedding | None] = None
    compares: ClassVar[bool] = False
    places: ClassVar[bool] = False

    share: float = 0.3

    def __post_init__(self) -> None:
        check_share("random tokens", self.share)

    def __call__(
        self,
        rollout: Rollout,
        embeddings: Float[Tensor, "P G N E"] | None,
        layout: TokenLayout,
        context: Context = UNKNOWN,
    ) -> TokenCredit:
        from t2i_rl.rollout.noise import occurrences, uniforms
        from t2i_rl.tokenmaps import top_share

        # The prompt is marked: the noise that sampled the tokens must not choose among them.
        marked = [f"random tokens: {prompt}" for prompt in rollout.prompts]
        numbers = occurrences(rollout.prompts)
        drawn = uniforms(context.seed, context.step, marked, numbers, *rollout.tokens.shape[1:])
        mask = top_share(drawn.to(rollout.tokens.device), self.share, rollout.valid)
        return TokenCredit(mask.new_ones(mask.shape).float(), mask, {"random": mask})


def check_share(rule: str, share: float) -> None:
    if not 0 < share <= 1:
        raise UserError(f"{rule}: the share {share} of the tokens must be in (0, 1]")


def upper_quantile(values: Float[Tensor, ...], share: float) -> Float[Tensor, ""]:
    """The `1 - share` quantile of the values, linearly interpolated."""
    ordered = values.flatten().sort().values
    place = (1 - share) * (len(ordered) - 1)
    below, part = ordered[math.floor(place)], place - math.floor(place)
    return below + part * (ordered[math.ceil(place)] - below)
