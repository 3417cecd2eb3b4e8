"""A finished run for the tests of run folders, and what runs of answers need."""

from pathlib import Path

import pytest

from rewards.catalogue import REWARDS, RewardEntry
from t2i_rl.cli import main
from tests.models.small_qwen_vl import KINDS, random_qwen
from tests.t2i_rl.small_runs import Brightness, train_words
from tests.t2i_rl.training.answering import ShareOfWord


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    run = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REWARDS, "brightness", RewardEntry(lambda device: Brightness()))
        assert main(train_words(model, run)) == 0
    return run


@pytest.fixture
def word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REWARDS, "word", RewardEntry(lambda device: ShareOfWord(), scores="answers"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "qwen"
    random_qwen(KINDS[0], tmp_path / "processor").save(folder)
    return folder
