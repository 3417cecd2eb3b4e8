"""From the name of files, here or on the hub, to where they lie here."""

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.file_download import repo_folder_name

from models.errors import ModelError


def fetch(source: str | Path, patterns: Sequence[str] = ("*",)) -> Path:
    """A local file or folder as it is; else `owner/name` or `owner/name/file` of the hub, downloaded once.

    A repository stays at the revision that was downloaded first, so that a resumed run has the reference it began with.
    patterns: which files of a whole repository are wanted. Raises ModelError for what is neither here nor there.
    """
    if Path(source).exists():
        return Path(source)
    found = re.fullmatch(r"(\w[\w.-]*/[\w.-]+)(?:/(.+))?", str(source))
    if found is None:
        raise ModelError(f"{source} does not exist, and is no owner/name of the hub: check the path")
    repository, file = found.groups()
    if file is None:
        get = partial(snapshot_download, repository, allow_patterns=list(patterns), revision=seen_revision(repository))
    else:
        get = partial(hf_hub_download, repository, file, revision=seen_revision(repository))
    try:
        return Path(get())
    except Exception as error:  # the hub's client, the network and every kind of proxy raise their own
        with suppress(Exception):  # what lies here needs none of them
            return Path(get(local_files_only=True))
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{source} is neither a path here, nor in {constants.HF_HUB_CACHE}, nor can it be had from the hub: run "
            f"`hf download {repository}` where there is a connection and give the path ({reason})"
        ) from error


def seen_revision(repository: str) -> str | None:
    """The commit at which the hub's cache holds a repository; None where it does not."""
    ref = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model") / "refs" / "main"
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else ""
    return commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None
