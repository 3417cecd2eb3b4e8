"""The benchmarks on a model that takes no time."""

import pytest

from t2i_rl.speed.settings import SHAPES, Shape


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "small", Shape(layers=2, width=64, mlp=96, heads=2, codes=128, grid=4))
    monkeypatch.setattr("t2i_rl.speed.measuring.copy_bandwidth", lambda device: 1e9)
