"""`t2i-rl curve`: what a run measured, for others to see."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from t2i_rl.commands.arguments import parse
from t2i_rl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CurveOf:
    """A run's curve as a small JSON to hand in: its settings, its numbers, versions and hardware, and nothing of yours:
    no folders, no names of machines, no addresses. t2i-rl report RUN FILE.json draws it beside another run.

    Attributes:
        run: the run folder, finished or not.
        out: the file, written anew; its name ends in .json.
    """

    run: tyro.conf.Positional[Path]
    out: Path

    def __post_init__(self) -> None:
        if self.out.suffix != ".json":
            raise UserError(f"{self.out} is no name of a JSON: end it in .json")


def curve(arguments: Sequence[str]) -> None:
    """write what a run measured as a small JSON, to be handed in and drawn beside others' runs"""
    wanted = parse(CurveOf, arguments, "curve")
    from t2i_rl.outputs import write_atomically
    from t2i_rl.reports.handed_in import of_run, to_text

    write_atomically(wanted.out, to_text(of_run(wanted.run)))
    print(f"{wanted.out}: look through it before you hand it in; docs/reproduce.md says where")
