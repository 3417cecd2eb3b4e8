"""What a method is made of, in words: every part with its settings, formula and source."""

import inspect
import sys
import textwrap

from t2i_rl.methods.credit.rule import CreditRule, UniformCredit
from t2i_rl.methods.method import Method

SCALES = {
    "group": "(r - mean) / (std + 1e-4) of the group (arXiv:2402.03300, section 4.1.2)",
    "batch": "(r - mean of the group) / (std of the batch + 1e-4)",
    "none": "r - mean of the group, without a std (Dr. GRPO, arXiv:2503.20783)",
}


def describe(method: Method) -> str:
    """The method's composition in full: every part with its settings, formula and source."""
    objective = method.objective
    parts = [
        ("advantage", SCALES[method.scale] if isinstance(method.scale, str) else _about(method.scale)),
        ("credit", _about(method.credit) + _paper(method.credit)),
        ("surrogate", _about(objective.surrogate)),
        ("ratio", _RATIO[objective.unit] + (", each token's own gradient" if objective.through == "token" else "")),
        ("reference", f"{objective.beta} * {_KL[objective.kl]}" if objective.beta else "no KL"),
        ("divided by", _DENOMINATOR[objective.denominator]),
    ]
    if objective.entropy_bonus:
        parts.append(("entropy", f"{objective.entropy_bonus} * mean entropy, taken from the loss"))
    if objective.nll:
        parts.append(("likelihood", f"{objective.nll} * mean of -log p, added to the loss"))
    if method.dynamic is not None:
        parts.insert(2, ("times", _about(method.dynamic)))
    if method.entropy_reward is not None:
        parts.insert(0, ("reward", _about(method.entropy_reward)))
    if method.filter_zero_std != "off":
        parts.append(("if equal", _FILTER[method.filter_zero_std]))
    if method.source == "current":
        parts.append(("source", "statistics are measured again before every further update of a rollout"))
    if method.credit.statistics:
        parts.append(("measured", ", ".join(method.credit.statistics)))
    lines = [f"{method.name}: {method.summary}"]
    for name, text in parts:
        lines += ["", *textwrap.indent(text, " " * 12).splitlines()]
        lines[-len(text.splitlines())] = f"{name:<12}{text.splitlines()[0]}"
    return "\n".join(lines)


def _about(part: object) -> str:
    """The settings of a part and what its documentation says."""
    return f"{part!r}\n{inspect.getdoc(type(part))}"


def _paper(rule: CreditRule) -> str:
    """What the rule's file says of its paper, and of the released code."""
    return "" if isinstance(rule, UniformCredit) else f"\n\n{inspect.getdoc(sys.modules[type(rule).__module__])}"


_FILTER = {
    "drop": "leave the update, with their KL",
    "resample": "leave the update, and further prompts are sampled in their place",
}


_RATIO = {
    "token": "of the token",
    "row": "geometric mean over a picture row",
    "scale": "geometric mean over a scale",
    "sequence": "geometric mean over the image",
}


_KL = {
    "k1": "(lp - ref)",
    "k2": "(lp - ref)^2 / 2",
    "k3": "(exp(ref - lp) - (ref - lp) - 1), k3 (arXiv:2402.03300, eq. 4)",
    "abs": "|lp - ref|",
    "full": "KL(policy || reference), exact over the vocabulary",
}


_DENOMINATOR = {
    "mask": "the updated tokens of the batch",
    "weight": "the sum of the weights; the KL by the updated tokens",
    "tokens": "all tokens of the batch",
    "limit": "as many tokens as the batch could have",
    "mean-of-images": "the updated tokens of each image, then the images",
    "images": "the images",
}
