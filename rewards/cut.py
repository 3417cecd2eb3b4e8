"""Prompts that are longer than what reads them: networks read so many tokens, and what is beyond counts for nothing."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple


class Cut(NamedTuple):
    """reader: the scorer or model. tokens: that it reads, those at the ends included. prompts: how many have more."""

    reader: str
    tokens: int
    prompts: int


def added(cuts: Iterable[Cut]) -> list[Cut]:
    """One of each reader, over all its prompts."""
    numbers: Counter[tuple[str, int]] = Counter()
    for cut in cuts:
        numbers[cut.reader, cut.tokens] += cut.prompts
    return [Cut(*key, number) for key, number in numbers.items()]


def sentence(cut: Cut, of: int, which: str) -> str:
    """What is said where a run begins. which: such as "held-out prompts", of which there are `of`."""
    longer = f"{cut.prompts} of {of} {which} {'is' if cut.prompts == 1 else 'are'} longer"
    return f"{longer} than the {cut.tokens} tokens that {cut.reader} reads: what is beyond counts for nothing"
