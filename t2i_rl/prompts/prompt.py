"""A prompt, its tag, what tells lists of prompts apart, and lists in which every tag has the same number."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

UNTAGGED = "all"


@dataclass(frozen=True)
class Prompt:
    """A prompt and what its reward needs to know: for GenEval its record (`tag`, `include`, `exclude`).

    pictures: what the marks `<image>` in the text stand for, as files or as pixels; a model that draws reads none.
    origin: the file and the line that it was read from, for errors; "" where it was read from none.
    """

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    pictures: tuple[Path | UInt8[np.ndarray, "H W 3"], ...] = field(default=(), compare=False, kw_only=True)
    origin: str = field(default="", compare=False)

    @property
    def key(self) -> str:
        """What tells prompts apart: the text, behind it a digest of the pictures if there are any."""
        if not self.pictures:
            return self.text
        return f"{self.text}\0{hashlib.sha256(repr([*map(_told, self.pictures)]).encode()).hexdigest()}"


def _told(picture: Path | UInt8[np.ndarray, "H W 3"]) -> str:
    """A file by where it is, pixels by what they are."""
    return str(picture) if isinstance(picture, Path) else f"{picture.shape} {picture.tobytes().hex()}"


def tag_of(prompt: Prompt) -> str:
    return str(prompt.metadata.get("tag", UNTAGGED))


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """The SHA-256 of prompts with their metadata, in their order; pictures that are files count by name."""
    content = json.dumps([[_content(prompt), dict(prompt.metadata)] for prompt in prompts], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _content(prompt: Prompt) -> str:
    """Files are named in the metadata, relative to the prompts, wherever these lie."""
    return prompt.text if any(isinstance(picture, Path) for picture in prompt.pictures) else prompt.key


def balanced(prompts: Sequence[Prompt], per_tag: int) -> list[Prompt]:
    """The same number of prompts of every tag: its prompts take turns, repeated as often as needed."""
    by_tag: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_tag.setdefault(tag_of(prompt), []).append(prompt)
    return [prompt for group in by_tag.values() for prompt in islice(cycle(group), per_tag)]
