"""Train a grid of methods and seeds on the tiny model and put them side by side: one table, one figure.

    python scripts/ablate.py --methods grpo cfg critical --seeds 0 1 2

Each cell is a run folder of its own below `--out`. A finished cell is not trained again and a killed one is
resumed, so the grid can be stopped at any time; cells that have not run are shown empty. Give several
processes disjoint `--methods` or `--seeds` to fill the grid in parallel, then run once more for the table.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from t2i_rl.config import preset
from t2i_rl.run import CHECKPOINTS, resume, start
from t2i_rl.tracking import read_metrics


@dataclass(frozen=True)
class Ablate:
    """The grid.

    Attributes:
        methods: as in `t2i-rl train --method`.
        seeds: of the noise and the order of the prompts.
        steps: of every run; the preset's if not given.
        out: folder of the runs, `table.md` and `curves.png`.
    """

    methods: tuple[str, ...] = ("grpo", "cfg", "critical")
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int | None = None
    out: Path = Path("runs/ablate")


def curve(run: Path) -> dict[int, float]:
    """The held-out score at each evaluated step."""
    return {int(row["step"]): row["heldout"] for row in read_metrics(run) if "heldout" in row}


def train(run: Path, method: str, seed: int, steps: int | None) -> None:
    """Train the cell unless it is finished."""
    config = preset("tiny", "shapes", method)
    config = dataclasses.replace(config, out=run, seed=seed, steps=steps or config.steps)
    if config.steps in curve(run):
        return
    if (run / CHECKPOINTS).exists():
        resume(run, config.steps)
    else:
        shutil.rmtree(run, ignore_errors=True)  # killed before its first checkpoint
        start(config)


def spread(values: Sequence[float]) -> str:
    """Mean and, from two seeds on, standard deviation over the seeds."""
    if not values:
        return ""
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def table(curves: dict[str, list[dict[int, float]]]) -> str:
    """Markdown: one row per method, one column per evaluated step; mean ± standard deviation over seeds."""
    steps = sorted({step for runs in curves.values() for run in runs for step in run})
    lines = ["| method | seeds | " + " | ".join(f"step {step}" for step in steps) + " |"]
    lines.append("|---" * (len(steps) + 2) + "|")
    for method, runs in curves.items():
        cells = [spread([run[step] for run in runs if step in run]) for step in steps]
        lines.append(f"| {method} | {sum(bool(run) for run in runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(curves: dict[str, list[dict[int, float]]], path: Path) -> None:
    """The mean of each method over steps, its seeds as thin lines."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (method, runs) in enumerate(curves.items()):
        color = f"C{number}"
        for run in runs:
            axes.plot(list(run), list(run.values()), color=color, linewidth=0.7, alpha=0.4)
        steps = sorted({step for run in runs for step in run})
        means = [fmean([run[step] for run in runs if step in run]) for step in steps]
        axes.plot(steps, means, "o-", color=color, label=method)
    axes.set(xlabel="step", ylabel="held-out accuracy")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main(grid: Ablate) -> None:
    for seed in grid.seeds:
        for method in grid.methods:
            train(grid.out / f"{method}-{seed}", method, seed, grid.steps)
    curves = {method: [curve(grid.out / f"{method}-{seed}") for seed in grid.seeds] for method in grid.methods}
    (grid.out / "table.md").write_text(table(curves))
    draw(curves, grid.out / "curves.png")
    print(table(curves), end="")


if __name__ == "__main__":
    main(tyro.cli(Ablate, description=__doc__))
