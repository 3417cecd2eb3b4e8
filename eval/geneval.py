"""GenEval: six tags, their mean, and why each image fails.

Three figures. `correct` is the official verdict, the one that papers report. `score` is the fraction that training
maximises (`rewards.geneval.rules.partial`), and `strict` the share of images where that fraction is 1: everything
holds, and no object is too many. A reward that is served elsewhere gives its own total for the fraction.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray

from eval.benchmark import TOTAL, Benchmark, Judgement, Metric, RewardScorer
from eval.records.manifest import Row
from rewards.detectors.base import ColorClassifier, Detection, Detector, Subject
from rewards.errors import RewardError
from rewards.geneval.reward import GenEvalReward, check_metadata
from rewards.geneval.rules import keep_all, summarise
from rewards.reward import Reward
from t2i_rl.outputs import write_atomically
from t2i_rl.prompts.prompt import Prompt

SCORER = "geneval"
CORRECT, STRICT, SCORE = FIGURES = ("correct", "strict", "score")
VERDICT = "strict"  # what rewards call the official verdict
IMAGES_PER_PROMPT = 4
RESULTS = "results.jsonl"


def benchmark(prompts: Sequence[Prompt], images_per_prompt: int = IMAGES_PER_PROMPT) -> Benchmark:
    """GenEval over these records. Raises RewardError for a prompt that is none."""
    for prompt in prompts:
        check_metadata(prompt.text, prompt.metadata)
    return Benchmark(
        name="geneval",
        prompts=tuple(prompts),
        images_per_prompt=images_per_prompt,
        category_key="tag",
        metrics=tuple(Metric(name, SCORER, {name: 1.0}, "categories") for name in FIGURES),
        more=summary,
        publish=publish,
    )


class _DetectOnce:
    """A detector that does not look twice at the images it saw last."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.name, self.classes, self.min_score = detector.name, detector.classes, detector.min_score
        self.images: Sequence[UInt8[ndarray, "H W 3"]] | None = None
        self.found: list[dict[str, list[Detection]]] = []

    def detect(self, images: Sequence[UInt8[ndarray, "H W 3"]]) -> list[dict[str, list[Detection]]]:
        if images is not self.images:
            self.images, self.found = images, self.detector.detect(images)
        return self.found


class _ClassifyOnce:
    """A classifier that does not answer twice about the objects it was asked for last."""

    def __init__(self, colors: ColorClassifier) -> None:
        self.colors = colors
        self.name = colors.name
        self.asked: list[tuple[Detection, str]] = []
        self.answers: list[str] = []

    def classify(self, subjects: Sequence[Subject]) -> list[str]:
        asked = [(subject.detection, subject.class_name) for subject in subjects]
        if len(asked) != len(self.asked) or any(
            one is not other or name != other_name
            for (one, name), (other, other_name) in zip(asked, self.asked, strict=True)
        ):
            self.asked, self.answers = asked, self.colors.classify(subjects)
        return self.answers


class GenEvalScorer(RewardScorer):
    """A GenEval reward as a scorer: its verdict; where its rules run here, also the fraction and the boxes."""

    def __init__(self, reward: Reward) -> None:
        self.training: RewardScorer | None = None
        if isinstance(reward, GenEvalReward):
            self.detector, colors = _DetectOnce(reward.detector), _ClassifyOnce(reward.colors)
            self.options = reward.options
            self.training = RewardScorer(GenEvalReward(self.detector, colors, "partial", self.options))
            reward = GenEvalReward(self.detector, colors, "official", self.options)
        super().__init__(reward)

    def score(self, images: Sequence[UInt8[ndarray, "H W 3"]], prompts: Sequence[Prompt]) -> list[Judgement]:
        judged = super().score(images, prompts)
        if VERDICT not in judged[0].values:
            raise RewardError(
                f"{self.name} gives no verdict by GenEval's rules: judge by one reward of GenEval's, alone"
            )
        if self.training is None:
            return [Judgement(_values(one, one), one.reason) for one in judged]
        fractions = self.training.score(images, prompts)
        tags = [prompt.metadata["tag"] for prompt in prompts]
        return [
            Judgement(_values(one, fraction), one.reason, boxes_of(keep_all(found, tag, self.options)))
            for one, fraction, found, tag in zip(judged, fractions, self.detector.found, tags, strict=True)
        ]


def _values(verdict: Judgement, fraction: Judgement) -> dict[str, float]:
    score = fraction.values[TOTAL]
    return {CORRECT: verdict.values[VERDICT], STRICT: float(score == 1), SCORE: score}


def boxes_of(objects: Mapping[str, Sequence[Detection]]) -> dict[str, list[list[float]]]:
    """By class the boxes that counted, each `[x1, y1, x2, y2, score]`."""
    return {
        name: [[*(float(side) for side in one.box[:4]), float(one.score)] for one in found]
        for name, found in objects.items()
    }


def records(manifest: Sequence[Row], scores: Mapping[str, Sequence[Row]]) -> list[Row]:
    """The lines of the official result file."""
    return [
        {
            "filename": image["file"],
            "tag": image["metadata"]["tag"],
            "prompt": image["prompt"],
            "correct": row["values"][CORRECT] == 1,
            "reason": row["reason"],
            "metadata": json.dumps(image["metadata"], ensure_ascii=False),
            "details": json.dumps(row.get("details", {})),
        }
        for image, row in zip(manifest, scores[SCORER], strict=True)
    ]


def summary(manifest: Sequence[Row], scores: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """GenEval's own figures."""
    return asdict(summarise(records(manifest, scores)))


def publish(folder: Path, manifest: Sequence[Row], scores: Mapping[str, Sequence[Row]]) -> None:
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records(manifest, scores))
    write_atomically(folder / RESULTS, "".join(lines))
