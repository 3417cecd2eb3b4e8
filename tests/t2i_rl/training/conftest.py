"""A finished run for the tests of run folders."""

from pathlib import Path

import pytest

from rewards.catalogue import REWARDS, RewardEntry
from t2i_rl.cli import main
from tests.t2i_rl.small_runs import Brightness, train_words


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    run = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REWARDS, "brightness", RewardEntry(lambda device: Brightness()))
        assert main(train_words(model, run)) == 0
    return run
