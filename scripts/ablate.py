"""Train a grid of arms and seeds and put them side by side: one table, one figure.

    python scripts/ablate.py --grid scripts/grids/paper-cfg.toml --seeds 0 1 2 --processes 2 --threads 1
    python scripts/ablate.py --methods grpo cfg critical 'cfg[credit.statistic=k3]'

A grid is a TOML file with one entry per arm: a method, or a table of settings as in a run file. What all arms share
stands in `[shared]`; without a model there, the tiny one is trained.

    [shared]
    steps = 200
    [arms]
    cfg = "cfg"
    k3 = "cfg[credit.statistic=k3]"
    four = {method = "cfg", rollout.group-size = 4}

Each cell is a run folder of its own, ARM-SEED below `--out`; arms of the same settings share the first one's. A
finished cell is not trained again and a killed one goes on from its last checkpoint, so the same command can be stopped
and given again at any time; cells that have not run are shown empty. The table is written anew whenever a cell is
finished. Machines that share a folder take disjoint `--arms` or `--seeds`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import tyro

from models.errors import ModelError
from models.registry import find as find_model
from rewards.errors import RewardError
from t2i_rl.configuration.checks import check_settings
from t2i_rl.configuration.config import TrainConfig, fixed, read_config
from t2i_rl.configuration.places import rooted
from t2i_rl.configuration.presets import check_named, preset, preset_name
from t2i_rl.configuration.run_method import run_method
from t2i_rl.errors import DivergenceError, Stopped, UserError
from t2i_rl.settings import override, read_settings

if TYPE_CHECKING:
    from t2i_rl.reports.comparison import Arms

METHODS = ("grpo", "cfg", "critical")


@dataclass(frozen=True)
class Ablate:
    """The grid.

    Attributes:
        grid: TOML file of the arms, instead of `methods`.
        methods: a grid of methods alone, as in `t2i-rl train --method`; without a grid, grpo cfg critical.
        seeds: of the noise and the order of the prompts.
        arms: those that this process trains; all if not given. Every arm is in the table.
        against: the arm that the table takes differences from; the first that has run if not given.
        steps: of every run; the grid's or the preset's if not given.
        processes: cells trained at once.
        threads: of each process; torch's own number if not given. With another number a run ends in other digits.
        out: folder of the cells, `table.md` and `curves.png`; if not given, runs/ablate/NAME of the grid.
    """

    grid: Path | None = None
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    arms: tuple[str, ...] = ()
    against: str | None = None
    steps: int | None = None
    processes: int = 1
    threads: int | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.grid is not None and self.methods:
            raise UserError("--grid and --methods both name the arms: give one of them")
        for name, number in (("processes", self.processes), ("threads", self.threads)):
            if number is not None and number < 1:
                raise UserError(f"--{name} is {number}: it has to be at least 1")

    @property
    def folder(self) -> Path:
        return self.out or Path("runs/ablate") / ("methods" if self.grid is None else self.grid.stem)


def read_grid(path: Path) -> dict[str, TrainConfig]:
    """The settings of every arm of a file; whatever is wrong in an arm is refused here."""
    content = read_settings(path)
    arms = content.get("arms")
    if not (isinstance(arms, dict) and arms and content.keys() <= {"arms", "shared"}):
        raise UserError(f"{path} has to hold [arms], with an entry for each of them, and may hold [shared]")
    shared = content.get("shared", {})
    return {arm: configured(arm, settings, shared, path) for arm, settings in arms.items()}


def configured(arm: str, settings: object, shared: Mapping[str, Any], path: Path) -> TrainConfig:
    """An arm's settings over the shared ones over the preset of its model, reward and method."""
    if not arm or arm.startswith(".") or "/" in arm:
        raise UserError(f"{path} has the arm {arm!r}: its name becomes a folder's, so give it another")
    own = {"method": settings} if isinstance(settings, str) else settings

    def over(base: TrainConfig) -> TrainConfig:
        found: TrainConfig = override(override(base, shared, f"{path}, shared"), own, f"{path}, arm {arm}")
        if (found.seed, found.out) != (base.seed, base.out):
            raise UserError(f"{path}, arm {arm}, sets the seed or the folder: give them as --seeds and --out")
        return found

    chosen, named = over(TrainConfig()), {*shared, *own}
    words = chosen.model, chosen.reward if "reward" in named else None, chosen.method
    base = preset(*words)
    check_named(base.model, preset_name(*words), named)
    find_model(base.model)
    config = replace(over(base), method=base.method)
    check_settings(config, run_method(config))
    return config


def check_cell(run: Path, config: TrainConfig) -> None:
    """Refuse a cell that was trained with other settings than the grid has now."""
    written = run / "config.json"
    if not written.exists():
        return
    before, now = fixed(rooted(read_config(written))), fixed(rooted(config))
    for name in now:
        left_to_the_model = name.endswith("guidance_scale") and now[name] is None
        if before[name] != now[name] and not left_to_the_model:
            raise UserError(
                f"{run} was trained with {name} {before[name]!r}, the grid has {now[name]!r}: choose another --out"
            )


def train(config: TrainConfig) -> None:
    """Train the cell unless it is finished."""
    from t2i_rl.reports.comparison import read_run
    from t2i_rl.training.run import resume, start
    from t2i_rl.training.run_folder import CHECKPOINTS

    if read_run(config.out, config.steps, reference=False) is not None:
        return
    if (config.out / CHECKPOINTS).is_dir():
        resume(config.out, config.steps)
    else:
        start(config)


def set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def begin_worker(threads: int | None) -> None:
    """A process that is left alone would train on, beside the one that the same command starts next."""
    parent = parent_process()
    assert parent is not None
    Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    set_threads(threads)


def fill(cells: Sequence[TrainConfig], processes: int, threads: int | None) -> Iterator[None]:
    """Train the cells in their order, so many at once; returns control after each."""
    if processes == 1:
        set_threads(threads)
        for cell in cells:
            yield train(cell)
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), begin_worker, (threads,))
    try:
        for done in as_completed([pool.submit(train, cell) for cell in cells]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def run_grid(asked: Ablate) -> None:
    """Fill the cells that are asked for, and report on all."""
    if asked.grid is None:
        arms = {method: configured(method, method, {}, Path("--methods")) for method in asked.methods or METHODS}
    else:
        arms = read_grid(asked.grid)
    for arm in (*asked.arms, *([] if asked.against is None else [asked.against])):
        if arm not in arms:
            raise UserError(f"there is no arm {arm!r}: choose from {', '.join(arms)}")
    folders: dict[str, str] = {}
    for arm, config in arms.items():
        folders[arm] = next((folders[other] for other in folders if arms[other] == config), arm)
    cells = {
        (arm, seed): replace(
            config, out=asked.folder / f"{folders[arm]}-{seed}", seed=seed, steps=asked.steps or config.steps
        )
        for arm, config in arms.items()
        for seed in asked.seeds
    }
    for config in cells.values():
        check_cell(config.out, config)
    from t2i_rl.outputs import write_atomically
    from t2i_rl.pictures.figures import ornament
    from t2i_rl.reports.comparison import draw, table

    wanted = {cells[arm, seed].out: cells[arm, seed] for seed in asked.seeds for arm in asked.arms or arms}
    for _ in fill([*wanted.values()], asked.processes, asked.threads):
        write_atomically(asked.folder / "table.md", table(finished(cells), asked.against))
    with ornament("curves.png"):
        draw(finished(cells), asked.folder / "curves.png", asked.against)
    print(table(finished(cells), asked.against), end="")


def finished(cells: Mapping[tuple[str, int], TrainConfig]) -> Arms:
    """What the finished cells measured; an arm without any is there too."""
    from t2i_rl.reports.comparison import Finished, read_run

    found: dict[str, dict[int, Finished]] = {arm: {} for arm, _ in cells}
    for (arm, seed), config in cells.items():
        run = read_run(config.out, config.steps, run_method(config).needs_reference)
        if run is not None:
            found[arm][seed] = run
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the grid; returns the exit code."""
    try:
        run_grid(tyro.cli(Ablate, args=arguments, description=__doc__))
    except (UserError, ModelError, RewardError) as error:
        print(f"ablate: {error}", file=sys.stderr)
        return 2
    except DivergenceError as error:
        print(f"ablate: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"ablate: {stopped}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
