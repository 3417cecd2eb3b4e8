"""How far an evaluation is: one line for each stage, with its images or answers a second and the time that is left."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from rewards.errors import printable

PAUSE = 30.0  # seconds between two lines where there is no terminal

Advance = Callable[[int], None]
Stages = Callable[[str, int], Advance]  # begins a stage of so many images; what it returns says how many more are done


class _Speed(ProgressColumn):
    """Samples a second."""

    def __init__(self, samples: str) -> None:
        super().__init__()
        self.samples = samples

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} {self.samples}/s")


@contextmanager
def display(silent: bool, samples: str = "images", console: Console | None = None) -> Iterator[Stages]:
    """samples: what is counted.

    On a terminal live bars; elsewhere plain lines, one every `PAUSE` seconds and one at the end of a stage."""
    console = console or Console()
    if silent:
        yield lambda label, total: lambda images: None
    elif not console.is_terminal:
        yield lambda label, total: _Lines(console, label, total, samples).advance
    else:
        description = TextColumn("{task.description}", markup=False)  # it has names of the user's
        columns = description, BarColumn(), MofNCompleteColumn(), _Speed(samples), TimeRemainingColumn()
        with Progress(*columns, console=console) as progress:

            def begin(label: str, total: int) -> Advance:
                task = progress.add_task(printable(label), total=total)
                return lambda images: progress.advance(task, images)

            yield begin


@dataclass
class _Lines:
    """One stage, as lines of text."""

    console: Console
    label: str
    total: int
    samples: str

    def __post_init__(self) -> None:
        self.done, self.began = 0, time.monotonic()
        self.said = self.began

    def advance(self, images: int) -> None:
        now = time.monotonic()
        self.done += images
        if self.done < self.total and now - self.said < PAUSE:
            return
        self.said = now
        speed = self.done / max(now - self.began, 1e-6)
        left = timedelta(seconds=round((self.total - self.done) / speed))
        line = f"{printable(self.label)}: {self.done}/{self.total}, {speed:.1f} {self.samples}/s, {left} left"
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)
