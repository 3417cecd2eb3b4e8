"""Methods that would learn nothing, or another thing than they say, under the settings of a run."""

from __future__ import annotations  # with TYPE_CHECKING: the command line asks before torch is imported

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rewards.registry import parse
from t2i_rl.configuration.config import RolloutConfig, TrainConfig
from t2i_rl.errors import UserError
from t2i_rl.methods.advantages import ValueAnchored, VirtualBest
from t2i_rl.methods.baselines import PromptBaseline
from t2i_rl.methods.credit.critical import CriticalTokens, set_sizes
from t2i_rl.methods.credit.position import SlidingWindow
from t2i_rl.methods.credit.product import Product
from t2i_rl.methods.variants import settings_of
from t2i_rl.rollout.names import PLACE_BY_PLACE

if TYPE_CHECKING:
    from models.policy import TokenLayout
    from t2i_rl.methods.credit.rule import CreditRule
    from t2i_rl.methods.method import Method


def check_method(config: TrainConfig, method: Method) -> None:
    """Raise UserError for what the method needs and the run has not, or for what it has in vain."""
    _check_group(config, method)
    _check_parts(config, method)
    _check_level(config, method)
    if config.update.optimizer_steps == 1:
        _check_one_update(method)
    rounds = config.rollout.resample_rounds
    if rounds != RolloutConfig.resample_rounds and method.filter_zero_std != "resample":
        raise UserError(
            f"rollout.resample-rounds has no effect: method {method.name} samples no further prompts; "
            "set filter_zero_std=resample in the method"
        )


def _check_parts(config: TrainConfig, method: Method) -> None:
    cut = 0 < config.rollout.group_batch < config.rollout.group_size
    if cut and (whole := PLACE_BY_PLACE & {*method.credit.statistics}):
        raise UserError(
            f"rollout.group-batch {config.rollout.group_batch} cuts groups, and method {method.name} measures "
            f"{min(whole)} over whole ones: set it to 0"
        )


def _check_group(config: TrainConfig, method: Method) -> None:
    """One image per prompt is enough for a method that compares with the prompt's past."""
    if config.rollout.group_size > 1:
        return
    if method.needs_group:
        raise UserError(
            f"rollout.group-size is 1, and method {method.name} compares the images of a prompt: set at least 2, or "
            "choose a method that needs no group, such as spo"
        )
    if comparing := next((term.name for term in parse(config.reward) if term.entry.comparing), None):
        raise UserError(f"rollout.group-size is 1, and the reward {comparing} compares images: set at least 2")
    scale = method.scale
    assert isinstance(scale, PromptBaseline)
    if scale.baseline == "pooled" and scale.decay == 0:
        raise UserError(
            f"method {method.name} with rollout.group-size 1 and decay 0 compares every image with itself: "
            "set scale.decay above 0, or scale.baseline to past"
        )
    if scale.scale == "batch" and config.rollout.prompts_per_step == 1:
        raise UserError(
            f"method {method.name} divides by the spread of a step's rewards, and one prompt with one image has none: "
            "set rollout.prompts-per-step to at least 2, or scale.scale to prompt"
        )


def _check_level(config: TrainConfig, method: Method) -> None:
    """Methods that look at a reward's level take it to lie in 0..1, unless they are told otherwise."""
    scale, spelt = method.scale, settings_of(method.name)
    name = {VirtualBest: "maximum", ValueAnchored: "anchor"}.get(type(scale))
    if name is None or f"scale.{name}" in spelt:
        return
    known = reward_range(config)
    if known == (0.0, 1.0):
        return
    if known is None:
        said, number = f"between which numbers {' + '.join(config.reward_weights)} lies is not known", "NUMBER"
    else:
        low, high = known
        said = f"the reward {config.reward} lies in about {low:g}..{high:g}"
        number = f"{high if name == 'maximum' else (low + high) / 2:g}"
    meant = "highest reward" if name == "maximum" else "middle of the rewards"
    raise UserError(
        f"method {method.name} takes {getattr(scale, name):g} for the {meant}, and {said}: "
        f"set scale.{name}={number} in the method"
    )


def reward_range(config: TrainConfig) -> tuple[float, float] | None:
    """Between which numbers the reward of a run lies, as far as that is known."""
    terms = parse(config.reward)
    own = {term.name: term.entry.range for term in terms}
    if len(terms) == 1 and terms[0].weight is None:
        total = own[terms[0].name]
    else:  # of shares in 0..1 (`rewards.compose`)
        total = _sum({term.name: 1.0 if term.weight is None else term.weight for term in terms}, {})
    if not config.reward_weights:
        return total
    parts = {**own, "total": total, **{f"{name}strict": (0.0, 1.0) for name in ("", *(f"{name}/" for name in own))}}
    return _sum(config.reward_weights, parts) if config.reward_weights.keys() <= parts.keys() else None


def _sum(weights: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """The least and the most of a weighted sum; what has no range lies in 0..1."""
    ends = [sorted(weight * end for end in ranges.get(name, (0.0, 1.0))) for name, weight in weights.items()]
    return sum(low for low, _ in ends), sum(high for _, high in ends)


def _check_one_update(method: Method) -> None:
    """With one update per rollout the policy is the one that sampled: ratios are 1, and nothing has changed."""
    if method.source == "current":
        raise UserError(
            f"method {method.name}: source=current has no effect with one update per rollout, whose policy is the one "
            "that sampled: set update.updates-per-rollout to at least 2, or update.mini-batches"
        )
    path = next((path for path in settings_of(method.name) if path.startswith("objective.surrogate")), None)
    if path is not None:
        raise UserError(
            f"method {method.name}: {path} has no effect with one update per rollout, where every ratio is 1: "
            "set update.updates-per-rollout to at least 2, or update.mini-batches"
        )


def check_layout(method: Method, layout: TokenLayout) -> None:
    """Raise UserError where the method counts in units that the model's tokens do not have, or chooses no token."""
    rules = method.credit.rules if isinstance(method.credit, Product) else (method.credit,)
    units = {method.objective.unit, *(rule.unit for rule in rules if isinstance(rule, SlidingWindow))}
    if "scale" in units and len(layout.maps) == 1:
        raise UserError(f"method {method.name} counts in scales, but the model draws one map: set the unit to row")
    if "row" in units and all(height == 1 for height, _ in layout.maps):
        raise UserError(f"method {method.name} counts in picture rows, but the model's tokens form none: set the unit")
    if method.dynamic is not None and method.dynamic.over == "scales" and len(layout.maps) == 1:
        raise UserError(
            f"method {method.name} has a running weight over scales, but the model draws one map: "
            "set dynamic.over to tokens"
        )
    for rule in rules:
        _check_sets(method, rule, layout)


def _check_sets(method: Method, rule: CreditRule, layout: TokenLayout) -> None:
    """Of a small image a small share is no token at all; and the complement of all tokens is none."""
    if not isinstance(rule, CriticalTokens):
        return
    sizes = {part: size for part, size in set_sizes(layout, rule.share, rule.ratio).items() if part in rule.parts}
    of = f"of the {layout.tokens} tokens of the model's images"
    if not any(sizes.values()):
        raise UserError(f"method {method.name} chooses none {of}: raise the share")
    if rule.keep == "complement" and rule.sets == "disjoint" and sum(sizes.values()) >= layout.tokens:
        raise UserError(
            f"method {method.name} updates the complement of its sets, which hold all {of}: lower the share"
        )
