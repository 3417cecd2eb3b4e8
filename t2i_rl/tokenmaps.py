"""Maps on the token grid: how uncertain, how structured, how alike, how far from the reference each token is.

Pure functions of statistics; what they mean for the update is decided in `t2i_rl.methods.credit`. Values are
float32, tokens are in the layout's order. A next-scale model has several maps: what looks at neighbours stays inside
each.

Answers differ in length: `valid` says which tokens stand before the end of their row, all if not given. What stands
behind never counts, and gets 0.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.policy import TokenLayout

RESOLUTION = 2.0**-24  # of similarities: what float32 resolves just below 1


def local_mean(
    values: Float[Tensor, "... h w"], neighbours: Literal["causal", "box"] = "causal"
) -> Float[Tensor, "... h w"]:
    """Mean over a token and its neighbours; at the borders over those that exist.

    neighbours: `causal`, those that a raster decoder already knows: left, up-left, up and up-right; `box`, all eight,
        for maps whose tokens are drawn at once.
    """

    def total(picture: Tensor) -> Tensor:
        if neighbours == "box":
            return F.pad(picture, (1, 1, 1, 1)).unfold(-2, 3, 1).unfold(-2, 3, 1).sum((-2, -1))
        padded = F.pad(picture, (1, 1, 1, 0))
        above, here = padded[..., :-1, :], padded[..., 1:, :]
        return above[..., :-2] + above[..., 1:-1] + above[..., 2:] + here[..., :-2] + here[..., 1:-1]

    return total(values) / total(torch.ones_like(values))


def gradient(values: Float[Tensor, "... h w"], dim: int) -> Float[Tensor, "... h w"]:
    """Central differences, one-sided at the borders; 0 along an axis of one token."""
    return torch.zeros_like(values) if values.shape[dim] == 1 else torch.gradient(values, dim=dim)[0]


def gradient_magnitude(values: Float[Tensor, "... h w"]) -> Float[Tensor, "... h w"]:
    """Length of the gradient, per token step."""
    return torch.hypot(gradient(values, -1), gradient(values, -2))


def entropy_gradient(
    entropy: Float[Tensor, "... N"],
    layout: TokenLayout,
    smooth: bool = True,
    neighbours: Literal["causal", "box"] = "causal",
) -> Float[Tensor, "... N"]:
    """Magnitude of the entropy's gradient on each map, after the local mean if `smooth`: high at edges of objects.

    arXiv:2509.22485, eq. 4.
    """
    pictures = [local_mean(p, neighbours) if smooth else p for p in layout.split(entropy)]
    return torch.cat([gradient_magnitude(p).flatten(-2) for p in pictures], -1)


def relative_to_map(values: Float[Tensor, "... N"], layout: TokenLayout) -> Float[Tensor, "... N"]:
    """Each value divided by the mean of its map, so that coarse and fine maps compare; 0 where that mean is 0."""
    means = [(p, p.mean((-2, -1), keepdim=True)) for p in layout.split(values)]
    return torch.cat([(p / mean.where(mean > 0, 1)).flatten(-2) for p, mean in means], -1)


def similarity(embeddings: Float[Tensor, "P G N E"]) -> Float[Tensor, "P N"]:
    """Mean cosine between the group's tokens at the same position, over the G (G - 1) ordered pairs.

    Without forming pairs: `(|sum_g u_g|^2 - sum_g |u_g|^2) / (G (G - 1))` for unit vectors u. The norm is floored
    at 1e-8, so a zero vector resembles nothing (0). Raises ValueError for groups of one image.

    Positions at which the same codes meet are equal to the bit, whichever image has which: the sums are float64, and
    the result is rounded to `RESOLUTION`. So ties go by position, not by rounding errors.
    """
    group = embeddings.shape[1]
    if group < 2:
        raise ValueError("a group of one image has no similarity: sample at least 2 images per prompt")

    def of_group(images: Float[Tensor, "G N E"]) -> Float[Tensor, " N"]:
        unit = F.normalize(images.double(), dim=-1, eps=1e-8)
        return (unit.sum(0).square().sum(-1) - unit.square().sum((0, 2))) / (group * (group - 1))

    # Group by group: the copies in float64 are large.
    alike = torch.stack([of_group(images) for images in embeddings])
    return ((alike / RESOLUTION).round() * RESOLUTION).float()


def running_divergence(
    lp: Float[Tensor, "... N"],
    ref: Float[Tensor, "... N"],
    clip: float,
    form: Literal["exp", "linear"] = "exp",
    lengths: Sequence[int] | None = None,
) -> Float[Tensor, "... N"]:
    """How far policy and reference have drifted apart so far, at every token (arXiv:2509.22485, eq. 7: `linear`).

    The mean over the tokens up to and including t of `exp(clip(lp - ref, -clip, clip))` (exp: within
    [exp(-clip), exp(clip)], 1 where they agree) or of the clipped difference itself (linear: 0 where they agree).

    lengths: of the runs of tokens that were drawn at once, such as scales. Then a run counts as one, by its mean, and
        its tokens share the mean over the runs up to and including theirs.
    """
    difference = (lp - ref).clamp(-clip, clip)
    terms = difference.exp() if form == "exp" else difference
    if lengths is not None:
        terms = torch.stack([run.mean(-1) for run in terms.split(list(lengths), -1)], -1)
    means = terms.cumsum(-1) / torch.arange(1, terms.shape[-1] + 1, device=terms.device)
    return means if lengths is None else means.repeat_interleave(torch.tensor(lengths, device=means.device), -1)


def row_mean(values: Float[Tensor, "... N"], valid: Bool[Tensor, "... N"]) -> Float[Tensor, "... 1"]:
    """The mean of each row; 0 of an empty one."""
    return values.masked_fill(~valid, 0).sum(-1, keepdim=True) / row_length(valid)


def row_length(valid: Bool[Tensor, "... N"]) -> Int[Tensor, "... 1"]:
    """How many tokens a row has, at least 1: to divide by."""
    return valid.sum(-1, keepdim=True).clamp(min=1)


def every(values: Tensor, valid: Bool[Tensor, "... N"] | None) -> Bool[Tensor, "... N"]:
    """The valid tokens, if they are not all."""
    return torch.ones_like(values, dtype=torch.bool) if valid is None else valid


def ranks(
    values: Float[Tensor, "... N"],
    ties: Literal["average", "stable"] = "average",
    valid: Bool[Tensor, "... N"] | None = None,
) -> Float[Tensor, "... N"]:
    """Ranks 1..n among the n tokens of a row, the smallest value first.

    Equal values share their mean rank, or go by position (stable).
    """
    valid = every(values, valid)
    values = values.masked_fill(~valid, torch.inf)
    if ties == "stable":
        found = values.argsort(dim=-1, stable=True).argsort(dim=-1).to(values.dtype) + 1
    else:
        ordered = values.sort(dim=-1).values
        below, up_to = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
        found = (below + up_to + 1).to(values.dtype) / 2
    return found.masked_fill(~valid, 0)


def percentile_ranks(
    values: Float[Tensor, "... N"],
    ties: Literal["average", "stable"] = "average",
    valid: Bool[Tensor, "... N"] | None = None,
) -> Float[Tensor, "... N"]:
    """`(rank - 1) / (n - 1)`: the smallest value becomes 0, the median 0.5, the largest 1 (arXiv:2605.29198, eq. 5).

    A row of one token gets 0.
    """
    valid = every(values, valid)
    found = (ranks(values, ties, valid) - 1) / (valid.sum(-1, keepdim=True) - 1).clamp(min=1)
    return found.masked_fill(~valid, 0)


def top_share(
    values: Float[Tensor, "... N"], share: float, valid: Bool[Tensor, "... N"] | None = None
) -> Bool[Tensor, "... N"]:
    """The `ceil(share * n)` largest of the n values of each row; the earliest of equal ones."""
    valid = every(values, valid)
    sizes = (share * valid.sum(-1, keepdim=True).double()).ceil()
    order = values.masked_fill(~valid, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    return (order.argsort(dim=-1) < sizes) & valid
