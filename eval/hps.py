"""The HPSv2 benchmark: 800 prompts of each of four styles, one image per prompt.

The released tool reports a style's mean and deviation over the means of 80 images each, and one mean over all images;
those are `styles`. Differences: it skips images that are missing, and it scores JPEG files. Ours are PNG files unless
the official layout is asked for; an image that is missing ends the run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from eval.benchmark import TOTAL, Benchmark
from eval.preferences import metrics, scale_of
from eval.prompt_files import in_category, place_in
from eval.records.layouts import Layout
from eval.records.manifest import Key, Row
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.prompts.reading import load_prompts

STYLES = ("anime", "concept-art", "paintings", "photo")
IMAGES_PER_PROMPT = 1
CHUNK = 80  # images whose mean is one of a style's numbers


def benchmark(folder: Path | None, scorers: Sequence[str], images_per_prompt: int = IMAGES_PER_PROMPT) -> Benchmark:
    """folder: of `anime.json` and the other styles; None: those of `t2i-rl data`. Raises UserError."""
    prompts: list[Prompt] = []
    paths: dict[Key, Path] = {}
    for style in STYLES:
        of_style = in_category(load_prompts(place_in(folder, f"{style}.json", f"hps/{style}")), style)
        for number in range(len(of_style) * images_per_prompt):
            index, sample = divmod(number, images_per_prompt)
            paths[len(prompts) + index, sample] = Path(style, f"{number:05d}.jpg")
        prompts += of_style
    return Benchmark(
        name="hps",
        prompts=tuple(prompts),
        images_per_prompt=images_per_prompt,
        metrics=metrics(scorers),
        official=Layout("hpsv2", paths),
        more=official_figures,
    )


def summarise(scores: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The released tool's figures from the scores of every style, in the order of their prompts."""
    found: dict[str, Any] = {}
    for style, values in scores.items():
        means = [fmean(values[start : start + CHUNK]) for start in range(0, len(values), CHUNK)]
        found[style] = {"mean": fmean(means), "std": pstdev(means), "n": len(values)}
    return found | {"average": fmean(value for values in scores.values() for value in values)}


def official_figures(manifest: Sequence[Row], scores: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """`styles`: by scorer, what `summarise` says."""
    styles = {}
    for scorer, rows in scores.items():
        by_style: dict[str, list[float]] = {}
        for image, row in zip(manifest, rows, strict=True):
            by_style.setdefault(image["category"], []).append(scale_of(scorer) * row["values"][TOTAL])
        styles[scorer] = summarise(by_style)
    return {"styles": styles}
