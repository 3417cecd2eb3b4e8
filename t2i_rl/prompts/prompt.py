"""A prompt, its tag, and lists in which every tag has the same number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

UNTAGGED = "all"


@dataclass(frozen=True)
class Prompt:
    """A prompt and what its reward needs to know: for GenEval its record (`tag`, `include`, `exclude`)."""

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


def tag_of(prompt: Prompt) -> str:
    return str(prompt.metadata.get("tag", UNTAGGED))


def balanced(prompts: Sequence[Prompt], per_tag: int) -> list[Prompt]:
    """The same number of prompts of every tag: its prompts take turns, repeated as often as needed."""
    by_tag: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_tag.setdefault(tag_of(prompt), []).append(prompt)
    return [prompt for group in by_tag.values() for prompt in islice(cycle(group), per_tag)]
