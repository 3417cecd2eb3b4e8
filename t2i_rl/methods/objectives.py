"""The loss of an update: a surrogate with per-token credit, and the KL to the reference.

    loss = sum_it m_it * w_it * surrogate_it / D_policy
         + sum_it m_it * (beta * c_it * kl_it - entropy_bonus * entropy_it - nll * lp_it) / D_kl

over images i and tokens t, with the mask m, the weight w and the KL factor c (1 if not given) of
`t2i_rl.methods.credit`, and the surrogate of the ratio and the advantage (`t2i_rl.methods.surrogates`). Clipped
surrogate, group advantages and the k3 estimate of the KL are GRPO (arXiv:2402.03300, eqs. 3 and 4). With their weights
and masks it is eq. 8 of arXiv:2605.29198 (`cfg`) and eq. 8 of arXiv:2509.22485 (`critical`).

Denominators are those of the whole update batch, taken once: the loss of some images is their part of the whole, so
micro-batches of any split add up. Log-probabilities are float32, of the distribution that the log-prob mode names
(`t2i_rl.rollout.log_probs`).
"""

from __future__ import annotations  # with TYPE_CHECKING: the command line reads Objective without importing torch

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from jaxtyping import Bool, Float

from t2i_rl.errors import UserError
from t2i_rl.methods.kl import KL, kl_terms
from t2i_rl.methods.surrogates import Clipped, Dhpo, LogRatios, Surrogate, Unit, log_ratio, unit_lengths, unit_log_ratio
from t2i_rl.settings import check_choice

if TYPE_CHECKING:
    from torch import Tensor

    from models.policy import TokenLayout
    from t2i_rl.methods.credit.rule import TokenCredit
    from t2i_rl.parallel.ranks import Ranks
    from t2i_rl.rollout.log_probs import Replay

Denominator = Literal["mask", "weight", "tokens", "limit", "mean-of-images", "images"]
Through = Literal["unit", "token"]


@dataclass(frozen=True)
class Objective:
    """How far a token's probability may move, and what pulls it back.

    surrogate: the loss of a token.
    unit: whose ratio it looks at: the token's, or the geometric mean over a picture row, a scale, the sequence.
    through: where a unit's gradient goes: `unit`, through the mean; `token`, the mean's value with each token's own
        gradient (GSPO-token, arXiv:2507.18071, eq. 14).
    beta: factor of the KL to the reference; 0 leaves it out.
    kl: the form of the KL (`kl_terms`).
    denominator: what divides the policy term. `mask`: the updated tokens; `weight`: the sum of their weights;
        `tokens`: all tokens; `limit`: as many as there could be, so that an answer's length does not matter; of images
        the same; `mean-of-images`: the updated tokens of each image, then the images; `images`: the images
        (with the sequence as unit: LUSPO). The KL is divided by the same, but for `weight` by the updated tokens.
    entropy_bonus: factor of the updated tokens' mean entropy, which is taken from the loss; negative: a penalty.
    nll: factor of the updated tokens' mean of -log p, which is added to the loss. Called an entropy penalty where it is
        from (VPPO's release): its gradient is 0 on average while the policy is the one that sampled, and afterwards it
        pulls back to that one.
    """

    surrogate: Surrogate = field(default_factory=Clipped)
    unit: Unit = "token"
    through: Through = "unit"
    beta: float = 0.0
    kl: KL = "k3"
    denominator: Denominator = "mask"
    entropy_bonus: float = 0.0
    nll: float = 0.0

    def __post_init__(self) -> None:
        check_choice("objective", "unit", self.unit, Unit)
        check_choice("objective", "through", self.through, Through)
        check_choice("objective", "kl", self.kl, KL)
        check_choice("objective", "denominator", self.denominator, Denominator)
        if self.beta < 0:
            raise UserError(f"objective: beta {self.beta} must not be negative")
        if self.kl != "k3" and not self.beta:
            raise UserError(f"objective: the KL form {self.kl} has no effect while beta is 0: set beta")
        if self.unit == "token" and (self.through == "token" or isinstance(self.surrogate, Dhpo)):
            raise UserError("objective: the unit is the token, so nothing can be mixed with it: set unit to sequence")


@dataclass(frozen=True)
class Denominators:
    """What the sums over a whole update batch are divided by.

    policy, kl: of the two terms of the loss.
    selected, tokens: the numbers of updated and of all tokens, for the metrics.
    """

    policy: Float[Tensor, ""]
    kl: Float[Tensor, ""]
    selected: Float[Tensor, ""]
    tokens: Float[Tensor, ""]

    def over(self, ranks: Ranks) -> Denominators:
        """Those of the batch that the processes share; these are of this one's part."""
        import torch

        return Denominators(*ranks.sum(torch.stack([self.policy, self.kl, self.selected, self.tokens])))


@dataclass(frozen=True)
class ImageRows:
    """What is known of some images before the current policy is asked.

    advantages: of the images, or token by token.
    weight: factor of the policy term; may carry gradient (the undetached running weight of
    `t2i_rl.methods.credit.critical`).
    mask: the tokens that are updated.
    old: log-probabilities under the policy that sampled; None: the policy itself, one update per rollout.
    ref: those under the reference; None: there is none, and beta must be 0.
    kl_weight: factor of the KL at every token.
    """

    advantages: Float[Tensor, "*images"] | Float[Tensor, "*images N"]
    weight: Float[Tensor, "*images N"]
    mask: Bool[Tensor, "*images N"]
    old: Float[Tensor, "*images N"] | None = None
    ref: Float[Tensor, "*images N"] | None = None
    kl_weight: Float[Tensor, "*images N"] | None = None

    @classmethod
    def of(
        cls,
        credit: TokenCredit,
        advantages: Float[Tensor, "P G"],
        old: Float[Tensor, "R N"] | None,
        ref: Float[Tensor, "P G N"] | None,
    ) -> ImageRows:
        """The images of all groups, prompt-major."""
        earned = advantages if credit.advantages is None else credit.advantages
        kl_weight, ref = (None if value is None else value.flatten(0, 1) for value in (credit.kl, ref))
        return cls(earned.flatten(0, 1), credit.weight.flatten(0, 1), credit.mask.flatten(0, 1), old, ref, kl_weight)

    def take(self, rows: slice) -> ImageRows:
        """Only these rows."""
        optional = (None if value is None else value[rows] for value in (self.old, self.ref, self.kl_weight))
        return ImageRows(self.advantages[rows], self.weight[rows], self.mask[rows], *optional)


@dataclass(frozen=True)
class Loss:
    """The part that some images have in the loss of the batch, and, detached, in its metrics.

    value: what to differentiate.
    policy: the policy term of the loss.
    kl, kl_updated: mean KL term over all and over the updated tokens, in nats, before beta and the KL factor; None
        where there is no reference.
    clip_fraction: share of the updated tokens at which a bound of the surrogate is active.
    """

    value: Float[Tensor, ""]
    policy: Float[Tensor, ""]
    kl: Float[Tensor, ""] | None
    kl_updated: Float[Tensor, ""] | None
    clip_fraction: Float[Tensor, ""]


def denominators(
    credit: TokenCredit, objective: Objective, valid: Bool[Tensor, "P G N"] | None = None, limit: int | None = None
) -> Denominators:
    """The denominators of an update batch, from the credit of all its tokens.

    valid: the tokens before the end of their row, if not all.
    limit: how many a row may have, if not the N that are there.
    """
    mask = credit.mask
    selected = mask.sum().float()
    images = selected.new_tensor(mask.numel() // mask.shape[-1])
    tokens = images * mask.shape[-1] if valid is None else valid.sum().float()
    if objective.denominator == "tokens":
        return Denominators(tokens, tokens, selected, tokens)
    if objective.denominator == "limit":
        most = images * (limit or mask.shape[-1])
        return Denominators(most, most, selected, tokens)
    if objective.denominator in ("mean-of-images", "images"):
        return Denominators(images, images, selected, tokens)
    weight = (credit.weight * credit.mask).sum()
    return Denominators(weight if objective.denominator == "weight" else selected, selected, selected, tokens)


def policy_loss(
    replay: Replay,
    images: ImageRows,
    objective: Objective,
    denominators: Denominators,
    layout: TokenLayout | None = None,
) -> Loss:
    """The images' part of the loss of the batch to which the denominators belong.

    layout: where picture rows and scales lie, for the units of those names.

    No selected token gives a loss of 0 that is still connected to lp.
    """
    lp, mask = replay.lp, images.mask
    if objective.beta and images.ref is None and replay.kl is None:
        raise ValueError(f"beta is {objective.beta}: the KL needs the reference's log-probabilities")
    by_token = images.advantages if images.advantages.ndim == lp.ndim else images.advantages[..., None]
    terms = objective.surrogate(log_ratios(lp, images.old, mask, objective, layout), by_token)
    # Images are never split, so each knows its own share of the mean.
    share = mask / mask.sum(-1, keepdim=True).clamp(min=1) if objective.denominator == "mean-of-images" else mask
    policy = mean(terms.loss * images.weight * share, denominators.policy)
    value, kl, kl_updated = policy, None, None
    divergence = kl_terms(lp, images.ref, objective.kl) if replay.kl is None and images.ref is not None else replay.kl
    if divergence is not None:
        factor = share if images.kl_weight is None else share * images.kl_weight
        value = policy + objective.beta * mean(divergence * factor, denominators.kl)
        kl = mean(divergence.detach(), denominators.tokens)
        kl_updated = mean(divergence.detach() * mask, denominators.selected)
    if objective.entropy_bonus:
        if replay.entropy is None:
            raise ValueError(f"the entropy bonus is {objective.entropy_bonus}: pass the entropy of the tokens")
        value = value - objective.entropy_bonus * mean(replay.entropy * share, denominators.kl)
    if objective.nll:
        value = value - objective.nll * mean(lp * share, denominators.kl)
    return Loss(
        value=value,
        policy=policy.detach(),
        kl=kl,
        kl_updated=kl_updated,
        clip_fraction=mean(terms.clipped & mask, denominators.selected),
    )


def log_ratios(
    lp: Float[Tensor, "*images N"],
    old: Float[Tensor, "*images N"] | None,
    mask: Bool[Tensor, "*images N"],
    objective: Objective,
    layout: TokenLayout | None,
) -> LogRatios:
    """The log-ratios that the objective's surrogate looks at."""
    by_token = by_unit = log_ratio(lp, old)
    if objective.unit != "token":
        if objective.unit == "sequence":
            lengths = [lp.shape[-1]]
        elif layout is None:
            raise ValueError(f"the ratio of a {objective.unit} needs the layout of the tokens: pass it")
        else:
            lengths = unit_lengths(objective.unit, layout)
        by_unit = unit_log_ratio(by_token, mask, lengths)
        if objective.through == "token":
            by_unit = by_unit.detach() + lp - lp.detach()
    return LogRatios(by_unit, by_token, lp, lp.detach() if old is None else old)


def mean(values: Tensor, denominator: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The sum of the values over the denominator; where that is 0, so are the values, and the mean is 0."""
    return values.sum() / denominator.where(denominator > 0, 1)
