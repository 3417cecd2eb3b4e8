"""What the tests of training runs share."""

from pathlib import Path

import pytest

from rewards.catalogue import REWARDS, RewardEntry
from tests.conftest import random_janus
from tests.t2i_rl.small_runs import Brightness


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of the random model."""
    folder = tmp_path_factory.mktemp("model") / "janus"
    random_janus().save(folder)
    return folder


@pytest.fixture
def brightness(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reward of `small_runs` under its name."""
    monkeypatch.setitem(REWARDS, "brightness", RewardEntry(lambda device: Brightness()))
