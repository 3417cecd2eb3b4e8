"""Output folders that are there whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from t2i_rl.errors import UserError


def check_free(folder: Path) -> None:
    """The folder can be written to: it does not exist yet, or is empty. Raises UserError."""
    if folder.is_dir():
        if any(folder.iterdir()):
            raise UserError(f"the output folder {folder} is not empty: name another one, or remove it")
    elif folder.exists():
        raise UserError(f"the output folder {folder} is a file: name another one")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes its name when all is written, and vanishes when something fails."""
    check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield aside
        aside.chmod(0o755)
        aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
