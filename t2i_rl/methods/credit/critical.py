"""Critical tokens: 30 % of the tokens are updated, weighted by how far the policy has left the reference.

Group Critical-token Policy Optimization (arXiv:2509.22485). With K = int(share * N) three sets are kept (eq. 6): the
initial tokens (everything after depends on them), the structure tokens (high entropy gradient: the edges of objects;
eq. 4) and the tokens in which the images of the group differ most (low similarity; eq. 5). The running weight is eq. 7.

Differences between paper and released code, and what we chose:
- The paper unites three sets that may overlap. As released, each set leaves out the ones before it: exactly 3K.
- As released, structure tokens come from the middle 80 % of the sequence. For shares above a tenth the release
  lets them overlap the initial ones; ours do not, so that 3K holds for every share.
- The paper's running weight is the mean of the clipped difference, the release's the mean of its exponential.
  Ours is exponential by default: the paper's form is 0 at the first update, so without policy gradient if detached.
- The release lets gradient flow through the running weight, which then also updates unselected tokens.
  Detached by default: only then are the critical tokens the only ones.
- The paper divides by all tokens, the release by the selected ones: the objective's denominator.
- The release fixes the clip at 0.5; the paper has 0.5 to 1 by model.

For next-scale models the paper has one sentence: a quarter of the tokens, early scales in place of initial tokens. The
rest is ours and untested on real weights: see `set_sizes` for the sizes; gradients stay inside each scale and are
divided by the scale's mean, else coarse scales would win; scales below 3x3 have no structure tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar, Literal

from jaxtyping import Bool, Float

from t2i_rl.errors import UserError
from t2i_rl.methods.credit.rule import UNKNOWN, Context, Embedding, TokenCredit
from t2i_rl.settings import check_choice

if TYPE_CHECKING:
    from torch import Tensor

    from models.policy import TokenLayout
    from t2i_rl.rollout.groups import Rollout


Part = Literal["initial", "structure", "similarity"]
Sets = Literal["disjoint", "union"]
Keep = Literal["chosen", "complement"]
Form = Literal["exp", "linear"]
Over = Literal["tokens", "scales"]
Neighbours = Literal["causal", "box"]
PARTS: tuple[Part, ...] = ("initial", "structure", "similarity")
EQUAL = (1.0, 1.0, 1.0)
LEAST_SIDE = 3  # of a scale with structure tokens: a smaller map has borders only


@dataclass(frozen=True)
class CriticalTokens:
    """Keeps 3K tokens of each image: K initial, K structure, K low-similarity ones; of a next-scale model 2.5 K.

    share: K as a part of all tokens.
    local_mean: whether the entropy is smoothed before its gradient is taken.
    parts: which of the sets are kept (the paper's ablation); their order does not matter.
    sets: `disjoint` as released, or `union`: the paper's, where sets may overlap and no border is barred.
    keep: the chosen tokens, or all the others (`complement`, a control).
    embedding: what similarity looks at: the model's input of a token, or its vector in the codebook.
    ratio: the sizes of the initial, the structure and the similarity set, in K.
    neighbours: what the local mean looks at: `causal`, the tokens that a raster model draws before; `box`, all eight
        around, where a scale's tokens are drawn at once.
    """

    statistics: ClassVar[tuple[str, ...]] = ("entropy",)
    places: ClassVar[bool] = True

    share: float = 0.1
    local_mean: bool = True
    parts: tuple[Part, ...] = PARTS
    sets: Sets = "disjoint"
    keep: Keep = "chosen"
    embedding: Embedding = "lm_input"
    ratio: tuple[float, float, float] = EQUAL
    neighbours: Neighbours = "causal"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 / 3:
            raise UserError(f"critical tokens: the share {self.share} of each of the three sets must be in (0, 1/3]")
        initial, structure, _ = sizes = [self.share * size for size in self.ratio]
        # Disjoint structure tokens lie between the initial ones, or the first tenth, and the last tenth.
        if min(sizes) <= 0 or sum(sizes) > 1 + 1e-9 or max(initial, 0.1) + structure > 0.9:
            raise UserError(
                f"critical tokens: sets in the ratio {self.ratio} of the share {self.share} do not fit into the image"
            )
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise UserError(f"critical tokens: the parts {self.parts} must be some of {', '.join(PARTS)}")
        if "structure" not in self.parts and not self.local_mean:
            raise UserError("critical tokens: local_mean is of structure tokens: add structure to the parts")
        if self.neighbours != "causal" and not ("structure" in self.parts and self.local_mean):
            raise UserError("critical tokens: neighbours are those of the local mean of structure tokens: ask for both")
        check_choice("critical tokens", "sets", self.sets, Sets)
        check_choice("critical tokens", "keep", self.keep, Keep)
        check_choice("critical tokens", "embedding", self.embedding, Embedding)
        check_choice("critical tokens", "neighbours", self.neighbours, Neighbours)

    @property
    def embeddings(self) -> Embedding | None:
        return self.embedding if self.compares else None

    @property
    def compares(self) -> bool:
        return "similarity" in self.parts

    def __call__(
        self,
        rollout: Rollout,
        embeddings: Float[Tensor, "P G N E"] | None,
        layout: TokenLayout,
        context: Context = UNKNOWN,
    ) -> TokenCredit:
        from t2i_rl.tokenmaps import entropy_gradient, similarity

        entropy = rollout.statistics["entropy"]
        if "similarity" not in self.parts:
            alike = entropy.new_zeros(entropy.shape)
        elif embeddings is None:
            raise ValueError("critical tokens compare the images of a group by their token embeddings: pass them")
        else:
            alike = similarity(embeddings)[:, None].expand_as(entropy)
        gradient = entropy_gradient(entropy, layout, self.local_mean, self.neighbours)
        classes = critical_classes(gradient, alike, layout, self.share, self.parts, self.sets, self.ratio)
        chosen = union(classes)
        mask = chosen if self.keep == "chosen" else ~chosen
        return TokenCredit(mask.new_ones(mask.shape).float(), mask, classes)


def critical_classes(
    gradient: Float[Tensor, "... N"],
    similarity: Float[Tensor, "... N"],
    layout: TokenLayout,
    share: float,
    parts: Sequence[Part] = PARTS,
    sets: Sets = "disjoint",
    ratio: tuple[float, float, float] = EQUAL,
) -> dict[str, Bool[Tensor, "... N"]]:
    """The sets by name, of as many tokens as `set_sizes` says; if disjoint, each leaves out the kept ones before it."""
    from t2i_rl.tokenmaps import relative_to_map

    sizes = set_sizes(layout, share, ratio)
    nothing = gradient.new_zeros(gradient.shape).bool()
    classes: dict[str, Tensor] = {}

    def free() -> Tensor:
        return ~union(classes) if classes and sets == "disjoint" else ~nothing

    if "initial" in parts:
        classes["initial"] = nothing.clone()
        classes["initial"][..., : sizes["initial"]] = True
    if "structure" in parts:
        eligible = free()
        if len(layout.maps) > 1:
            gradient, eligible = relative_to_map(gradient, layout), eligible & large_maps(gradient, layout)
        elif sets == "disjoint":
            eligible = eligible & middle(gradient)
        classes["structure"] = lowest(-gradient, sizes["structure"], eligible)
    if "similarity" in parts:
        classes["similarity"] = lowest(similarity, sizes["similarity"], free())
    return classes


def set_sizes(layout: TokenLayout, share: float, ratio: tuple[float, float, float] = EQUAL) -> dict[Part, int]:
    """How many tokens each set has, whichever of them are kept.

    A raster model: `int(share * ratio * N)` each. A next-scale model: the initial tokens are the most whole scales from
    the first on that hold at most half of that share; structure has its own as before; similarity fills the three up
    to `int((ratio_1 / 2 + ratio_2 + ratio_3) * share * N)`: a quarter of all tokens for a share of a tenth.
    """
    tokens = layout.tokens
    initial, structure, similarity = (share * size for size in ratio)
    if len(layout.maps) == 1:
        return {part: int(size * tokens) for part, size in zip(PARTS, (initial, structure, similarity), strict=True)}
    ends = accumulate(h * w for h, w in layout.maps)
    first = max((end for end in ends if end <= initial / 2 * tokens), default=0)
    edges, total = int(structure * tokens), int((initial / 2 + structure + similarity) * tokens)
    return {"initial": first, "structure": edges, "similarity": total - first - edges}


def union(classes: Mapping[str, Bool[Tensor, "... N"]]) -> Bool[Tensor, "... N"]:
    """The tokens that are in some of the sets."""
    first, *others = classes.values()
    for other in others:
        first = first | other
    return first


def middle(values: Float[Tensor, "... N"]) -> Bool[Tensor, "... N"]:
    """The middle 80 % of the sequence, where structure tokens may lie whatever their number."""
    tokens = values.shape[-1]
    eligible = values.new_zeros(values.shape).bool()
    start = int(0.1 * tokens)
    eligible[..., start : start + int(0.8 * tokens)] = True
    return eligible


def large_maps(values: Float[Tensor, "... N"], layout: TokenLayout) -> Bool[Tensor, "... N"]:
    """The tokens of scales that are large enough to have structure."""
    eligible = values.new_zeros(values.shape).bool()
    for picture in layout.split(eligible):
        picture[...] = min(picture.shape[-2:]) >= LEAST_SIDE
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
    over: what the mean runs over: `tokens`, or `scales`, each by its own mean, so that the tokens of a scale, which are
        drawn at once, share one weight.
    """

    clip: float = 0.5
    form: Form = "exp"
    detach: bool = True
    over: Over = "tokens"

    def __post_init__(self) -> None:
        if self.clip <= 0:
            raise UserError(f"dynamic weight: the clip {self.clip} must be positive")
        check_choice("dynamic weight", "form", self.form, Form)
        check_choice("dynamic weight", "over", self.over, Over)

    def __call__(
        self, lp: Float[Tensor, "... N"], ref: Float[Tensor, "... N"], layout: TokenLayout | None = None
    ) -> Float[Tensor, "... N"]:
        """The weight of every token, from the conditional log-probabilities of policy and reference.

        Raises ValueError for a mean over scales without the layout that says where they are.
        """
        from t2i_rl.methods.surrogates import unit_lengths
        from t2i_rl.tokenmaps import running_divergence

        if self.over == "scales" and layout is None:
            raise ValueError("a dynamic weight over scales needs the layout of the tokens: pass it")
        lengths = None if self.over == "tokens" or layout is None else unit_lengths("scale", layout)
        return running_divergence(lp.detach() if self.detach else lp, ref, self.clip, self.form, lengths)
