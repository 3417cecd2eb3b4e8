"""`t2i-rl report`: one page about one or several runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from models.device import AUTO
from t2i_rl.commands.arguments import parse
from t2i_rl.errors import UserError
from t2i_rl.prompts.reading import check_words


@dataclass(frozen=True, kw_only=True)
class Report:
    """Curves, samples, token maps and settings of runs, as one HTML page that needs nothing else.

    Attributes:
        runs: run folders; several are laid over each other. Token maps that lie in them are shown too.
        prompt: draw the token maps of this prompt with the newest checkpoint of each run.
        device: where those are drawn: auto is cuda where there is one, else cpu.
        out: the page, written anew; report.html in the folder of a single run, if not given.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")] = ()
    prompt: Annotated[str | None, tyro.conf.arg(metavar="STR")] = None
    device: str = AUTO
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None

    def __post_init__(self) -> None:
        if not self.runs:
            raise UserError("no run is named: give at least one run folder")
        if len(self.runs) > 1 and self.out is None:
            raise UserError("several runs have no common folder for the page: name it with --out")
        if self.prompt is not None:
            if not self.prompt.strip():
                raise UserError("the prompt is empty: say what the images show")
            check_words(self.prompt, "the prompt")


def report(arguments: Sequence[str]) -> None:
    """write one page about one or several runs"""
    wanted = parse(Report, arguments, "report")
    from t2i_rl.outputs import write_atomically
    from t2i_rl.reports import report as pages

    read = [
        pages.read(run, name, wanted.prompt, wanted.device)
        for run, name in zip(wanted.runs, pages.names_of(wanted.runs), strict=True)
    ]
    out = wanted.out or wanted.runs[0] / pages.REPORT
    write_atomically(out, pages.report(read))
    print(f"{out}: open it in a browser")
