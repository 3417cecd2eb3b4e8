"""The observations that the two papers build on, made on any model: tables, figures and what holds.

    python scripts/analyse_tokens.py --model tiny --out runs/analysis
    python scripts/analyse_tokens.py --run runs/demo --out runs/analysis     # through training, by its checkpoints

Writes `analysis.md` and `analysis.json` (tables and a sentence on each, made from the numbers), `analysis.png` and
`edits.png`. The subject is where a detector with masks finds an object: the shapes world's own, exact on that world
alone, or GenEval's for photos. What each table is about stands in `t2i_rl/reports/analysis.py`.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from models.errors import ModelError
from models.registry import find as find_model
from rewards.errors import RewardError
from t2i_rl.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from t2i_rl.reports.analysis import Edited, Mean, Observed, Paired

COLORS = {"subject": "#D55E00", "edge": "#999999", "background": "#0072B2"}
COLORS |= {"initial": "#56B4E9", "structure": "#E69F00", "similarity": "#CC79A7", "other": "#303030"}
PLAIN = "#0072B2"
STEP = "step "


@dataclass(frozen=True)
class Analyse:
    """Measure what early tokens, critical tokens and the subject's tokens are like.

    Attributes:
        model: a registered name, a checkpoint folder or a hub id.
        run: a run folder: the model that it began with and each checkpoint that is kept, instead of `model`.
        prompts: shapes:heldout, or another source of prompts (`t2i-rl train --help`).
        detector: shapes; or for photos what finds COCO's objects: official (GenEval's Mask2Former, which is fetched), a
            copy of its file, or a folder in transformers' format.
        per_tag: prompts of each tag.
        group_size: images per prompt.
        share: of the tokens that are changed.
        guidance_scale: of classifier-free guidance; the run's or the model's own if not given.
        seed: of the noise.
        device: where the model runs, such as cpu or cuda.
        out: folder of the files; it must not hold anything.
    """

    model: str = "tiny"
    run: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    prompts: str = "shapes:heldout"
    detector: str = "shapes"
    per_tag: int = 4
    group_size: int = 4
    share: float = 0.1
    guidance_scale: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    seed: int = 0
    device: str = "cpu"
    out: Path = Path("runs/analysis")

    def __post_init__(self) -> None:
        find_model(self.model)
        if self.per_tag < 1 or self.group_size < 2:
            raise UserError("per-tag has to be at least 1, and group-size at least 2: similarity compares images")
        if not 0 < self.share <= 1 / 3:
            raise UserError(
                f"share is {self.share}: it has to be above 0 and at most a third, so that windows do not meet"
            )


@dataclass(frozen=True)
class Table:
    """One observation: means over prompts by row and column, and the sentences that they support."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, tuple["Mean", ...]], ...]
    sentences: tuple[str, ...]

    @property
    def steps(self) -> list[int] | None:
        """The rows' steps, where they are steps of a run."""
        labels = [label for label, _ in self.rows]
        return [int(label.removeprefix(STEP)) for label in labels] if labels[0].startswith(STEP) else None

    def markdown(self) -> str:
        def cell(mean: "Mean") -> str:
            if math.isnan(mean.error):
                return "" if math.isnan(mean.value) else f"{mean.value:.3g}"
            return f"{mean.value:.3g} ± {mean.error:.1g}"

        lines = [self.head, ("---",) * len(self.head), *((label, *map(cell, row)) for label, row in self.rows)]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        said = "\n".join(f"- {each}" for each in self.sentences)
        return f"## {self.title}\n\n{body}\n\n{said}\n"

    def record(self) -> dict[str, Any]:
        """For a JSON file: each mean with its standard error, null where there is none."""

        def cell(mean: "Mean") -> list[float | None]:
            return [None if math.isnan(value) else value for value in (mean.value, mean.error)]

        rows = [[label, *map(cell, row)] for label, row in self.rows]
        return {"title": self.title, "head": self.head, "rows": rows, "sentences": self.sentences}


def sentence(claim: str, found: "Paired", unit: str) -> str:
    """What the numbers say of a claim, with how sure they are."""
    return (
        f"{claim}: {found.verdict} ({found.first:.4g} against {found.second:.4g} {unit}, difference "
        f"{found.difference:+.3g} with standard error {found.error:.2g}, over {found.prompts} prompts)."
    )


def edit_table(found: "Edited", way: str) -> Table:
    from t2i_rl.reports.analysis import mean, paired

    measured = (found.moved, found.replaced, found.followed)
    moved, _, followed = columns = [{name: values.mean(1) for name, values in each.items()} for each in measured]
    rows = tuple((name, tuple(mean(column[name]) for column in columns)) for name in moved)
    claims = [
        sentence(
            f"Early tokens {way} move the image more than {name} ones",
            paired(moved["early"], moved[name]),
            "of the range of a pixel",
        )
        for name in ("middle", "late")
    ]
    claims.append(
        sentence(
            f"After early tokens {way} a larger share of the rest changes than after middle ones",
            paired(followed["early"], followed["middle"]),
            "of the tokens",
        )
    )
    head = ("tokens", "mean change of a pixel (0 to 1)", "of them became others", "of those after them became others")
    return Table(f"Early, middle and late tokens {way}", head, rows, tuple(claims))


def drift_table(stages: Mapping[str, "Observed"]) -> Table | None:
    """None without a stage that was compared with a reference."""
    from t2i_rl.reports.analysis import mean, mean_where, paired

    moved = {stage: seen for stage, seen in stages.items() if "divergence" in seen.statistics}
    if not moved:
        return None
    means = {
        stage: {name: mean_where(seen.statistics["divergence"], held) for name, held in seen.classes.items()}
        for stage, seen in moved.items()
    }
    classes = list(next(iter(means.values())))
    rows = tuple((stage, tuple(mean(of[name]) for name in classes)) for stage, of in means.items())
    last, newest = list(means.items())[-1]
    claims = [
        sentence(
            f"At {last} {name} tokens have drifted further than the others",
            paired(newest[name], newest["other"]),
            "nats",
        )
        for name in classes
        if name != "other"
    ]
    head = ("policy", *(f"{name} tokens" for name in classes))
    return Table("KL(policy || reference) by class of token, nats", head, rows, tuple(claims))


def region_table(stages: Mapping[str, "Observed"], name: str, title: str, claim: str) -> Table:
    from t2i_rl.reports.analysis import mean, mean_where, paired

    means = {
        stage: {region: mean_where(seen.statistics[name], held) for region, held in seen.regions.items()}
        for stage, seen in stages.items()
    }
    names = list(next(iter(means.values())))
    rows = tuple((stage, tuple(mean(of[region]) for region in names)) for stage, of in means.items())
    (first, before), (last, after) = next(iter(means.items())), list(means.items())[-1]
    claims = [
        sentence(f"{claim}, for {stage}", paired(of["subject"], of["background"]), "nats")
        for stage, of in {first: before, last: after}.items()
    ]
    if len(means) > 1:
        for region in ("subject", "background"):
            change = paired(after[region], before[region])
            claims.append(sentence(f"It is higher in the {region} for {last} than for {first}", change, "nats"))
    return Table(title, ("policy", *names), rows, tuple(claims))


def draw_tables(tables: Sequence[Table], path: Path) -> None:
    """Every table as bars or, over the steps of a run, as lines; with standard errors."""
    from t2i_rl.pictures.figures import new_figure, save_figure

    rows = -(-len(tables) // 2)
    figure = new_figure(9.5, 3.4 * rows, layout="constrained")
    panels = list(figure.subplots(rows, 2, squeeze=False).flat)
    for axes in panels[len(tables) :]:
        axes.set_axis_off()
    for axes, table in zip(panels, tables, strict=False):
        if table.steps is None:
            draw_bars(axes, table)
        else:
            draw_lines(axes, table, table.steps)
        axes.set_title(table.title, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3, axis="y")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, 200)


def draw_bars(axes: "Axes", table: Table) -> None:
    """One row: a bar of each column. Several: a bar of each row, of the first column."""
    if len(table.rows) == 1:
        labels, means = list(table.head[1:]), list(table.rows[0][1])
    else:
        labels, means = [label for label, _ in table.rows], [row[0] for _, row in table.rows]
        axes.set_ylabel(table.head[1], fontsize=9)
    colors, errors = [COLORS.get(label, PLAIN) for label in labels], [each.error for each in means]
    bars = axes.bar(labels, [each.value for each in means], yerr=errors, color=colors, width=0.6, capsize=3)
    axes.bar_label(bars, [f"{each.value:.3g}" for each in means], padding=2, fontsize=8)
    axes.margins(y=0.12)


def draw_lines(axes: "Axes", table: Table, steps: Sequence[int]) -> None:
    """A line of each column."""
    for column, name in enumerate(table.head[1:]):
        means, color = [row[column] for _, row in table.rows], COLORS[name.removesuffix(" tokens")]
        values, errors = [each.value for each in means], [each.error for each in means]
        axes.errorbar(
            steps, values, errors, color=color, marker="o", markersize=4, capsize=2, label=name.removesuffix(" tokens")
        )
    axes.margins(y=0.25)  # the legend lies above the lines
    axes.set_ylim(bottom=0)
    axes.set_xticks(steps)
    axes.set_xlabel("step", fontsize=9)
    legend = axes.legend(fontsize=8, frameon=False, loc="upper center", ncols=len(table.head) - 1, columnspacing=1.2)
    legend.set_in_layout(False)


def draw_edits(found: Mapping[str, "Edited"], prompt: str, path: Path) -> None:
    """The images of the first prompt, as drawn and after each change: one column each."""
    from t2i_rl.pictures.figures import new_figure, save_figure

    changed = {
        f"{name}\n{way}": images
        for way, each in found.items()
        for name, images in each.images.items()
        if name in each.moved
    }
    shown = {"as drawn": next(iter(found.values())).images["as drawn"], **changed}
    rows = len(shown["as drawn"])
    figure = new_figure(1.4 * len(shown), 1.4 * rows + 0.7, layout="constrained")
    figure.suptitle(f"“{prompt}”: tokens changed, and all after them drawn again", fontsize=10)
    grid = figure.subplots(rows, len(shown), squeeze=False)
    for column, (name, images) in enumerate(shown.items()):
        grid[0, column].set_title(name, fontsize=9)
        for row, image in enumerate(images):
            grid[row, column].imshow(image, interpolation="nearest")
            grid[row, column].set(xticks=[], yticks=[])
    save_figure(figure, path, 200)


def analyse(asked: Analyse) -> None:
    """Measure, then write all files at once."""
    from t2i_rl.outputs import check_free

    check_free(asked.out)
    import torch

    from models.registry import load
    from rewards.detectors.mask2former import Mask2FormerDetector
    from rewards.detectors.shapes import ShapesDetector
    from t2i_rl.prompts.prompt import balanced
    from t2i_rl.prompts.reading import load_prompts
    from t2i_rl.reports.analysis import Setting, edited, observe
    from t2i_rl.reports.revisit import run_config
    from t2i_rl.rollout.sampling import Sampling
    from t2i_rl.training import checkpoints
    from t2i_rl.training.run_folder import CHECKPOINTS, complete

    config = None if asked.run is None else run_config(asked.run)
    name, dtype = (asked.model, torch.float32) if config is None else (config.model, getattr(torch, config.dtype))
    kept = [] if asked.run is None else complete(asked.run / CHECKPOINTS)
    if asked.run is not None and not kept:
        raise UserError(f"{asked.run} has no checkpoint to compare with its model: wait for its first one")
    for path in kept:
        checkpoints.check_source(str(path))
    shapes = asked.detector == "shapes"
    detector = ShapesDetector() if shapes else Mask2FormerDetector.load(asked.detector, asked.device)
    base = load(name, dtype, asked.device)
    own = Sampling() if config is None else config.rollout.sampling
    texts = [prompt.text for prompt in balanced(load_prompts(asked.prompts), asked.per_tag)]
    if asked.guidance_scale is not None:
        own = replace(own, guidance_scale=asked.guidance_scale)
    sampling = own.of(base.default_guidance)
    setting = Setting(texts, asked.group_size, sampling, asked.seed)

    found = {
        "drawn anew": edited(base, setting, asked.share, force=False),
        "made others": edited(base, setting, asked.share, force=True),
    }
    if asked.run is None:
        stages = {name: observe(base, setting, detector)}
    else:
        stages = {f"{STEP}0": observe(base, setting, detector, base)}
    for path in kept:
        trained = load(str(path), dtype, asked.device)
        stages[f"{STEP}{int(path.name.removeprefix('step-'))}"] = observe(trained, setting, detector, base)
    regions = (
        ("entropy", "Entropy of the guided distribution, nats", "The subject has the higher entropy"),
        ("kl", "KL(with prompt || without), nats", "The prompt changes the subject more than the background"),
    )
    tables = [
        *(edit_table(each, way) for way, each in found.items()),
        *filter(None, [drift_table(stages)]),
        *(region_table(stages, *row) for row in regions),
    ]
    of_run = "" if asked.run is None else f", run {asked.run.name}"
    about = (
        f"{name}{of_run}: {len(texts)} prompts of {asked.prompts} with {asked.group_size} images each, "
        f"guidance {sampling.guidance_scale:g}, seed {asked.seed}. "
        "Means over prompts ± their standard errors. A claim holds here where "
        "the difference is larger than two of its own standard errors, taken between prompts."
    )
    write(asked.out, about, tables, found, texts[0])


def write(out: Path, about: str, tables: Sequence[Table], found: Mapping[str, "Edited"], prompt: str) -> None:
    """All files at once; `found`, the changed images by the way they were changed, are shown for the prompt."""
    from t2i_rl.outputs import whole_folder
    from t2i_rl.pictures.figures import ornament

    with whole_folder(out) as aside:
        text = "\n".join(["# Observations of tokens", "", about, "", *(table.markdown() for table in tables)])
        (aside / "analysis.md").write_text(text, encoding="utf-8")
        content = {"about": about, "tables": [table.record() for table in tables]}
        written = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        (aside / "analysis.json").write_text(written + "\n", encoding="utf-8")
        with ornament("analysis.png"):
            draw_tables(tables, aside / "analysis.png")
        with ornament("edits.png"):
            draw_edits(found, prompt, aside / "edits.png")
    print(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; returns the exit code."""
    try:
        analyse(tyro.cli(Analyse, args=arguments, description=__doc__))
    except (UserError, ModelError, RewardError) as error:
        print(f"analyse_tokens: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
