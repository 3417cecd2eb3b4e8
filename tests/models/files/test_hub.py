"""Files of the hub: what is there already, and at which revision the rest is asked for."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from models.errors import ModelError
from models.files import hub

FIRST, OTHER = "a1" * 20, "b2" * 20


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with one file of a repository, at the revision that was its newest then."""
    repository = tmp_path / "models--owner--name"
    for commit in (FIRST, OTHER):
        (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / FIRST / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(FIRST)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return repository


def test_what_is_there_is_found_without_a_connection(cache: Path):
    assert hub.fetch("owner/name") == cache / "snapshots" / FIRST
    assert hub.fetch("owner/name/config.json") == cache / "snapshots" / FIRST / "config.json"
    assert hub.fetch(cache) == cache
    with pytest.raises(ModelError, match="neither a path here, nor in"):
        hub.fetch("owner/other")
    with pytest.raises(ModelError, match="does not exist, and is no owner/name"):
        hub.fetch("no such/place/")


@pytest.mark.parametrize(
    "error",
    [
        ImportError("Using SOCKS proxy, but the 'socksio' package is not installed."),
        ValueError("Unknown scheme for proxy URL URL('socks4://127.0.0.1:1080')"),
        RuntimeError("Could not determine home directory."),
    ],
    ids=["no socksio", "no such proxy", "no home"],
)
def test_what_is_there_needs_no_proxy(cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception):
    """Without local_files_only the hub's client is made first, which reads the environment."""

    def client(function: Callable[..., str]) -> Callable[..., str]:
        def asked(*names: str, local_files_only: bool = False, **more: object) -> str:
            if not local_files_only:
                raise error
            return function(*names, local_files_only=True, **more)

        return asked

    for name in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(hub, name, client(getattr(hub, name)))
    assert hub.fetch("owner/name") == cache / "snapshots" / FIRST
    assert hub.fetch("owner/name/config.json") == cache / "snapshots" / FIRST / "config.json"
    for source in ("owner/other", "owner/name/absent.pt"):
        with pytest.raises(ModelError, match=f"nor can it be had from the hub.*{re.escape(str(error))}"):
            hub.fetch(source)


def test_further_files_are_asked_for_at_the_revision_seen_first(cache: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, str | None]] = []

    def download(repository: str, *file: str, revision: str | None = None, **more: object) -> str:
        asked.append((repository, revision))
        return str(cache)

    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    for source in ("owner/name", "owner/name/weights.pt", "owner/new"):
        hub.fetch(source)
    assert asked == [("owner/name", FIRST), ("owner/name", FIRST), ("owner/new", None)]
