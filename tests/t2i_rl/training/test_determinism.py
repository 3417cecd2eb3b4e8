"""A deterministic run: how torch is set meanwhile, and what is said of an operation that cannot be so."""

import os

import pytest
import torch

from t2i_rl.errors import UserError
from t2i_rl.training.determinism import WORKSPACE, determinism


@pytest.fixture(autouse=True)
def workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is put back afterwards."""
    monkeypatch.setenv(WORKSPACE, "")
    monkeypatch.delenv(WORKSPACE)


def state() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark


def test_only_what_is_wanted_and_only_meanwhile(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = state()
    with determinism(False):
        assert state() == before and WORKSPACE not in os.environ
    with determinism(True):
        assert state() == (True, True, False)
        # If torch only warned, its memory-efficient attention would stay as it is, though it has a deterministic form.
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert state() == before and os.environ[WORKSPACE] == ":4096:8"


def test_a_workspace_that_was_chosen_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with determinism(True):
        assert os.environ[WORKSPACE] == ":16:8"


def test_an_operation_that_has_no_deterministic_form():
    words, says = "histc_cuda does not have a deterministic form. You can turn ...", "start it without --deterministic"
    with (
        pytest.raises(UserError, match=rf"\(histc_cuda does not have a deterministic form\): {says}"),
        determinism(True),
    ):
        raise RuntimeError(words)
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="another error"), determinism(True):
        raise RuntimeError("another error")
