"""A folder as a repository of the hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token

from models.errors import ModelError


def claim(repository: str, public: bool) -> None:
    """Make the repository, private unless told otherwise; one of one's own that is there will do.

    Raises ModelError where that cannot be, and for one that everybody sees where that was not asked for.
    """
    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"{repository} cannot be written while HF_HUB_OFFLINE is set: unset it, or leave out --push")
    if get_token() is None:
        raise ModelError("the hub does not know who you are: run `hf auth login`, or set HF_TOKEN, or leave out --push")
    with _naming(repository):
        api = HfApi()
        api.create_repo(repository, private=not public, exist_ok=True)
        seen = not api.repo_info(repository).private
    if seen and not public:
        raise ModelError(f"everybody sees {repository}: say --public if that is meant, or name another one")


def push(folder: Path, repository: str) -> None:
    """Upload the folder, in one commit. Raises ModelError where that cannot be."""
    with _naming(repository):
        HfApi().upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload by t2i-rl export")


@contextmanager
def _naming(repository: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub's client, the network and every kind of proxy raise their own
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{repository} cannot be written on the hub ({reason}): look at its name, your token's rights and the "
            "connection"
        ) from error
