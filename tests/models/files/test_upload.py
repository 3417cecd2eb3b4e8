"""`export --push`: what is uploaded, who sees it, and what is refused before anything is written."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from models.registry import load
from t2i_rl.cli import main
from t2i_rl.training.checkpoints import INVENTORY
from tests.conftest import random_janus


class Hub:
    """As much of the hub's client as an upload needs."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.private, self.broken = True, ""

    def create_repo(self, repository: str, **named: Any) -> None:
        self._call("create_repo", repo_id=repository, **named)

    def repo_info(self, repository: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)

    def upload_folder(self, **named: Any) -> None:
        self._call("upload_folder", files=sorted(path.name for path in named["folder_path"].iterdir()), **named)

    def _call(self, name: str, **named: Any) -> None:
        if self.broken == name:
            raise ConnectionError("nobody\nthere")
        self.calls.append((name, named))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr("models.files.upload.HfApi", lambda: hub)
    monkeypatch.setattr("models.files.upload.get_token", lambda: "hf_secret")
    monkeypatch.setattr("models.files.upload.constants.HF_HUB_OFFLINE", False)
    return hub


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole one, with what only training needs and a card."""
    folder = tmp_path / "checkpoint"
    random_janus().save(folder)
    (folder / "optimizer-00001-of-00001.safetensors").write_bytes(b"moments")
    (folder / INVENTORY).write_text('{"step": 1, "settings": {}, "history": {}, "files": {}}')
    (folder / "README.md").write_text(
        "library_name: transformers\n# card\n\n## To load it\n\nWith plain transformers\n"
    )
    return folder


def test_a_checkpoint_goes_there_without_the_optimizer(
    hub: Hub, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert main(["export", "--model", str(checkpoint), "--out", str(out), "--push", "me/mine"]) == 0
    (created, how), (uploaded, what) = hub.calls
    assert (created, how) == ("create_repo", {"repo_id": "me/mine", "private": True, "exist_ok": True})
    assert (uploaded, what["repo_id"], what["folder_path"]) == ("upload_folder", "me/mine", out)
    assert {"README.md", "config.json", "model.safetensors"} <= {*what["files"]}
    assert not {INVENTORY, "optimizer-00001-of-00001.safetensors"} & {*what["files"]}
    assert load(str(out)).layout == load(str(checkpoint)).layout
    assert (out / "README.md").read_text() == (checkpoint / "README.md").read_text()
    assert "https://huggingface.co/me/mine, private" in capsys.readouterr().out


def test_another_format_has_the_card_without_the_former_loading(hub: Hub, checkpoint: Path, tmp_path: Path):
    words = ["--out", str(tmp_path / "out"), "--format", "deepseek", "--push", "me/mine", "--public"]
    hub.private = False
    assert main(["export", "--model", str(checkpoint), *words]) == 0
    assert hub.calls[0][1]["private"] is False
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("# card\n\n## To load it\n\n```bash\nt2i-rl generate") and "plain transformers" not in card


def public(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    hub.private = False


def no_repository(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    hub.broken = "create_repo"


def no_token(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("models.files.upload.get_token", lambda: None)


def offline(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("models.files.upload.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (public, "everybody sees me/mine: say --public"),
        (no_repository, "me/mine cannot be written on the hub (nobody there)"),
        (no_token, "run `hf auth login`, or set HF_TOKEN"),
        (offline, "while HF_HUB_OFFLINE is set"),
    ],
)
def test_what_is_refused_writes_nothing(
    hub: Hub,
    checkpoint: Path,
    tmp_path: Path,
    spoil: Callable[[Hub, pytest.MonkeyPatch], None],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    spoil(hub, monkeypatch)
    assert main(["export", "--model", str(checkpoint), "--out", str(tmp_path / "out"), "--push", "me/mine"]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and "hf_secret" not in error
    assert not (tmp_path / "out").exists() and "upload_folder" not in dict(hub.calls)


def test_an_upload_that_fails_leaves_what_was_exported(
    hub: Hub, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    hub.broken = "upload_folder"
    assert main(["export", "--model", str(checkpoint), "--out", str(tmp_path / "out"), "--push", "me/mine"]) == 2
    assert "me/mine cannot be written on the hub (nobody there)" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--push", "mine"], "mine is no repository of the hub: name it as OWNER/NAME"),
        (["--public"], "--public says who sees a repository: name it with --push"),
        ([], "has no adapters to merge: name a --format"),
    ],
)
def test_words_that_do_not_fit(
    checkpoint: Path, tmp_path: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["export", "--model", str(checkpoint), "--out", str(tmp_path / "out"), *words]) == 2
    assert says in capsys.readouterr().err
