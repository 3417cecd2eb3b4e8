"""The observations that the two papers build on, made on any model: tables, figures and what holds.

    python scripts/analyse_tokens.py --model tiny --out runs/analysis
    python scripts/analyse_tokens.py --run runs/demo --out runs/analysis     # through training, by its checkpoints

Writes `analysis.md` and `analysis.json` (tables and a sentence on each, made from the numbers), `analysis.png` and
`edits.png`. The subject is where the shapes world's detector finds an object, exact on that world alone. What each
table is about stands in `t2i_rl/analysis.py`.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from models.errors import ModelError
from models.registry import find as find_model
from t2i_rl.errors import UserError

if TYPE_CHECKING:
    from t2i_rl.analysis import Edited, Observed, Paired

COLORS = {"subject": "#D55E00", "edge": "#999999", "background": "#0072B2"}
COLORS |= {"initial": "#56B4E9", "structure": "#E69F00", "similarity": "#CC79A7", "other": "#303030"}


@dataclass(frozen=True)
class Analyse:
    """Measure what early tokens, critical tokens and the subject's tokens are like.

    Attributes:
        model: a registered name, a checkpoint folder or a hub id.
        run: a run folder: the model that it began with and each checkpoint that is kept, instead of `model`.
        prompts: shapes:heldout, or another source of prompts (`t2i-rl train --help`).
        per_tag: prompts of each tag.
        group_size: images per prompt.
        share: of the tokens that are drawn anew.
        guidance_scale: of classifier-free guidance; the run's or the model's own if not given.
        seed: of the noise.
        device: where the model runs, such as cpu or cuda.
        out: folder of the files; it must not hold anything.
    """

    model: str = "tiny"
    run: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    prompts: str = "shapes:heldout"
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
    """One observation: its rows, and the sentences that they support."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]
    sentences: tuple[str, ...]

    def markdown(self) -> str:
        def cell(value: str | float) -> str:
            return value if isinstance(value, str) else "" if value != value else f"{value:.4g}"

        lines = [self.head, ("---",) * len(self.head), *(tuple(map(cell, row)) for row in self.rows)]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        said = "\n".join(f"- {each}" for each in self.sentences)
        return f"## {self.title}\n\n{body}\n\n{said}\n"


def sentence(claim: str, found: "Paired", unit: str) -> str:
    """What the numbers say of a claim, with how sure they are."""
    return (
        f"{claim}: {found.verdict} ({found.first:.4g} against {found.second:.4g} {unit}, difference "
        f"{found.difference:+.3g} with standard error {found.error:.2g}, over {found.prompts} prompts)."
    )


def edit_table(found: "Edited") -> Table:
    from t2i_rl.analysis import paired

    moved = {name: values.mean(1) for name, values in found.moved.items()}
    rows = tuple(
        (name, moved[name].mean().item(), found.replaced[name].mean().item(), found.followed[name].mean().item())
        for name in moved
    )
    claims = [
        sentence(
            f"Drawing early tokens anew moves the image more than {name} ones",
            paired(moved["early"], moved[name]),
            "of the range of a pixel",
        )
        for name in ("middle", "late")
    ]
    follow = paired(found.followed["early"].mean(1), found.followed["middle"].mean(1))
    claims.append(
        sentence(
            "After early ones a larger share of what follows changes than after middle ones", follow, "of the tokens"
        )
    )
    head = (
        "tokens drawn anew",
        "mean change of a pixel (0 to 1)",
        "of them became others",
        "of those after them became others",
    )
    return Table("What follows from early, middle and late tokens", head, rows, tuple(claims))


def drift_table(stages: Mapping[str, "Observed"]) -> Table | None:
    """None without a stage that has moved away from a reference."""
    from t2i_rl.analysis import mean_where, paired

    moved = {stage: seen for stage, seen in stages.items() if "divergence" in seen.statistics}
    if not moved:
        return None
    means = {
        stage: {name: mean_where(seen.statistics["divergence"], held) for name, held in seen.classes.items()}
        for stage, seen in moved.items()
    }
    classes = list(next(iter(means.values())))
    rows = tuple((stage, *(of[name].nanmean().item() for name in classes)) for stage, of in means.items())
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
    from t2i_rl.analysis import mean_where, paired

    means = {
        stage: {region: mean_where(seen.statistics[name], held) for region, held in seen.regions.items()}
        for stage, seen in stages.items()
    }
    names = list(next(iter(means.values())))
    rows = tuple((stage, *(of[region].nanmean().item() for region in names)) for stage, of in means.items())
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
    """Every table as bars or, over several policies, as lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(tables) // 2)
    figure = Figure(figsize=(9.5, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, 2, squeeze=False).flat)
    for axes in panels[len(tables) :]:
        axes.set_axis_off()
    for axes, table in zip(panels, tables, strict=False):
        labels, names = [str(row[0]) for row in table.rows], table.head[1:]
        if table.head[0] != "policy":
            axes.bar(labels, [row[1] for row in table.rows], color="#0072B2", width=0.6)
            axes.set_ylabel(names[0], fontsize=9)
        for column, name in enumerate(names, start=1):
            color = COLORS.get(name.removesuffix(" tokens"))
            if table.head[0] == "policy":
                axes.plot(labels, [row[column] for row in table.rows], "o-", color=color, label=name)
        if table.head[0] == "policy":
            axes.legend(fontsize=8, frameon=False)
            axes.tick_params(axis="x", rotation=20 if len(labels) > 3 else 0)
            axes.set_ylim(bottom=0)
            axes.margins(x=0.15)
        axes.set_title(table.title, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3, axis="y")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=200)


def draw_edits(found: "Edited", prompt: str, path: Path) -> None:
    """The images of the first prompt, as drawn and after each change: one column each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = len(found.images["as drawn"]), len(found.images)
    figure = Figure(figsize=(1.6 * columns, 1.6 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"“{prompt}”: which tokens were drawn anew", fontsize=10)
    grid = figure.subplots(rows, columns, squeeze=False)
    for column, (name, images) in enumerate(found.images.items()):
        grid[0, column].set_title(name, fontsize=9)
        for row, image in enumerate(images):
            grid[row, column].imshow(image, interpolation="nearest")
            grid[row, column].set(xticks=[], yticks=[])
    figure.savefig(path, dpi=200)


def analyse(asked: Analyse) -> None:
    """Measure, then write all files at once."""
    from t2i_rl.outputs import check_free, whole_folder

    check_free(asked.out)
    import torch

    from models.registry import load
    from rewards.detectors.shapes import ShapesDetector
    from t2i_rl import checkpoints
    from t2i_rl.analysis import Observed, Setting, edited, observe
    from t2i_rl.config import Sampling
    from t2i_rl.prompts import balanced, load_prompts
    from t2i_rl.revisit import run_config
    from t2i_rl.run import CHECKPOINTS

    config = None if asked.run is None else run_config(asked.run)
    name, dtype = (asked.model, torch.float32) if config is None else (config.model, getattr(torch, config.dtype))
    kept = [] if asked.run is None else checkpoints.complete(asked.run / CHECKPOINTS)
    if asked.run is not None and not kept:
        raise UserError(f"{asked.run} has no checkpoint to compare with its model: wait for its first one")
    base = load(name, dtype, asked.device)
    own = Sampling(base.default_guidance) if config is None else config.rollout.sampling
    scale = own.guidance_scale if asked.guidance_scale is None else asked.guidance_scale
    texts = [prompt.text for prompt in balanced(load_prompts(asked.prompts), asked.per_tag)]
    sampling = Sampling(scale, own.temperature, own.top_k, own.top_p, own.negative_prompt)
    setting, detector = Setting(texts, asked.group_size, sampling, asked.seed), ShapesDetector()

    found = edited(base, setting, asked.share)
    stages: dict[str, Observed] = {name: observe(base, setting, detector)}
    for path in kept:
        stages[f"step {int(path.name.removeprefix('step-'))}"] = observe(
            load(str(path), dtype, asked.device), setting, detector, base
        )
    regions = (
        ("entropy", "Entropy of the guided distribution, nats", "The subject has the higher entropy"),
        ("kl", "KL(with prompt || without), nats", "The prompt changes the subject more than the background"),
    )
    tables = [edit_table(found), *filter(None, [drift_table(stages)]), *(region_table(stages, *row) for row in regions)]
    of_run = "" if asked.run is None else f", run {asked.run.name}"
    about = (
        f"{name}{of_run}: {len(texts)} prompts of {asked.prompts} with {asked.group_size} images each, "
        f"guidance {scale:g}, seed {asked.seed}. A claim holds here where the difference is larger than two of its "
        "standard errors between prompts."
    )
    with whole_folder(asked.out) as aside:
        text = "\n".join(["# Observations of tokens", "", about, "", *(table.markdown() for table in tables)])
        (aside / "analysis.md").write_text(text, encoding="utf-8")
        content = {"about": about, "tables": [vars(table) for table in tables]}
        (aside / "analysis.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        draw_tables(tables, aside / "analysis.png")
        draw_edits(found, texts[0], aside / "edits.png")
    print(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; returns the exit code."""
    try:
        analyse(tyro.cli(Analyse, args=arguments, description=__doc__))
    except (UserError, ModelError) as error:
        print(f"analyse_tokens: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
