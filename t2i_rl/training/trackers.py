"""Where else the numbers of a run go: trackers of other packages, behind one small protocol.

They are extras, imported when asked for. A tracker that fails costs a warning and its own curve, never the run.
"""

import importlib
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from t2i_rl.configuration.trackers import TrackerName
from t2i_rl.errors import UserError
from t2i_rl.training.run_record import identity

PROJECT = "t2i-rl"


class Tracker(Protocol):
    """Takes the numbers of a run, step by step."""

    def log(self, numbers: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


def check_tracker(name: str) -> None:
    """Raises UserError for one whose package is not here."""
    if find_spec(name) is None:
        raise UserError(f"--track {name} needs the package {name}, which is not here: pip install {name}")


class Package:
    """One of the three: they are begun differently and spoken to alike."""

    def __init__(self, name: TrackerName, run: Path, settings: Mapping[str, Any]) -> None:
        """Raises UserError where it cannot be begun."""
        check_tracker(name)
        self.name, self.silent = name, False
        one = identity(run)  # swanlab's ids have 21 signs; trackio's runs go by their names
        own = {
            "trackio": {"name": f"{run.name}-{one[:6]}"},
            "wandb": {"name": run.name, "id": one, "dir": str(run)},
            "swanlab": {"experiment_name": run.name, "id": one, "logdir": str(run / "swanlab")},
        }[name]
        try:
            self.package: Any = importlib.import_module(name)
            self.package.init(project=PROJECT, config=dict(settings), resume="allow", **own)
        except Exception as error:  # each has its own: no connection, no key
            raise UserError(f"{name} cannot be begun ({_words(error)}): mend that, or leave out --track") from error

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._tried("log", dict(numbers), step=step)

    def close(self) -> None:
        self._tried("finish")

    def _tried(self, what: str, *given: Any, **named: Any) -> None:
        """Call it; once it fails it is warned of and left alone."""
        if self.silent:
            return
        try:
            getattr(self.package, what)(*given, **named)
        except Exception as error:
            self.silent = True
            print(f"warning: {self.name} is not told any more ({_words(error)}); the run goes on", file=sys.stderr)


def _words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
