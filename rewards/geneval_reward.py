"""GenEval as a reward: a detector, a colour classifier and a rule set score each image."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import UInt8
from numpy import ndarray

from rewards.detectors.base import ColorClassifier, Detection, Detector
from rewards.errors import RewardError
from rewards.geneval import COLORS, RELATIONS, RULES, TAGS, ColorsOf, GenEvalOptions, keep_all, official
from rewards.reward import Scores


def check_metadata(prompt: str, metadata: Mapping[str, Any]) -> None:
    """Raise a `RewardError` that names the prompt and the key unless `metadata` is a GenEval record.

    That is: a `tag`, an `include` list of one or more `{class, count}` with an optional `color` and an
    optional `position` (`[relation, index of an earlier entry]`), and an optional `exclude` list of
    `{class, count}`.
    """

    def demand(holds: bool, complaint: str) -> None:
        if not holds:
            raise RewardError(f'prompt "{prompt}": {complaint}')

    for key in ("tag", "include"):
        demand(key in metadata, f"the metadata lack the key {key!r}: GenEval needs a tag and a list of objects")
    tag, include = metadata["tag"], metadata["include"]
    demand(tag in TAGS, f"unknown tag {tag!r}: choose one of {', '.join(TAGS)}")
    demand(len(include) > 0, "'include' is empty: name at least one object")
    entries = [(f"include[{index}]", item) for index, item in enumerate(include)]
    entries += [(f"exclude[{index}]", item) for index, item in enumerate(metadata.get("exclude", []))]
    for place, item in entries:
        for key in ("class", "count"):
            demand(key in item, f"{place} lacks the key {key!r}: every entry has a class and a count")
        count = item["count"]
        demand(isinstance(count, int) and count > 0, f"'count' of {place} is {count!r}: give a whole number from 1 on")
    for index, item in enumerate(include):
        if "color" in item:
            color = item["color"]
            demand(color in COLORS, f"unknown 'color' {color!r} of include[{index}]: choose one of {', '.join(COLORS)}")
        if "position" in item:
            position = item["position"]
            allowed = [[relation, earlier] for relation in RELATIONS for earlier in range(index)]
            demand(
                isinstance(position, Sequence) and list(position) in allowed,
                f"'position' of include[{index}] is {position!r}: give one of {', '.join(RELATIONS)} "
                "and the index of an earlier entry",
            )


class GenEvalReward:
    """Detects, keeps and judges: `total` is the rule set's score, `parts["strict"]` the official 0 or 1.

    The official verdict stands beside every other rule set, so that a run that trains on fractions logs
    the benchmark's accuracy too.
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
        self.name = f"geneval-{rules} ({detector.name})"

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        for prompt, record in zip(prompts, metadata, strict=True):
            check_metadata(prompt, record)

    def score(
        self,
        images: Sequence[UInt8[ndarray, "H W 3"]],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Scores:
        """The scores of the images; `metadata` are GenEval records (`check_metadata`)."""
        self.check(prompts, metadata)
        verdicts, strict = [], []
        for image, record, found in zip(images, metadata, self.detector.detect(images), strict=True):
            objects = keep_all(found, record["tag"], self.options)
            colors_of = self._colors_in(image)
            verdicts.append(self.rule(record, objects, colors_of, self.options))
            strict.append(official(record, objects, colors_of, self.options).correct)
        return Scores(
            total=torch.tensor([verdict.score for verdict in verdicts], dtype=torch.float32),
            parts={"strict": torch.tensor(strict, dtype=torch.float32)},
            reasons=tuple(verdict.reason for verdict in verdicts),
        )

    def _colors_in(self, image: UInt8[ndarray, "H W 3"]) -> ColorsOf:
        """The classifier on one image. It may be a large model and two rule sets ask it: answers are kept."""
        answers: dict[tuple[str, int], list[str]] = {}

        def colors_of(name: str, chosen: Sequence[Detection]) -> list[str]:
            key = (name, len(chosen))  # rule sets only ever ask for the best-scored objects of a class
            if key not in answers:
                answers[key] = self.colors.classify(image, chosen, name)
            return answers[key]

        return colors_of
