"""What code that a person brings along is made of: the file of its module, or every .py file of its package."""

import sys
from pathlib import Path

NOBODYS = {"t2i_rl", "models", "rewards", "eval", "__main__", *sys.stdlib_module_names}


def sources(module: str | None) -> list[Path]:
    """The files of a module that is imported, without what it imports in its turn.

    None of our own code, nor where there is no file; and none of `__main__`, a notebook or a script, which changes
    whenever a run is to be started otherwise.
    """
    top = (module or "").partition(".")[0]
    found = None if top in NOBODYS else sys.modules.get(top)
    if folders := getattr(found, "__path__", None):
        return sorted(path for folder in folders for path in Path(folder).rglob("*.py"))
    file = Path(getattr(found, "__file__", None) or "")
    return [file] if file.is_file() else []
