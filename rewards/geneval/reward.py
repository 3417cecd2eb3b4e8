"""GenEval as a reward: a detector, a colour classifier and a rule set score each image."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from jaxtyping import UInt8
from numpy import ndarray

from rewards.detectors.base import ColorClassifier, Detection, Detector, Subject
from rewards.errors import RewardError
from rewards.geneval.rules import (
    COLORS,
    RELATIONS,
    RULES,
    TAGS,
    ColorsOf,
    GenEvalOptions,
    Objects,
    color_questions,
    keep_all,
    official,
)
from rewards.reward import Scores

MOST = 64  # entries of a list; each is compared with the objects of an earlier one


def check_metadata(prompt: str, metadata: Mapping[str, Any], classes: Sequence[str] = ()) -> None:
    """Raise a `RewardError` that names the prompt and the key unless `metadata` is a GenEval record.

    That is: a `tag`, an `include` list of one or more `{class, count}` with an optional `color` and an
    optional `position` (`[relation, index of an earlier entry]`), and an optional `exclude` list of
    `{class, count}`.

    classes: what the detector knows, if the record's classes have to be among them: others are never found.
    """

    def demand(holds: bool, complaint: str) -> None:
        if not holds:
            raise RewardError(f'prompt "{prompt}": {complaint}')

    for key in ("tag", "include"):
        demand(key in metadata, f"the metadata lack the key {key!r}: GenEval needs a tag and a list of objects")
    tag, lists = metadata["tag"], {"include": metadata["include"], "exclude": metadata.get("exclude", [])}
    demand(tag in TAGS, f"unknown tag {tag!r}: choose one of {', '.join(TAGS)}")
    for key, items in lists.items():
        demand(isinstance(items, Sequence), f"{key!r} is {items!r}: give a list of objects")
        demand(len(items) <= MOST, f"{key!r} has {len(items)} entries: at most {MOST} are judged")
    include = lists["include"]
    demand(len(include) > 0, "'include' is empty: name at least one object")
    for place, item in ((f"{key}[{index}]", item) for key, items in lists.items() for index, item in enumerate(items)):
        demand(isinstance(item, Mapping), f"{place} is {item!r}: every entry is an object with a class and a count")
        for key in ("class", "count"):
            demand(key in item, f"{place} lacks the key {key!r}: every entry has a class and a count")
        name, count = item["class"], item["count"]
        demand(type(count) is int and count > 0, f"'count' of {place} is {count!r}: give a whole number from 1 on")
        demand(isinstance(name, str), f"'class' of {place} is {name!r}: give a name")
        known = not classes or name in classes
        demand(known, f"the detector does not know {name!r} of {place}: give one of {', '.join(classes)}")
    for index, item in enumerate(include):
        if "color" in item:
            color = item["color"]
            demand(color in COLORS, f"unknown 'color' {color!r} of include[{index}]: choose one of {', '.join(COLORS)}")
        if "position" in item:
            position = item["position"]
            demand(
                _is_position(position, index),
                f"'position' of include[{index}] is {position!r}: give one of {', '.join(RELATIONS)} "
                "and the index of an earlier entry",
            )


def _is_position(position: Any, index: int) -> bool:
    """Whether an entry of this index may stand so: a relation, and the index of an earlier entry."""
    if not isinstance(position, Sequence) or len(position) != 2:
        return False
    relation, earlier = position
    return relation in RELATIONS and type(earlier) is int and 0 <= earlier < index


class GenEvalReward:
    """Detects, keeps and judges: `total` is the rule set's score, `parts["strict"]` the official 0 or 1.

    The official verdict stands beside every other rule set, so that a run that trains on fractions logs
    the benchmark's accuracy too. The detector sees the whole batch, the classifier all its objects in one call.

    Raises ValueError for thresholds under what the detector returns.
    """

    def __init__(
        self,
        detector: Detector,
        colors: ColorClassifier,
        rules: str = "partial",
        options: GenEvalOptions | None = None,
    ) -> None:
        self.detector = detector
        self.colors = colors
        self.rule = RULES[rules]
        self.options = options or GenEvalOptions()
        lowest = min(self.options.threshold, self.options.counting_threshold)
        if lowest < detector.min_score:
            raise ValueError(
                f"{detector.name} drops what scores up to {detector.min_score}, over the threshold {lowest}"
            )
        self.name = f"geneval-{rules} ({detector.name})"

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        for prompt, record in zip(prompts, metadata, strict=True):
            check_metadata(prompt, record, self.detector.classes)

    def score(
        self,
        images: Sequence[UInt8[ndarray, "H W 3"]],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Scores:
        """The scores of the images; `metadata` are GenEval records (`check_metadata`)."""
        self.check(prompts, metadata)
        found = self.detector.detect(images)
        kept = [keep_all(one, record["tag"], self.options) for one, record in zip(found, metadata, strict=True)]
        verdicts, strict = [], []
        for record, objects, colors_of in zip(metadata, kept, self._colors(images, metadata, kept), strict=True):
            verdicts.append(self.rule(record, objects, colors_of, self.options))
            strict.append(official(record, objects, colors_of, self.options).correct)
        return Scores(
            total=torch.tensor([verdict.score for verdict in verdicts], dtype=torch.float32),
            parts={"strict": torch.tensor(strict, dtype=torch.float32)},
            reasons=tuple(verdict.reason for verdict in verdicts),
        )

    def _colors(
        self,
        images: Sequence[UInt8[ndarray, "H W 3"]],
        metadata: Sequence[Mapping[str, Any]],
        kept: Sequence[Objects],
    ) -> list[ColorsOf]:
        """What answers the rules' questions of colour about each image, from one call of the classifier."""
        questions = [color_questions(record, objects) for record, objects in zip(metadata, kept, strict=True)]
        subjects = [
            Subject(image, detection, name)
            for image, asked in zip(images, questions, strict=True)
            for name, chosen in asked.items()
            for detection in chosen
        ]
        answers = iter(self.colors.classify(subjects) if subjects else ())
        return [_answering({name: list(islice(answers, len(chosen))) for name, chosen in q.items()}) for q in questions]


def _answering(colors: Mapping[str, list[str]]) -> ColorsOf:
    """Rule sets only ever ask for the best-scored objects of a class."""

    def colors_of(name: str, chosen: Sequence[Detection]) -> list[str]:
        return colors[name][: len(chosen)]

    return colors_of
