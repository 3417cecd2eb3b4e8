"""What the tests of the model families share: the numbers of the set that `GOLDEN` names in each."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.parity.golden import golden_folder


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    return golden_folder(request.module.GOLDEN)


@pytest.fixture(scope="module")
def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="module")
def io(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "io.safetensors")
