"""Several rules at once.

Credits compose by product: a token is updated if every rule updates it, its weight and its KL factor are the products
of theirs. What divides the sum is the objective's denominator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float

from t2i_rl.errors import UserError
from t2i_rl.methods.credit.rule import UNKNOWN, Context, CreditRule, Embedding, TokenCredit

if TYPE_CHECKING:
    from torch import Tensor

    from models.policy import TokenLayout
    from t2i_rl.rollout.groups import Rollout


@dataclass(frozen=True)
class Product:
    """The product of rules. Refuses rules that could not see the same rollout alike."""

    rules: tuple[CreditRule, ...]

    def __post_init__(self) -> None:
        names = [type(rule).__name__ for rule in self.rules]
        if len(names) < 2 or len({*names}) < len(names):
            raise UserError(f"credit: a product needs two or more different rules, not {', '.join(names) or 'none'}")
        kinds = {rule.embeddings for rule in self.rules} - {None}
        if len(kinds) > 1:
            raise UserError(f"credit: {' and '.join(names)} look at different token embeddings: choose the same kind")

    @property
    def statistics(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for rule in self.rules for name in rule.statistics))

    @property
    def compares(self) -> bool:
        return any(rule.compares for rule in self.rules)

    @property
    def places(self) -> bool:
        return any(rule.places for rule in self.rules)

    @property
    def embeddings(self) -> Embedding | None:
        return next((rule.embeddings for rule in self.rules if rule.embeddings), None)

    def __call__(
        self,
        rollout: Rollout,
        embeddings: Float[Tensor, "P G N E"] | None,
        layout: TokenLayout,
        context: Context = UNKNOWN,
    ) -> TokenCredit:
        first, *others = (rule(rollout, embeddings, layout, context) for rule in self.rules)
        for other in others:
            first = times(first, other)
        return first


def times(left: TokenCredit, right: TokenCredit) -> TokenCredit:
    """The product of two credits; at most one may hold advantages."""
    if left.advantages is not None and right.advantages is not None:
        raise ValueError("two rules of a product set the advantages of the tokens: keep one of them")
    both = None if left.kl is None or right.kl is None else left.kl * right.kl
    return TokenCredit(
        left.weight * right.weight,
        left.mask & right.mask,
        {**left.classes, **right.classes},
        both if both is not None else (right.kl if left.kl is None else left.kl),
        right.advantages if left.advantages is None else left.advantages,
    )
