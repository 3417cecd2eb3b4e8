"""Code that a person brings along, without a change here: `module:name`, or an entry point of an installed package.

Nothing here imports torch; what is brought may.
"""

import re
import sys
import traceback
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from models.errors import ModelError

MODELS, METHODS, BENCHMARKS = "t2i_rl.models", "t2i_rl.methods", "t2i_rl.benchmarks"  # groups of entry points
SPELT = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"  # a module and a name in it


def brought(name: str, group: str) -> Any:
    """What goes by a name, from an installed package or from a module that is found from here; None for no such name.

    Raises ModelError for what cannot be imported.
    """
    installed = [*entry_points(group=group, name=name)]
    if not installed and not re.fullmatch(SPELT, name):
        return None
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    found = installed[0] if installed else EntryPoint(name, name, group)
    try:
        return found.load()
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{name} needs the module {error.name}, which is not here: start where its file lies, or install it"
        ) from error
    except AttributeError as error:
        raise ModelError(f"the module {found.module} has no {found.attr}: choose another name of it") from error
    except Exception as error:
        *_, last = traceback.extract_tb(error.__traceback__)
        said = " ".join(str(error).split())
        raise ModelError(
            f"{name} cannot be imported: {type(error).__name__}: {said} ({last.filename}, line {last.lineno})"
        ) from error
