"""Rewards by name. The names are at hand without torch; what a reward needs is imported when it is built.

What a run is told to maximise is one text, a specification:

    shapes                                              one reward, in this process
    geneval:1.0 hpsv2:0.5                               a weighted sum (`rewards.compose`)
    shapes@http://10.0.0.1:8100,http://10.0.0.2:8100    served elsewhere (`rewards.client`)
    geneval:1.0@http://10.0.0.1:8100 hpsv2:0.5          both
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rewards.errors import RewardError

if TYPE_CHECKING:
    from rewards.reward import Reward


def _shapes(rules: str, device: str) -> "Reward":
    from rewards.detectors.shapes import PaletteColours, ShapesDetector
    from rewards.geneval_reward import GenEvalReward

    return GenEvalReward(ShapesDetector(), PaletteColours(), rules)


# Each builds its reward on a device.
BUILDERS: dict[str, Callable[[str], "Reward"]] = {
    "shapes": partial(_shapes, "partial"),
    "shapes-official": partial(_shapes, "official"),
    "shapes-partial-released": partial(_shapes, "partial-released"),
}

# What bad and good images score, for rewards whose scores do not lie in 0..1: a sum of rewards puts them there.
RANGES: dict[str, tuple[float, float]] = {}


@dataclass(frozen=True)
class Term:
    """One reward of a specification. addresses: where it is served; none: in this process."""

    name: str
    weight: float | None
    addresses: tuple[str, ...]


def check_name(name: str) -> None:
    """Raise RewardError unless there is a reward of that name."""
    if name not in BUILDERS:
        raise RewardError(f"there is no reward named {name!r}: choose one of {', '.join(BUILDERS)}")


def parse(specification: str) -> list[Term]:
    """The terms of a specification, separated by blanks. Raises RewardError for one that cannot be meant."""
    terms = [_term(word) for word in specification.split()]
    if not terms:
        raise RewardError(f"no reward is named: choose one of {', '.join(BUILDERS)}")
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise RewardError(f"{specification!r} has {name!r} more than once: name each reward once")
    return terms


def _term(word: str) -> Term:
    """`NAME[:WEIGHT][@ADDRESS,...]`"""
    if word.startswith(("http://", "https://")):
        raise RewardError(f"{word!r} lacks the name of its reward: write NAME@{word}")
    before, at, after = word.partition("@")
    name, colon, number = before.partition(":")
    check_name(name)
    weight = None
    if colon:
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise RewardError(f"the weight {number!r} of {name!r} is no number: write it as in {name}:0.5")
    addresses = tuple(address.rstrip("/") for address in after.split(",")) if at else ()
    for address in addresses:
        _check_address(address, word)
    return Term(name, weight, addresses)


def _check_address(address: str, word: str) -> None:
    try:
        parts = urlsplit(address)
        holds = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        plain = not (parts.path or parts.query or parts.fragment or parts.username)
    except ValueError:  # a port that is no number
        holds = plain = False
    if not (holds and plain):
        raise RewardError(f"{address!r} in {word!r} is no address of a server: write it as http://HOST:PORT")


def build(specification: str, device: str = "cpu") -> "Reward":
    """The reward that a specification describes; what runs in this process runs on `device`."""
    terms = parse(specification)
    if len(terms) == 1 and terms[0].weight is None:
        return _build(terms[0], device)
    from rewards.compose import Composite, Member

    return Composite(
        {
            term.name: Member(
                _build(term, device), 1.0 if term.weight is None else term.weight, RANGES.get(term.name, (0.0, 1.0))
            )
            for term in terms
        }
    )


def _build(term: Term, device: str) -> "Reward":
    if not term.addresses:
        return BUILDERS[term.name](device)
    from rewards.client import RemoteReward

    return RemoteReward(term.name, term.addresses)
