"""What rewards there are: a record of each, by the name that runs, servers and evaluations call it.

The names are at hand without torch; what a reward needs is imported when it is built. Weights are fetched when first
used. `docs/rewards.md` has all records in a table.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from rewards.errors import RewardError
from rewards.own import as_reward, brought

if TYPE_CHECKING:
    from rewards.geneval.colors import ClipColors
    from rewards.reward import Reward

Loaded = TypeVar("Loaded")
Samples = Literal["pictures", "answers"]


class Weights(NamedTuple):
    """What a reward loads in its own process.

    variable: of the environment, which may name a copy.
    source: what is fetched otherwise: a repository of the hub or, from its address, a file into our cache.
    """

    variable: str
    source: str


def _no_classes() -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class RewardEntry:
    """One reward.

    build: makes it on a device.
    range: what bad and good samples score: a sum of rewards brings it to 0..1.
    weights: what it loads.
    endpoint: the variable that holds the address of the model that it asks; none for a reward that asks nobody.
    classes: the objects that its detector knows; none for a reward that reads no GenEval records.
    scores: what it scores: pictures, or answers in text.
    comparing: whether the score of a sample depends on the others of its prompt in the same call.
    """

    build: Callable[[str], "Reward"]
    range: tuple[float, float] = (0.0, 1.0)
    weights: tuple[Weights, ...] = ()
    endpoint: str = ""
    classes: Callable[[], tuple[str, ...]] = _no_classes
    scores: Samples = "pictures"
    comparing: bool = False


OPENMMLAB = "https://download.openmmlab.com/mmdetection/v2.0/mask2former/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco"
LAION = "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main"
DETECTOR = Weights(
    "T2I_RL_DETECTOR", f"{OPENMMLAB}/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth"
)
FACEBOOK = Weights("T2I_RL_DETECTOR_FACEBOOK", "facebook/mask2former-swin-small-coco-instance")
CLIP = Weights("T2I_RL_CLIP", "timm/vit_large_patch14_clip_224.openai")
HPSV2, HPSV2_0 = Weights("T2I_RL_HPSV2", "xswu/HPSv2"), Weights("T2I_RL_HPSV2_0", "xswu/HPSv2")
PICKSCORE = Weights("T2I_RL_PICKSCORE", "yuvalkirstain/PickScore_v1")
IMAGEREWARD = Weights("T2I_RL_IMAGEREWARD", "THUDM/ImageReward")
BERT = Weights("T2I_RL_IMAGEREWARD", "google-bert/bert-base-uncased")  # in the same folder
CLIPSCORE = Weights("T2I_RL_CLIPSCORE", "timm/vit_base_patch32_clip_224.openai")
AESTHETIC = Weights("T2I_RL_AESTHETIC", f"{LAION}/sac+logos+ava1-l14-linearMSE.pth")


def _local(weights: Weights, load: Callable[[str | None], Loaded]) -> Loaded:
    """What `load` makes of the weights that the environment variable names, or of None: the published ones."""
    try:
        return load(os.environ.get(weights.variable) or None)
    except RewardError as error:
        raise RewardError(f"{error} ({weights.variable} may name a copy)") from error


def _shapes(rules: str, device: str) -> "Reward":
    from rewards.detectors.shapes import PaletteColours, ShapesDetector
    from rewards.geneval.reward import GenEvalReward

    return GenEvalReward(ShapesDetector(), PaletteColours(), rules)


def _colors(device: str) -> "ClipColors":
    from rewards.geneval.colors import OPENAI, ClipColors

    return _local(CLIP, lambda source: ClipColors.load(source or OPENAI, device))


def _geneval(rules: str, device: str, swap_red_blue: bool = False) -> "Reward":
    """With the benchmark's detector. swap_red_blue: show it pictures as the released training servers do."""
    from rewards.detectors.mask2former import Mask2FormerDetector
    from rewards.detectors.openmmlab import OFFICIAL
    from rewards.geneval.reward import GenEvalReward

    detector = _local(
        DETECTOR,
        lambda source: Mask2FormerDetector.load(source or OFFICIAL, device, swap_red_blue=swap_red_blue),
    )
    return GenEvalReward(detector, _colors(device), rules)


def _geneval_facebook(rules: str, device: str) -> "Reward":
    """With another training of the same network: not the benchmark's detector."""
    from rewards.detectors.mask2former import Mask2FormerDetector
    from rewards.geneval.reward import GenEvalReward

    detector = _local(FACEBOOK, lambda source: Mask2FormerDetector.load(source or FACEBOOK.source, device))
    return GenEvalReward(detector, _colors(device), rules)


def _geneval_mmdet(device: str) -> "Reward":
    from rewards.detectors.mmdet import MmdetDetector
    from rewards.detectors.openmmlab import OFFICIAL
    from rewards.geneval.reward import GenEvalReward

    detector = _local(DETECTOR, lambda source: MmdetDetector.load(source or OFFICIAL, device))
    return GenEvalReward(detector, _colors(device))


def _hpsv2(version: Literal["2.0", "2.1"], device: str, antialias: bool = True) -> "Reward":
    from rewards.scorers.hpsv2 import HpsV2

    return _local(HPSV2 if version == "2.1" else HPSV2_0, lambda source: HpsV2.load(version, source, device, antialias))


def _pickscore(device: str) -> "Reward":
    from rewards.scorers.pickscore import PickScore

    return _local(PICKSCORE, lambda source: PickScore.load(source, device))


def _imagereward(device: str) -> "Reward":
    from rewards.scorers.imagereward import ImageReward

    return _local(IMAGEREWARD, lambda source: ImageReward.load(source, device))


def _clipscore(device: str) -> "Reward":
    from rewards.scorers.clipscore import ClipScore

    return _local(CLIPSCORE, lambda source: ClipScore.load(source, device))


def _aesthetic(device: str) -> "Reward":
    from rewards.scorers.aesthetic import Aesthetic

    clip = _colors(device).clip  # the same network
    return _local(AESTHETIC, lambda source: Aesthetic.load(clip, source))


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


def _answers(grader: str, name: str, device: str) -> "Reward":
    from rewards.answers.reward import AnswerReward

    return AnswerReward(grader, name)


def _shapes_classes() -> tuple[str, ...]:
    from rewards.detectors.shapes import ShapesDetector

    return ShapesDetector.classes


def _coco_classes() -> tuple[str, ...]:
    from rewards.detectors.coco import CLASSES

    return CLASSES


def _of_shapes(rules: str) -> RewardEntry:
    return RewardEntry(partial(_shapes, rules), classes=_shapes_classes)


def _of_geneval(build: Callable[[str], "Reward"], detector: Weights = DETECTOR) -> RewardEntry:
    return RewardEntry(build, weights=(detector, CLIP), classes=_coco_classes)


def _of_judge(name: str, variable: str) -> RewardEntry:
    return RewardEntry(partial(_judge, name, variable), (1.0, 5.0), endpoint=variable)


COSINES = (0.2, 0.35)
REWARDS: dict[str, RewardEntry] = {
    "shapes": _of_shapes("partial"),
    "shapes-official": _of_shapes("official"),
    "shapes-partial-released": _of_shapes("partial-released"),
    "geneval": _of_geneval(partial(_geneval, "partial")),
    "geneval-official": _of_geneval(partial(_geneval, "official")),
    "geneval-partial-released": _of_geneval(partial(_geneval, "partial-released")),
    "geneval-partial-released-swapped": _of_geneval(partial(_geneval, "partial-released", swap_red_blue=True)),
    "geneval-facebook": _of_geneval(partial(_geneval_facebook, "partial"), FACEBOOK),
    "geneval-facebook-official": _of_geneval(partial(_geneval_facebook, "official"), FACEBOOK),
    "geneval-mmdet": _of_geneval(_geneval_mmdet),
    "hpsv2": RewardEntry(partial(_hpsv2, "2.1"), COSINES, (HPSV2,)),
    "hpsv2-paper": RewardEntry(partial(_hpsv2, "2.1", antialias=False), COSINES, (HPSV2,)),
    "hpsv2.0": RewardEntry(partial(_hpsv2, "2.0"), COSINES, (HPSV2_0,)),
    "hpsv2.0-paper": RewardEntry(partial(_hpsv2, "2.0", antialias=False), COSINES, (HPSV2_0,)),
    "pickscore": RewardEntry(_pickscore, (15.0, 26.0), (PICKSCORE,)),
    "imagereward": RewardEntry(_imagereward, (-2.0, 2.0), (BERT, IMAGEREWARD)),
    "clipscore": RewardEntry(_clipscore, COSINES, (CLIPSCORE,)),
    "aesthetic": RewardEntry(_aesthetic, (1.0, 10.0), (CLIP, AESTHETIC)),
    "judge": _of_judge("judge", "T2I_RL_JUDGE"),
    "deqa": _of_judge("deqa", "T2I_RL_DEQA"),
    "unifiedreward": _of_judge("unifiedreward", "T2I_RL_UNIFIEDREWARD"),
    "pairwise": RewardEntry(_pairwise, endpoint="T2I_RL_PAIRWISE", comparing=True),
    "math": RewardEntry(partial(_answers, "mathruler", "math"), scores="answers"),
    "math-verify": RewardEntry(partial(_answers, "math-verify", "math-verify"), scores="answers"),
}


def find(name: str) -> RewardEntry:
    """The reward of that name, or one that is brought along (`rewards.own`).

    Raises RewardError that names those that there are.
    """
    if name in REWARDS:
        return REWARDS[name]
    if (found := brought(name)) is None:
        if Path(f"{name}.py").is_file():
            raise RewardError(f"{name!r} is a module, {name}.py: name a function of it, as in {name}:FUNCTION")
        meant = "".join(f"did you mean {one}? " for one in get_close_matches(name, REWARDS, 1))
        raise RewardError(
            f"there is no reward named {name!r}: {meant}choose one of {', '.join(REWARDS)}, or one of your own as "
            "MODULE:NAME"
        )
    return found if isinstance(found, RewardEntry) else RewardEntry(partial(as_reward, found, name))
