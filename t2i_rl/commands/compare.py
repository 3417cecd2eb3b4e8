"""`t2i-rl compare`: evaluations side by side."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from t2i_rl.commands.arguments import parse
from t2i_rl.errors import UserError
from t2i_rl.training.run_folder import is_run


@dataclass(frozen=True, kw_only=True)
class Compare:
    """A table of finished evaluations of one benchmark, with 95 % intervals over prompts and paired differences.

    Attributes:
        runs: the folders that t2i-rl eval wrote; the others are compared with the first.
        out: files to write the table into: .md, .tex or .csv by their suffix.
        published: add what the two papers' tables state of these figures, each row with its table; refused for runs of
            other prompts, another number of images of each, or by other judges than the papers'.
        draws: of the bootstrap.
        seed: of the bootstrap.
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN ...", help_behavior_hint="")]
    out: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH ...")] = ()
    published: bool = False
    draws: int = 2000
    seed: int = 0


def compare(arguments: Sequence[str]) -> None:
    """set evaluations side by side, with intervals and paired differences"""
    wanted = parse(Compare, arguments, "compare")
    if not wanted.runs:
        raise UserError("there is nothing to compare: name folders of evaluations, t2i-rl compare RUN_A RUN_B")
    if len({*wanted.runs}) < len(wanted.runs):
        raise UserError("a run is named more than once: name each once")
    if wanted.draws < 1:
        raise UserError(f"draws is {wanted.draws}: it has to be at least 1")
    from eval.tables.compare import compare as compare_runs
    from eval.tables.compare import read_run, shared_metrics
    from eval.tables.compare_table import WRITERS, markdown, terminal
    from eval.tables.published import rows_of
    from rewards.errors import printable
    from t2i_rl.outputs import write_atomically

    for path in wanted.out:
        if path.suffix not in WRITERS:
            raise UserError(f"{path} is no kind of table: end its name in {', '.join(WRITERS)}")
    for path in wanted.runs:
        if is_run(path):
            raise UserError(
                f"{path} is a training run, not an evaluation: t2i-rl report {path} shows it, and "
                f"t2i-rl eval BENCHMARK --model {path} makes one"
            )
    runs = [read_run(path) for path in wanted.runs]
    comparison = compare_runs(runs, wanted.draws, wanted.seed)
    stated = rows_of(runs, shared_metrics(runs)) if wanted.published else []
    for path in wanted.out:
        write_atomically(path, WRITERS[path.suffix](comparison, stated))
    text = terminal(comparison, stated) if sys.stdout.isatty() else printable(markdown(comparison, stated))
    print(text, end="")
