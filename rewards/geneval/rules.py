"""The GenEval rules: does a picture hold the objects, counts, colours and positions its prompt names?

Three rule sets over the same detections, each `(metadata, kept objects, colours, options) -> Verdict`:

- `official`: the benchmark's 0/1 verdict (Ghosh et al. 2023, "GenEval", its `evaluate_images.py`).
- `partial`: a fraction for training, with exact counts; `exclude` honoured, in 0..1.
- `partial-released`: the fraction that Flow-GRPO's training server returns, to the letter.

The rules take any detector and colour classifier (`rewards.detectors`); `rewards.geneval.reward` joins them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from rewards.detectors.base import Detection

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

Objects = Mapping[str, Sequence[Detection]]  # by class name, best-scored first once kept
ColorsOf = Callable[[str, Sequence[Detection]], list[str]]  # asked only for entries that name a colour


@dataclass(frozen=True)
class GenEvalOptions:
    """The thresholds of the reference implementation.

    threshold: detections must score strictly more than this.
    counting_threshold: the same for prompts of the tag `counting`.
    max_objects: the best-scored detections kept per class.
    max_overlap: IoU from which the lower-scored of two boxes is dropped; 1 switches it off.
    position_threshold: share of the summed box sides by which centres must be apart.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_threshold: float = 0.1


@dataclass(frozen=True)
class Verdict:
    """What a rule set says of one image.

    correct: whether everything that the rule set looks at holds.
    score: in the rule set's own range.
    reason: one line per failure.
    fractions: what a partial score is the mean of.
    """

    correct: bool
    score: float
    reason: str = ""
    fractions: tuple[float, ...] = ()


def relative_position(a: Float[ndarray, "4"], b: Float[ndarray, "4"], threshold: float = 0.1) -> list[str]:
    """The relations in which box `a` stands to box `b`, horizontal first: none, one or two.

    Centres must be apart by more than `threshold` of the summed sides; what remains of the offset is
    measured against the length of the whole offset (y grows downwards).
    """
    boxes = np.stack([a, b]).reshape(2, 2, 2)
    (centre_a, centre_b), (side_a, side_b) = boxes.mean(1), np.abs(np.diff(boxes, axis=1)[:, 0])
    offset = centre_a - centre_b
    revised = np.maximum(np.abs(offset) - threshold * (side_a + side_b), 0) * np.sign(offset)
    if np.all(np.abs(revised) < 1e-3):
        return []
    dx, dy = revised / np.linalg.norm(offset)
    found = ((dx < -0.5, "left of"), (dx > 0.5, "right of"), (dy < -0.5, "above"), (dy > 0.5, "below"))
    return [relation for holds, relation in found if holds]


def iou(a: Float[ndarray, "4"], b: Float[ndarray, "4"]) -> float:
    """Overlap of two boxes in whole pixels: sides count their last pixel (the "+1" convention)."""

    def area(box: ndarray) -> float:
        return float(max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0))

    common = area(np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:4], b[2:4])]))
    union = area(a) + area(b) - common
    return common / union if union else 0.0


def keep(detections: Sequence[Detection], tag: str, options: GenEvalOptions) -> list[Detection]:
    """The detections of one class that count, best first (equal scores: in the detector's order)."""
    # In float32, as detectors score: a score of exactly the threshold does not pass, though float32(0.3) > 0.3.
    threshold = np.float32(options.counting_threshold if tag == "counting" else options.threshold)
    ordered = sorted((d for d in detections if np.float32(d.score) > threshold), key=lambda d: -d.score)
    ordered = ordered[: options.max_objects]
    if options.max_overlap == 1.0:
        return ordered
    kept: list[Detection] = []
    for candidate in ordered:
        if all(iou(candidate.box, other.box) < options.max_overlap for other in kept):
            kept.append(candidate)
    return kept


def keep_all(detections: Objects, tag: str, options: GenEvalOptions) -> dict[str, list[Detection]]:
    """`keep` for every class; classes left empty are absent."""
    kept = {name: keep(found, tag, options) for name, found in detections.items()}
    return {name: found for name, found in kept.items() if found}


@dataclass(frozen=True)
class _Entry:
    """What one `include` entry came to: its objects, a fraction for each requirement judged, and why it fails."""

    objects: Sequence[Detection]
    fractions: tuple[float, ...]
    reason: str = ""
    misplaced: bool = False  # the relation was looked at and does not hold


def _closeness(wanted: int, found: int) -> float:
    return 1 - abs(wanted - found) / wanted


def _judge(
    item: Mapping[str, Any],
    chosen: Sequence[Detection],
    earlier: Sequence[_Entry],
    colors_of: ColorsOf,
    position_threshold: float,
    comparison: str,
) -> _Entry:
    """Judge count, colour and position in this order; what comes after a failure is not looked at."""
    name, count = item["class"], item["count"]
    fractions = [_closeness(count, len(chosen))]
    if len(chosen) != count:
        unseen = [0.0] if "color" in item or "position" in item else []
        return _Entry(chosen, (*fractions, *unseen), f"expected {name}{comparison}{count}, found {len(chosen)}")
    if "color" in item:
        color, colors = item["color"], colors_of(name, chosen)
        hits = colors.count(color)
        fractions.append(_closeness(count, hits))
        if hits != count:
            present = ", ".join(f"{colors.count(other)} {other}" for other in COLORS if other in colors)
            reason = f"expected {color} {name}>={count}, found {hits} {color}; and {present}"
            return _Entry(chosen, tuple(fractions), reason)
    if "position" in item:
        relation, index = item["position"]
        target = earlier[index]
        if target.reason:
            return _Entry(chosen, (*fractions, 0.0), f"no target for {name} to be {relation}")
        for one, other in product(chosen, target.objects):
            found = relative_position(one.box, other.box, position_threshold)
            if relation not in found:
                reason = f"expected {name} {relation} target, found {' and '.join(found)} target"
                return _Entry(chosen, (*fractions, 0.0), reason, misplaced=True)
        fractions.append(1.0)
    return _Entry(chosen, tuple(fractions))


def _judge_all(
    metadata: Mapping[str, Any], objects: Objects, colors_of: ColorsOf, options: GenEvalOptions, exact: bool
) -> list[_Entry]:
    """Every `include` entry in turn: of all its objects if counts are `exact`, else of the best-scored `count`."""
    entries: list[_Entry] = []
    for item in metadata.get("include", []):
        found = objects.get(item["class"], [])
        chosen, comparison = (found, "==") if exact else (found[: item["count"]], ">=")
        entries.append(_judge(item, chosen, entries, colors_of, options.position_threshold, comparison))
    return entries


def color_questions(metadata: Mapping[str, Any], objects: Objects) -> dict[str, Sequence[Detection]]:
    """By class, the objects whose colours any of the rule sets may ask for: the best-scored of that class.

    So the colours of a whole batch can be asked in one call before the rules are applied.
    """
    asked: dict[str, Sequence[Detection]] = {}
    for item in metadata.get("include", []):
        found = objects.get(item["class"], [])
        if "color" in item and len(asked.get(item["class"], [])) < item["count"] <= len(found):
            asked[item["class"]] = found[: item["count"]]
    return asked


def _excluded(metadata: Mapping[str, Any], objects: Objects) -> list[str]:
    """A reason for each violated `exclude` entry: as many objects as it names, or more."""
    counted = [
        (item["class"], item["count"], len(objects.get(item["class"], []))) for item in metadata.get("exclude", [])
    ]
    return [f"expected {name}<{limit}, found {found}" for name, limit, found in counted if found >= limit]


def official(metadata: Mapping[str, Any], objects: Objects, colors_of: ColorsOf, options: GenEvalOptions) -> Verdict:
    """The benchmark's verdict, scored 0 or 1.

    Extra objects are allowed except where `exclude` forbids them; colour and position look at the `count`
    best-scored objects only.
    """
    entries = _judge_all(metadata, objects, colors_of, options, exact=False)
    reasons = [entry.reason for entry in entries if entry.reason] + _excluded(metadata, objects)
    return Verdict(not reasons, float(not reasons), "\n".join(reasons))


def partial(metadata: Mapping[str, Any], objects: Objects, colors_of: ColorsOf, options: GenEvalOptions) -> Verdict:
    """A fraction in 0..1 for training: 1 exactly where everything holds, counts to the number.

    The mean over the requirements judged: `1 - |count - found| / count` for a count and for a colour, but
    never below 0; 0 or 1 for a position; one 0 for a colour or position whose count is wrong; a further 0
    for each violated `exclude` entry (a respected one adds nothing, else an empty picture would earn it).
    """
    entries = _judge_all(metadata, objects, colors_of, options, exact=True)
    excluded = _excluded(metadata, objects)
    reasons = [entry.reason for entry in entries if entry.reason] + excluded
    fractions = [max(fraction, 0.0) for entry in entries for fraction in entry.fractions] + [0.0] * len(excluded)
    score = sum(fractions) / len(fractions) if fractions else 1.0
    return Verdict(not reasons, score, "\n".join(reasons), tuple(fractions))


def partial_released(
    metadata: Mapping[str, Any], objects: Objects, colors_of: ColorsOf, options: GenEvalOptions
) -> Verdict:
    """The fraction of Flow-GRPO's reward server, defects included; `correct` is its `strict_correct`.

    Differences from `partial`: many extra objects make it negative; a relation that does not hold adds a 1
    after its 0; `exclude` is ignored; without `include` the score is 0.
    """
    entries = _judge_all(metadata, objects, colors_of, options, exact=True)
    reasons = [entry.reason for entry in entries if entry.reason]
    fractions = [fraction for entry in entries for fraction in (*entry.fractions, *([1.0] if entry.misplaced else []))]
    score = sum(fractions) / len(fractions) if fractions else 0.0
    return Verdict(not reasons, score, "\n".join(reasons), tuple(fractions))


RULES: dict[str, Callable[[Mapping[str, Any], Objects, ColorsOf, GenEvalOptions], Verdict]] = {
    "official": official,
    "partial": partial,
    "partial-released": partial_released,
}


@dataclass(frozen=True)
class Summary:
    """GenEval's figures, all in 0..1 but the counts.

    per_tag, images_per_tag: share of correct images of each tag, and how many images it has.
    overall: unweighted mean of `per_tag`, the figure that papers report.
    image_accuracy: share of correct images.
    prompt_accuracy: share of prompts with at least one correct image.
    """

    images: int
    prompts: int
    per_tag: Mapping[str, float]
    images_per_tag: Mapping[str, int]
    overall: float
    image_accuracy: float
    prompt_accuracy: float


def summarise(rows: Sequence[Mapping[str, Any]]) -> Summary:
    """Aggregate one row per image, each with its `tag`, `correct` and `metadata` (one JSON text per prompt).

    Only tags that occur count. Raises ValueError without rows.
    """
    if not rows:
        raise ValueError("there are no images to summarise")
    by_tag: dict[str, list[bool]] = {}
    by_prompt: dict[str, list[bool]] = {}
    for row in rows:
        by_tag.setdefault(row["tag"], []).append(row["correct"])
        by_prompt.setdefault(row["metadata"], []).append(row["correct"])
    per_tag = {tag: fmean(correct) for tag, correct in by_tag.items()}
    return Summary(
        images=len(rows),
        prompts=len(by_prompt),
        per_tag=per_tag,
        images_per_tag={tag: len(correct) for tag, correct in by_tag.items()},
        overall=fmean(per_tag.values()),
        image_accuracy=fmean(row["correct"] for row in rows),
        prompt_accuracy=fmean(any(correct) for correct in by_prompt.values()),
    )
