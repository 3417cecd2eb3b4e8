"""The pictures that a run's questions are about, which stay the same for as long as it goes on.

RUN/pictures.json has the SHA-256 of each file, by what the training prompts and the held-out ones call it. A run from
before there was such a file is held to the names alone.
"""

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from rewards.files.pins import sha256
from t2i_rl.errors import UserError
from t2i_rl.prompts.files import IMAGES
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.prompts.questions import where
from t2i_rl.settings import read_settings

RECORD = "pictures.json"


def as_record(prompts: Sequence[Prompt], heldout: Sequence[Prompt]) -> str:
    """What the file holds."""
    each = {"prompts": prompts, "heldout": heldout}
    found = {which: {name: digest for _, name, _, digest in _files(some)} for which, some in each.items()}
    return json.dumps(found, indent=1) + "\n"


def check_pictures(run: Path, which: Literal["prompts", "heldout"], prompts: Sequence[Prompt]) -> None:
    """Raise UserError, with its line, for a picture of a prompt that is not the one that the run began with."""
    record = run / RECORD
    if not record.exists():
        return
    held = read_settings(record)
    for prompt, name, picture, now in _files(prompts):
        try:
            before = str(held[which][name])
        except (KeyError, TypeError) as error:
            raise UserError(f"{record} has no SHA-256 of {name}: put it back, or start a new run") from error
        if now != before:
            raise UserError(
                f"{where(prompt)} shows {picture}, which is not the picture that {run} began with (SHA-256 "
                f"{before[:8]}..., not {now[:8]}...): put that back, or start a new run with another --out"
            )


def _files(prompts: Sequence[Prompt]) -> Iterator[tuple[Prompt, str, Path, str]]:
    """Every picture that is a file, with its prompt, its name there and its SHA-256, for which it is read once."""
    digest = cache(sha256)
    for prompt in prompts:
        for name, picture in zip(prompt.metadata.get(IMAGES, ()), prompt.pictures, strict=False):
            if isinstance(picture, Path):
                try:
                    yield prompt, name, picture, digest(picture)
                except OSError as error:
                    raise UserError(
                        f"{where(prompt)} shows {picture}, which cannot be read ({error.strerror}): put it back"
                    ) from error
