"""Rewards by what a run is told to maximise: one text, a specification of names (`rewards.catalogue`).

    shapes                                              one reward, in this process
    geneval:1.0 hpsv2:0.5                               a weighted sum (`rewards.compose`)
    shapes@http://10.0.0.1:8100,http://10.0.0.2:8100    served elsewhere (`rewards.http.client`)
    geneval:1.0@http://10.0.0.1:8100 hpsv2:0.5          both
    my_rewards:redness:0.5 shapes                       one of your own (`rewards.own`), with a weight

A specification is read without torch; what its rewards need is imported when they are built.
"""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rewards.catalogue import REWARDS, RewardEntry, Samples, find
from rewards.errors import RewardError
from rewards.files.noted import note_code, noted_as
from rewards.own import SPELT, entry_point

if TYPE_CHECKING:
    from rewards.http.patience import Patience
    from rewards.reward import Reward

SCORERS = "rewards/requirements-scorers.txt"


@dataclass(frozen=True)
class Term:
    """One reward of a specification. addresses: where it is served; none: in this process."""

    name: str
    weight: float | None
    addresses: tuple[str, ...]

    @property
    def entry(self) -> RewardEntry:
        return find(self.name)


def check_servable(name: str) -> None:
    """Raise RewardError for a name that is none, and for a reward that no server can give."""
    if find(name).comparing:
        raise RewardError(f"{name!r} compares all images of a prompt, of which a server sees some: use it unserved")


def parse(specification: str) -> list[Term]:
    """The terms of a specification, separated by blanks. Raises RewardError for one that cannot be meant."""
    terms = [_term(word) for word in specification.split()]
    if not terms:
        raise RewardError(f"no reward is named: choose one of {', '.join(REWARDS)}")
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise RewardError(f"{specification!r} has {name!r} more than once: name each reward once")
    return terms


def anywhere(specification: str) -> str:
    """The specification without its addresses: where a reward is served does not change it."""
    return " ".join(word.partition("@")[0] for word in specification.split())


def _term(word: str) -> Term:
    """`NAME[:WEIGHT][@ADDRESS,...]`"""
    if word.startswith(("http://", "https://")):
        raise RewardError(f"{word!r} lacks the name of its reward: write NAME@{word}")
    before, at, after = word.partition("@")
    own = re.match(rf"{SPELT}(?=:|$)", before)
    name = own[0] if own and before.partition(":")[0] not in REWARDS else before.partition(":")[0]
    colon, number = before[len(name) :][:1], before[len(name) + 1 :]
    find(name)
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
    if addresses:
        check_servable(name)
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


def build(
    specification: str, device: str = "cpu", patience: "Patience | None" = None, samples: Samples = "pictures"
) -> "Reward":
    """The reward that a specification describes, of such samples; what runs in this process runs on `device`."""
    terms = parse(specification)
    for term in terms:
        if term.entry.scores != samples:
            fitting = ", ".join(name for name, entry in REWARDS.items() if entry.scores == samples)
            raise RewardError(f"{term.name!r} scores {term.entry.scores}, and here are {samples}: choose {fitting}")
    if len(terms) == 1 and terms[0].weight is None:
        return _build(terms[0], device, patience)
    from rewards.compose import Composite, Member

    return Composite(
        {
            term.name: Member(
                _build(term, device, patience),
                1.0 if term.weight is None else term.weight,
                term.entry.range,
            )
            for term in terms
        }
    )


def _build(term: Term, device: str, patience: "Patience | None") -> "Reward":
    if not term.addresses:
        try:
            with noted_as(term.name):
                entry = term.entry
                if term.name not in REWARDS and (own := entry_point(term.name)):
                    note_code(own.module)
                return entry.build(device)
        except ModuleNotFoundError as error:
            mend = f"run `pip install -r {SCORERS}`, or serve it from where that is installed"
            if term.entry.scores == "answers":
                mend = f"run `pip install {error.name}`"
            raise RewardError(f"the reward {term.name!r} needs the package {error.name}: {mend}") from error
    from rewards.http.client import RemoteReward

    return RemoteReward(term.name, term.addresses, patience)
