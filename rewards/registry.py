"""Rewards by name. The names are at hand without torch; what a reward needs is imported when it is built.

What a run is told to maximise is one text, a specification:

    shapes                                              one reward, in this process
    geneval:1.0 hpsv2:0.5                               a weighted sum (`rewards.compose`)
    shapes@http://10.0.0.1:8100,http://10.0.0.2:8100    served elsewhere (`rewards.http.client`)
    geneval:1.0@http://10.0.0.1:8100 hpsv2:0.5          both

Weights are fetched when first used. An environment variable, named where the reward is built below, may hold the path
of a copy instead; for a judge it holds the endpoint's address. `docs/rewards.md` has them all in a table.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import urlsplit

from rewards.errors import RewardError

if TYPE_CHECKING:
    from rewards.geneval.colors import ClipColors
    from rewards.http.patience import Patience
    from rewards.reward import Reward

Loaded = TypeVar("Loaded")
SCORERS = "rewards/requirements-scorers.txt"


def _local(variable: str, load: Callable[[str | None], Loaded]) -> Loaded:
    """What `load` makes of the weights that the environment variable names, or of None: the published ones."""
    try:
        return load(os.environ.get(variable) or None)
    except RewardError as error:
        raise RewardError(f"{error} ({variable} may name a copy)") from error


def _shapes(rules: str, device: str) -> "Reward":
    from rewards.detectors.shapes import PaletteColours, ShapesDetector
    from rewards.geneval.reward import GenEvalReward

    return GenEvalReward(ShapesDetector(), PaletteColours(), rules)


def _colors(device: str) -> "ClipColors":
    from rewards.geneval.colors import OPENAI, ClipColors

    return _local("T2I_RL_CLIP", lambda source: ClipColors.load(source or OPENAI, device))


def _geneval(rules: str, device: str, swap_red_blue: bool = False) -> "Reward":
    """With the benchmark's detector. swap_red_blue: show it pictures as the released training servers do."""
    from rewards.detectors.mask2former import Mask2FormerDetector
    from rewards.detectors.openmmlab import OFFICIAL
    from rewards.geneval.reward import GenEvalReward

    detector = _local(
        "T2I_RL_DETECTOR",
        lambda source: Mask2FormerDetector.load(source or OFFICIAL, device, swap_red_blue=swap_red_blue),
    )
    return GenEvalReward(detector, _colors(device), rules)


def _geneval_facebook(rules: str, device: str) -> "Reward":
    """With another training of the same network: not the benchmark's detector."""
    from rewards.detectors.mask2former import FACEBOOK, Mask2FormerDetector
    from rewards.geneval.reward import GenEvalReward

    detector = _local("T2I_RL_DETECTOR_FACEBOOK", lambda source: Mask2FormerDetector.load(source or FACEBOOK, device))
    return GenEvalReward(detector, _colors(device), rules)


def _geneval_mmdet(device: str) -> "Reward":
    from rewards.detectors.mmdet import MmdetDetector
    from rewards.detectors.openmmlab import OFFICIAL
    from rewards.geneval.reward import GenEvalReward

    detector = _local("T2I_RL_DETECTOR", lambda source: MmdetDetector.load(source or OFFICIAL, device))
    return GenEvalReward(detector, _colors(device))


def _hpsv2(version: Literal["2.0", "2.1"], variable: str, device: str, antialias: bool = True) -> "Reward":
    from rewards.scorers.hpsv2 import HpsV2

    return _local(variable, lambda source: HpsV2.load(version, source, device, antialias))


def _pickscore(device: str) -> "Reward":
    from rewards.scorers.pickscore import PickScore

    return _local("T2I_RL_PICKSCORE", lambda source: PickScore.load(source, device))


def _imagereward(device: str) -> "Reward":
    from rewards.scorers.imagereward import ImageReward

    return _local("T2I_RL_IMAGEREWARD", lambda source: ImageReward.load(source, device))


def _clipscore(device: str) -> "Reward":
    from rewards.scorers.clipscore import ClipScore

    return _local("T2I_RL_CLIPSCORE", lambda source: ClipScore.load(source, device))


def _aesthetic(device: str) -> "Reward":
    from rewards.scorers.aesthetic import Aesthetic

    clip = _colors(device).clip  # the same network
    return _local("T2I_RL_AESTHETIC", lambda source: Aesthetic.load(clip, source))


def _judge(name: str, variable: str, device: str) -> "Reward":
    from rewards.judges.endpoint import Endpoint
    from rewards.judges.forms import FORMS, read_form
    from rewards.judges.judge import Judge

    endpoint = Endpoint.from_environment(variable)
    own = os.environ.get(f"{variable}_FORM")
    return Judge(name, read_form(Path(own)) if own else FORMS[name], endpoint)


def _pairwise(device: str) -> "Reward":
    from rewards.judges.endpoint import Endpoint
    from rewards.judges.pairwise import PairwiseJudge

    return PairwiseJudge(Endpoint.from_environment("T2I_RL_PAIRWISE"))


# Each builds its reward on a device.
BUILDERS: dict[str, Callable[[str], "Reward"]] = {
    "shapes": partial(_shapes, "partial"),
    "shapes-official": partial(_shapes, "official"),
    "shapes-partial-released": partial(_shapes, "partial-released"),
    "geneval": partial(_geneval, "partial"),
    "geneval-official": partial(_geneval, "official"),
    "geneval-partial-released": partial(_geneval, "partial-released"),
    "geneval-partial-released-swapped": partial(_geneval, "partial-released", swap_red_blue=True),
    "geneval-facebook": partial(_geneval_facebook, "partial"),
    "geneval-facebook-official": partial(_geneval_facebook, "official"),
    "geneval-mmdet": _geneval_mmdet,
    "hpsv2": partial(_hpsv2, "2.1", "T2I_RL_HPSV2"),
    "hpsv2-paper": partial(_hpsv2, "2.1", "T2I_RL_HPSV2", antialias=False),
    "hpsv2.0": partial(_hpsv2, "2.0", "T2I_RL_HPSV2_0"),
    "hpsv2.0-paper": partial(_hpsv2, "2.0", "T2I_RL_HPSV2_0", antialias=False),
    "pickscore": _pickscore,
    "imagereward": _imagereward,
    "clipscore": _clipscore,
    "aesthetic": _aesthetic,
    "judge": partial(_judge, "judge", "T2I_RL_JUDGE"),
    "deqa": partial(_judge, "deqa", "T2I_RL_DEQA"),
    "unifiedreward": partial(_judge, "unifiedreward", "T2I_RL_UNIFIEDREWARD"),
    "pairwise": _pairwise,
}
# Those that compare the images of a prompt, so that the score of one depends on the others in the same call.
COMPARING = ("pairwise",)

# What bad and good images score, for rewards whose scores do not lie in 0..1: a sum of rewards puts them there.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("hpsv2", "hpsv2-paper", "hpsv2.0", "hpsv2.0-paper", "clipscore"), (0.2, 0.35)),
    "pickscore": (15.0, 26.0),
    "imagereward": (-2.0, 2.0),
    "aesthetic": (1.0, 10.0),
    **dict.fromkeys(("judge", "deqa", "unifiedreward"), (1.0, 5.0)),
}


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


def check_servable(name: str) -> None:
    """Raise RewardError for a name that is none, and for a reward that needs all images of a prompt at once."""
    check_name(name)
    if name in COMPARING:
        raise RewardError(f"{name!r} compares all images of a prompt, of which a server sees some: use it unserved")


def classes(name: str) -> tuple[str, ...]:
    """The objects that the reward's detector knows; none for a reward that reads no GenEval records."""
    if name.startswith("shapes"):
        from rewards.detectors.shapes import ShapesDetector

        return ShapesDetector.classes
    if name.startswith("geneval"):
        from rewards.detectors.coco import CLASSES

        return CLASSES
    return ()


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


def build(specification: str, device: str = "cpu", patience: "Patience | None" = None) -> "Reward":
    """The reward that a specification describes; what runs in this process runs on `device`."""
    terms = parse(specification)
    if len(terms) == 1 and terms[0].weight is None:
        return _build(terms[0], device, patience)
    from rewards.compose import Composite, Member

    return Composite(
        {
            term.name: Member(
                _build(term, device, patience),
                1.0 if term.weight is None else term.weight,
                RANGES.get(term.name, (0.0, 1.0)),
            )
            for term in terms
        }
    )


def _build(term: Term, device: str, patience: "Patience | None") -> "Reward":
    if not term.addresses:
        try:
            return BUILDERS[term.name](device)
        except ModuleNotFoundError as error:
            raise RewardError(
                f"the reward {term.name!r} needs the package {error.name}: run `pip install -r {SCORERS}`, or serve it "
                "from where that is installed"
            ) from error
    from rewards.http.client import RemoteReward

    return RemoteReward(term.name, term.addresses, patience)
