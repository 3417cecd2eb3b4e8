"""`t2i-rl report`: one page about one or several runs."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from models.device import AUTO
from t2i_rl.commands.arguments import parse
from t2i_rl.errors import UserError
from t2i_rl.prompts.reading import check_words

HANDED_IN = ".json"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Curves, samples, token maps and settings of runs, as one HTML page that needs nothing else.

    Attributes:
        runs: run folders, and curves that others handed in (FILE.json, by t2i-rl curve); several are laid over each
            other. Token maps that lie in the folders are shown too.
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
        if self.out is None and (len(self.runs) > 1 or self.runs[0].suffix == HANDED_IN):
            raise UserError("only a single run has a folder for the page: name it with --out")
        if self.prompt is not None:
            if not self.prompt.strip():
                raise UserError("the prompt is empty: say what the images show")
            check_words(self.prompt, "the prompt")


def report(arguments: Sequence[str]) -> None:
    """write one page about one or several runs"""
    wanted = parse(Report, arguments, "report")
    from rewards.errors import printable
    from t2i_rl.outputs import write_atomically
    from t2i_rl.reports import handed_in
    from t2i_rl.reports import report as pages

    curves = {run: handed_in.read(run) for run in wanted.runs if run.suffix == HANDED_IN}
    folders = [run for run in wanted.runs if run not in curves]
    read = []
    for run, name in zip(wanted.runs, pages.names_of(wanted.runs), strict=True):
        if run not in curves:
            read.append(pages.read(run, name, wanted.prompt, wanted.device))
            continue
        own = handed_in.of_run(folders[0]) if folders else curves[wanted.runs[0]]
        shown, left_out = handed_in.beside(curves[run], own, name)
        for why in left_out:
            print(printable(f"warning: {run}: {why}, so that curve is left out"), file=sys.stderr)
        read.append(shown)
    out = wanted.out or wanted.runs[0] / pages.REPORT
    write_atomically(out, pages.report(read))
    print(f"{out}: open it in a browser")
