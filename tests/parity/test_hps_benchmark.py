"""The HPSv2 benchmark's figures against the original tool's."""

import json

import numpy as np
import pytest

from eval.hps import summarise
from tests.parity.golden import golden_folder


def test_figures_of_the_styles() -> None:
    folder = golden_folder("hpsv2")
    expected = json.loads((folder / "benchmark_expected.json").read_text())
    with np.load(folder / "benchmark_scores.npz") as held:
        scores = {style: held[style].astype(np.float64) for style in held.files}
    for figures in expected.values():
        average = figures.pop("average")
        found = summarise({style: scores[style][: of_style["n"]].tolist() for style, of_style in figures.items()})
        assert found.pop("average") == pytest.approx(average, rel=0, abs=1e-6)
        assert found.keys() == figures.keys()
        for style, of_style in figures.items():
            assert found[style] == pytest.approx(of_style, rel=0, abs=1e-6)
