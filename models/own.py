"""Code that a person brings along, without a change here: `module:name`, or an entry point of an installed package.

Nothing here imports torch; what is brought may. What goes wrong in it is told apart from what goes wrong here.
"""

import re
import sys
import traceback
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from models.errors import ModelError

MODELS, METHODS, BENCHMARKS = "t2i_rl.models", "t2i_rl.methods", "t2i_rl.benchmarks"  # groups of entry points
SPELT = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"  # a module and a name in it
OURS = ("t2i_rl", "models", "rewards", "eval")
BROUGHT = set[str]()  # the packages of what was brought along, in this process


def entry_point(name: str, group: str) -> EntryPoint | None:
    """Where to find what goes by a name; None for no such name."""
    installed = [*entry_points(group=group, name=name)]
    if not installed and not re.fullmatch(SPELT, name):
        return None
    return installed[0] if installed else EntryPoint(name, name, group)


def brought(name: str, group: str) -> Any:
    """What goes by a name, from an installed package or from a module that is found from here; None for no such name.

    Raises ModelError for what cannot be imported.
    """
    if (found := entry_point(name, group)) is None:
        return None
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    package = found.module.partition(".")[0]
    BROUGHT.update({package}.difference(OURS))
    try:
        import_module(found.module)
    except ModuleNotFoundError as error:
        if found.module.endswith(".py"):
            raise ModelError(
                f"{name!r} names a file, and a module is wanted: leave out .py, as in {name.replace('.py:', ':')}"
            ) from error
        raise ModelError(
            f"{name} needs the module {error.name}, which is not here: start where its file lies, or install it"
        ) from error
    except Exception as error:
        *_, last = traceback.extract_tb(error.__traceback__)
        raise ModelError(f"{name} cannot be imported: {_said(error, last.filename, last.lineno)}") from error
    try:
        return found.load()
    except AttributeError as error:
        raise ModelError(f"the module {found.module} has no {found.attr}: choose another name of it") from error


def mistake(error: BaseException) -> str | None:
    """What went wrong in code that was brought along, and where; None for what went wrong here.

    The innermost of the places that are either decides: what other packages refuse, they were asked for.
    """
    for frame, line in reversed([*traceback.walk_tb(error.__traceback__)]):
        module = str(frame.f_globals.get("__name__"))
        package = module.partition(".")[0]
        if package in BROUGHT:
            place = _said(error, frame.f_code.co_filename, line)
            return f"{module}:{frame.f_code.co_qualname} failed: {place}"
        if package in OURS:
            return None
    return None


def _said(error: BaseException, file: str, line: int | None) -> str:
    said = " ".join(str(error).split()) or "without a word"
    return f"{type(error).__name__}: {said} ({file}, line {line})"
