"""T2I-CompBench++: eight categories of 300 prompts, ten images each, one figure a category and no overall one.

`overall` in the summary is the mean of the categories, for our own comparisons: the benchmark reports none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from eval.benchmark import TOTAL, Benchmark, Metric, Scorer
from eval.compbench.boxes import LabelDetector
from eval.compbench.language import load_language
from eval.compbench.numeracy import read_nouns
from eval.compbench.scorers import (
    ActionScorer,
    AttributeScorer,
    ByCategory,
    ComplexPlaneScorer,
    ComplexScorer,
    DepthScorer,
    NumeracyScorer,
    PlaneScorer,
)
from eval.compbench.three_in_one import as_key
from eval.prompt_files import in_category, place_in
from eval.records.layouts import Layout, file_name
from eval.records.manifest import Key, Row, as_json
from t2i_rl.errors import UserError
from t2i_rl.outputs import write_atomically
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.prompts.reading import load_prompts
from t2i_rl.prompts.sets import prompt_file

if TYPE_CHECKING:
    from eval.compbench.blip import Blip
    from eval.compbench.depth import Dpt
    from rewards.scorers.clipscore import ClipScore

NAME = "t2i-compbench"
IMAGES_PER_PROMPT = 10
ATTRIBUTES = ("color", "shape", "texture")
CATEGORIES = (*ATTRIBUTES, "spatial", "non_spatial", "complex", "3d_spatial", "numeracy")
PARTS = {"spatial": "complex_val_spatial.txt", "action": "complex_val_action.txt"}
BUGS = "the released code's bugs are kept, as in published figures"
FIXED = "two bugs of the released code are mended (on top of; rows and columns of depth): not comparable"
SUBSTITUTE = "spatial, 3d_spatial, numeracy and complex use a substitute for UniDet: not comparable"


@dataclass(frozen=True)
class Models:
    """Where the models are: folders or hub repositories. detector, detector_r50: addresses of UniDet servers, or
    `owlv2` with an optional `:SOURCE`; the second serves depth and numeracy."""

    detector: str
    detector_r50: str
    blip: str
    clip: str | None
    depth: str
    device: str = "cpu"


def benchmark(
    folder: Path | None,
    categories: Sequence[str] = CATEGORIES,
    images_per_prompt: int = IMAGES_PER_PROMPT,
    fixed: bool = False,
    notes: Sequence[str] = (),
) -> Benchmark:
    """folder: of `color_val.txt` and so on; None: those of `t2i-rl data`. Raises UserError."""
    for category in categories:
        if category not in CATEGORIES:
            raise UserError(f"T2I-CompBench has no category {category!r}: choose among {', '.join(CATEGORIES)}")
    prompts: list[Prompt] = []
    paths: dict[Key, Path] = {}
    for category in categories:
        source = place_in(folder, f"{category}_val.txt", f"{NAME}/{category}")
        of_category = in_category(load_prompts(source), category)
        for number in range(len(of_category) * images_per_prompt):
            index, sample = divmod(number, images_per_prompt)
            name = file_name(of_category[index].text, number)
            paths[len(prompts) + index, sample] = Path(category, "samples", name)
        prompts += of_category
    return Benchmark(
        name=NAME,
        prompts=tuple(prompts),
        images_per_prompt=images_per_prompt,
        metrics=(Metric("score", NAME, {TOTAL: 1.0}, "categories"),),
        settings={"fixed": fixed},
        official=Layout("t2i-compbench", paths),
        publish=publish,
        notes=(FIXED if fixed else BUGS, *notes),
    )


def publish(folder: Path, manifest: Sequence[Row], scores: Mapping[str, Sequence[Row]]) -> None:
    """`annotations/CATEGORY/vqa_result.json`, as the official tools write every category's scores."""
    by_category: dict[str, list[float]] = {}
    for image, row in zip(manifest, scores[NAME], strict=True):
        by_category.setdefault(image["category"], []).append(row["values"][TOTAL])
    for category, values in by_category.items():
        lines = [{"question_id": number, "answer": f"{value:.4f}"} for number, value in enumerate(values)]
        write_atomically(folder / "annotations" / category / "vqa_result.json", as_json(lines))


def notes_of(models: Models, categories: Sequence[str]) -> tuple[str, ...]:
    """What the choice of detectors means for the figures."""
    places = any(category in ("spatial", "complex") for category in categories)
    others = any(category in ("3d_spatial", "numeracy") for category in categories)
    asked = [models.detector] * places + [models.detector_r50] * others
    return (SUBSTITUTE,) if any(one.startswith("owlv2") for one in asked) else ()


def scorer(models: Models, categories: Sequence[str], folder: Path | None, fixed: bool) -> Scorer:
    """What judges these categories; only the models that they need are loaded. Raises UserError or RewardError."""
    language, detector = cache(load_language), cache(lambda source: _detector(source, models.device))
    clip = cache(lambda: _clip(models))
    attribute = cache(lambda: AttributeScorer(_blip(models), language()))

    def file(name: str) -> Path:
        return Path(folder / name) if folder else prompt_file(f"{NAME}/{Path(name).stem.replace('_val', '')}")

    def complex_scorer() -> Scorer:
        parts = {name: _keys(file(part)) for name, part in PARTS.items()}
        place = ComplexPlaneScorer(detector(models.detector), language(), fixed)
        action = ActionScorer(clip(), language())
        return ComplexScorer(attribute(), place, action, parts["spatial"], parts["action"])

    builders: dict[str, Callable[[], Scorer]] = {
        **dict.fromkeys(ATTRIBUTES, attribute),
        "spatial": lambda: PlaneScorer(detector(models.detector), language(), fixed),
        "non_spatial": lambda: ActionScorer(clip()),
        "complex": complex_scorer,
        "3d_spatial": lambda: DepthScorer(detector(models.detector_r50), _depth(models), language(), fixed),
        "numeracy": lambda: NumeracyScorer(
            detector(models.detector_r50), language(), read_nouns(file("new_objects.txt"))
        ),
    }
    return ByCategory({category: builders[category]() for category in categories})


def _keys(path: Path) -> list[str]:
    return [as_key(prompt.text) for prompt in load_prompts(str(path))]


def _detector(source: str, device: str) -> LabelDetector:
    name, _, place = source.partition(":")
    if name in ("http", "https"):
        from eval.compbench.served import ServedDetector

        return ServedDetector(source)
    if name != "owlv2":
        raise UserError(f"{source!r} is no detector: give the address of a UniDet server, or owlv2 as a substitute")
    from eval.compbench.owlv2 import SOURCE, Owlv2

    return Owlv2.load(place or SOURCE, device)


def _blip(models: Models) -> "Blip":
    from eval.compbench.blip import Blip

    return Blip.load(models.blip, models.device)


def _clip(models: Models) -> "ClipScore":
    from eval.records.provenance import labelled
    from rewards.scorers.clipscore import OPENAI, ClipScore

    clip = ClipScore.load(models.clip, models.device).clip
    return ClipScore(clip, f"clipscore (cosine, {labelled(models.clip or OPENAI)})")


def _depth(models: Models) -> "Dpt":
    from eval.compbench.depth import Dpt

    return Dpt.load(models.depth, models.device)
