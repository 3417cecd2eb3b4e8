"""Grids are trained on the random model and the reward of `tests.t2i_rl`."""

from tests.t2i_rl.conftest import brightness, model

__all__ = ["brightness", "model"]
