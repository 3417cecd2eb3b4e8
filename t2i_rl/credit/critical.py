"""Critical tokens: 30 % of the tokens are updated, weighted by how far the policy has left the reference.

Group Critical-token Policy Optimization (arXiv:2509.22485). With K = int(share * N) three sets are kept: the
initial tokens (everything after depends on them), the structure tokens (high entropy gradient: the edges of
objects) and the tokens in which the images of the group differ most (low similarity).

Differences between paper and released code, and what we chose:
- The paper unites three sets that may overlap. As released, each set leaves out the ones before it: exactly 3K.
- As released, structure tokens come from the middle 80 % of the sequence. For shares above a tenth the release
  lets them overlap the initial ones; ours do not, so that 3K holds for every share.
- The paper's running weight is the mean of the clipped difference, the release's the mean of its exponential.
  Ours is exponential by default: the paper's form is 0, so without policy gradient, at the first update.
- The release lets gradient flow through the running weight, which then also updates unselected tokens.
  Detached by default: only then are the critical tokens the only ones.
- The release fixes the clip at 0.5; the paper has 0.5 to 1 by model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from jaxtyping import Bool, Float

from t2i_rl.credit import Embedding, TokenCredit
from t2i_rl.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from models.policy import TokenLayout
    from t2i_rl.rollout import Rollout


@dataclass(frozen=True)
class CriticalTokens:
    """Keeps 3K tokens of each image: K initial, K structure, K low-similarity ones.

    share: K as a part of all tokens.
    local_mean: whether the entropy is smoothed before its gradient is taken.
    """

    statistics: ClassVar[tuple[str, ...]] = ("entropy",)
    embeddings: ClassVar[Embedding | None] = "lm_input"

    share: float = 0.1
    local_mean: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 / 3:
            raise UserError(f"critical tokens: the share {self.share} of each of the three sets must be in (0, 1/3]")

    def __call__(
        self, rollout: Rollout, embeddings: Float[Tensor, "P G N E"] | None, layout: TokenLayout
    ) -> TokenCredit:
        from t2i_rl.tokenmaps import entropy_gradient, similarity

        if embeddings is None:
            raise ValueError("critical tokens compare the images of a group by their token embeddings: pass them")
        entropy = rollout.statistics["entropy"]
        alike = similarity(embeddings)[:, None].expand_as(entropy)
        classes = critical_classes(entropy_gradient(entropy, layout, self.local_mean), alike, self.share)
        mask = classes["initial"] | classes["structure"] | classes["similarity"]
        return TokenCredit(mask.new_ones(mask.shape).float(), mask, classes)


def critical_classes(
    gradient: Float[Tensor, "... N"], similarity: Float[Tensor, "... N"], share: float
) -> dict[str, Bool[Tensor, "... N"]]:
    """Three disjoint sets of `int(share * N)` tokens each, by name."""
    tokens = gradient.shape[-1]
    size = int(share * tokens)
    initial = gradient.new_zeros(gradient.shape).bool()
    initial[..., :size] = True
    structure = lowest(-gradient, size, middle(gradient) & ~initial)
    return {
        "initial": initial,
        "structure": structure,
        "similarity": lowest(similarity, size, ~(initial | structure)),
    }


def middle(values: Float[Tensor, "... N"]) -> Bool[Tensor, "... N"]:
    """The middle 80 % of the sequence, where structure tokens may lie whatever their number."""
    tokens = values.shape[-1]
    eligible = values.new_zeros(values.shape).bool()
    start = int(0.1 * tokens)
    eligible[..., start : start + int(0.8 * tokens)] = True
    return eligible


def lowest(values: Float[Tensor, "... N"], size: int, among: Bool[Tensor, "... N"]) -> Bool[Tensor, "... N"]:
    """The `size` lowest values among the eligible ones; of equal values the earliest positions."""
    order = values.masked_fill(~among, float("inf")).argsort(dim=-1, stable=True)
    return among.new_zeros(among.shape).scatter(-1, order[..., :size], True)


@dataclass(frozen=True)
class DynamicWeight:
    """The running weight of an image's tokens; it changes during the update, because it depends on the policy.

    clip: bound of the difference of log-probabilities, in nats.
    form: `exp` as released, `linear` as in the paper (`t2i_rl.tokenmaps.running_divergence`).
    detach: whether the weight is a constant for the gradient.
    """

    clip: float = 0.5
    form: Literal["exp", "linear"] = "exp"
    detach: bool = True

    def __post_init__(self) -> None:
        if self.clip <= 0:
            raise UserError(f"dynamic weight: the clip {self.clip} must be positive")

    def __call__(self, lp: Float[Tensor, "... N"], ref: Float[Tensor, "... N"]) -> Float[Tensor, "... N"]:
        """The weight of every token, from the conditional log-probabilities of policy and reference."""
        from t2i_rl.tokenmaps import running_divergence

        return running_divergence(lp.detach() if self.detach else lp, ref, self.clip, self.form)
