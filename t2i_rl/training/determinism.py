"""Operations that give the same bits each time on a GPU too, at the price of some speed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from t2i_rl.errors import UserError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # of fixed size, so that cuBLAS always chooses alike; read at its first product


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Only deterministic algorithms inside, if wanted. Raises UserError for an operation that has none."""
    if not wanted:
        yield
        return
    os.environ.setdefault(WORKSPACE, ":4096:8")
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = str(error).partition(".")[0]
        raise UserError(f"the run cannot be deterministic ({reason}): start it without --deterministic") from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]
