"""What a benchmark is: prompts in categories, scorers of their images or answers, and figures made of the scores."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Protocol

from eval.records.layouts import Layout, plain
from eval.records.manifest import Key, Row
from rewards.cut import Cut
from rewards.errors import RewardError
from rewards.reward import Reward, score_images
from t2i_rl.errors import UserError
from t2i_rl.prompts.prompt import Prompt

TOTAL = "total"
OVERALL = "overall"  # of a figure, where categories have their names


@dataclass(frozen=True)
class Judgement:
    """What a scorer says of one image or answer.

    values: numbers by name; `total` is the score itself.
    reason: why it has less than the full score; "" where there is nothing to say.
    details: what the score was made of, to be kept beside it.
    """

    values: Mapping[str, float]
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


class Scorer(Protocol):
    """Judges images of prompts, or answers to them."""

    @property
    def name(self) -> str:
        """Says which weights and rules it has; figures carry it. To be asked after `check`."""
        ...

    def check(self, prompts: Sequence[Prompt]) -> Sequence[Cut] | None:
        """Refuse, with a `RewardError`, prompts that it could not judge; returns which it cuts, as a reward does."""
        ...

    def score(self, samples: Sequence[Any], prompts: Sequence[Prompt], /) -> list[Judgement]:
        """One judgement per image or answer, in their order. Raises RewardError for one that cannot be judged."""
        ...


class RewardScorer:
    """A reward as a scorer: its total and its parts."""

    def __init__(self, reward: Reward) -> None:
        self.reward = reward

    @property
    def name(self) -> str:
        return self.reward.name

    def check(self, prompts: Sequence[Prompt]) -> Sequence[Cut] | None:
        return self.reward.check([prompt.text for prompt in prompts], [prompt.metadata for prompt in prompts])

    def score(self, samples: Sequence[Any], prompts: Sequence[Prompt]) -> list[Judgement]:
        texts, metadata = [prompt.text for prompt in prompts], [prompt.metadata for prompt in prompts]
        scores = score_images(self.reward, samples, texts, metadata)
        columns = {TOTAL: scores.total, **scores.parts}
        values = {name: column.tolist() for name, column in columns.items()}
        return [
            Judgement({name: column[row] for name, column in values.items()}, reason)
            for row, reason in enumerate(scores.reasons)
        ]


@dataclass(frozen=True)
class Metric:
    """A figure: the sum of a scorer's `values`, each times its weight.

    overall: the mean over all images, or the unweighted mean of the categories' means.
    """

    name: str
    scorer: str
    values: Mapping[str, float] = field(default_factory=lambda: {TOTAL: 1.0})
    overall: Literal["images", "categories"] = "images"

    def of(self, row: Mapping[str, Any]) -> float:
        """Of one line of the scorer's ledger. Raises RewardError where the scorer did not give a value."""
        for name in self.values:
            if name not in row["values"]:
                raise RewardError(
                    f"{row['scorer']} gives no {name!r}, of which {self.name!r} is made: choose another scorer"
                )
        return sum(weight * row["values"][name] for name, weight in self.values.items())


@dataclass(frozen=True)
class Benchmark:
    """A benchmark without its images or answers.

    category_key: what the prompts' metadata call the category.
    settings: what else its figures depend on.
    official: where the official tools look for the images, if that is not our own layout.
    more: further entries of the summary, from the lines of the manifest and of the scorers, by scorer.
    publish: writes the files of the official tools into a folder, from the same.
    notes: what a reader of the figures has to know.
    samples: what the prompts get, `images_per_prompt` of each: images, or answers in text.
    """

    name: str
    prompts: tuple[Prompt, ...]
    images_per_prompt: int
    metrics: tuple[Metric, ...]
    category_key: str = "category"
    settings: Mapping[str, Any] = field(default_factory=dict)
    official: Layout | None = None
    more: Callable[[Sequence[Row], Mapping[str, Sequence[Row]]], Mapping[str, Any]] | None = None
    publish: Callable[[Path, Sequence[Row], Mapping[str, Sequence[Row]]], None] | None = None
    notes: tuple[str, ...] = ()
    samples: Literal["images", "answers"] = "images"

    def __post_init__(self) -> None:
        if self.images_per_prompt < 1:
            raise UserError(f"images_per_prompt is {self.images_per_prompt}: it has to be at least 1")

    @property
    def keys(self) -> list[Key]:
        """Every image that the figures are over."""
        return [(index, sample) for index in range(len(self.prompts)) for sample in range(self.images_per_prompt)]

    @property
    def plain(self) -> Layout:
        return plain(self.keys)

    def category(self, index: int) -> str:
        return str(self.prompts[index].metadata.get(self.category_key, "all")).strip()


def figures(
    benchmark: Benchmark, manifest: Sequence[Row], scores: Mapping[str, Sequence[Row]]
) -> dict[str, dict[str, Any]]:
    """By metric: `overall` and the mean of every category, over all images."""
    found = {}
    for metric in benchmark.metrics:
        by_category: dict[str, list[float]] = {}
        for image, row in zip(manifest, scores[metric.scorer], strict=True):
            by_category.setdefault(image["category"], []).append(metric.of(row))
        means = {category: fmean(values) for category, values in by_category.items()}
        every = [value for values in by_category.values() for value in values]
        overall = fmean(means.values()) if metric.overall == "categories" else fmean(every)
        found[metric.name] = {
            "overall": overall,
            "categories": means,
            "mean_of": metric.overall,
            "scorer": metric.scorer,
            "values": dict(metric.values),
        }
    return found


def counts(manifest: Sequence[Row]) -> dict[str, Any]:
    """Images, prompts, and images by category."""
    return {
        "prompts": len({row["index"] for row in manifest}),
        "images": len(manifest),
        "images_per_category": dict(Counter(row["category"] for row in manifest)),
    }
