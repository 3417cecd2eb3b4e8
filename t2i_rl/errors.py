"""The error that is the user's to mend: one sentence that says what is wrong, where, and how to mend it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

# torch has a class for a GPU's memory alone; of a CPU's, of cuBLAS' and of a Mac's it speaks in RuntimeErrors.
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|ALLOC_FAILED")


class UserError(Exception):
    """Bad input. The command line prints the sentence and exits with code 2."""


class DivergenceError(Exception):
    """Logits, a loss, a gradient or weights stopped being finite. A run stops before it keeps them; exit code 1."""


class Stopped(Exception):  # noqa: N818 - it is none
    """A run that was asked to stop has, and says how it goes on: no error; exit code 0."""


def is_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, a machine's or a GPU's."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error))))


@contextmanager
def fitting(what: str, mend: str) -> Iterator[None]:
    """Raises UserError for what does not fit into memory: what it was, and what makes it smaller."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_of_memory(error):
            raise
        raise UserError(f"there is not enough memory for {what}: choose {mend}") from error
