"""T2I-CompBench's score of counted objects (category numeracy): half for being there, half for the exact number."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from eval.compbench.boxes import Labelled, area, iou, overlap
from t2i_rl.errors import UserError

NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}
ALIASES = {
    "boy": "person",
    "girl": "person",
    "man": "person",
    "woman": "person",
    "ship": "boat",
    "telivision": "tv",
    "goldfish": "fish",
    "painting": "picture",
}
SAME = 0.9  # IoU, or share of either box, over which two boxes of one label are one object


def read_nouns(path: Path) -> dict[str, str]:
    """Singular by singular and by plural, from a table of lines "cup - cups". Raises UserError with the line."""
    nouns: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        singular, dash, plural = (word.strip() for word in line.partition(" - "))
        if not (singular and dash and plural):
            raise UserError(f'{path}, line {number} is not "SINGULAR - PLURAL": copy the table again')
        nouns |= {plural: singular, singular: singular}
    return nouns


def counted(tokens: Sequence[str], nouns: Mapping[str, str]) -> list[tuple[str, int]]:
    """What a prompt asks for, and how many: a number word, then a noun of one or two words. Nouns may repeat."""
    asked = []
    for place, token in enumerate(tokens):
        if token not in NUMBERS:
            continue
        following = tokens[place + 1 : place + 3]
        word = next((word for word in (" ".join(following[:1]), " ".join(following)) if word in nouns), None)
        if word is not None:
            singular = nouns[word]
            asked.append((ALIASES.get(singular, singular), NUMBERS[token]))
    return asked


def same(a: Labelled, b: Labelled) -> bool:
    """Whether two boxes show one object."""
    shared = overlap(a.box, b.box, last_pixel=1)
    smaller = min(area(a.box, last_pixel=1), area(b.box, last_pixel=1))
    return a.label == b.label and (iou(a.box, b.box, last_pixel=1) > SAME or (smaller > 0 and shared / smaller > SAME))


def distinct(found: Sequence[Labelled]) -> list[Labelled]:
    """Without what shows an object that came before."""
    kept: list[Labelled] = []
    for one in found:
        if not any(same(one, other) for other in kept):
            kept.append(one)
    return kept


def numeracy_score(
    asked: Sequence[tuple[str, int]], found: Sequence[Labelled], vocabulary: Collection[str] | None = None
) -> float:
    """The score of one image, 0..1: the objects' shares are equal. vocabulary: the detector's labels.

    Where the detector has no such label, all labels that contain the word stand for it. Raises ValueError for a
    prompt that asks for nothing countable (the released code divides by zero).
    """
    if not asked:
        raise ValueError("the prompt names no number of known objects")
    kept = distinct(found)
    for noun, _ in asked:
        if vocabulary is not None and noun not in vocabulary:
            kept = [replace(one, label=noun) if noun in one.label else one for one in kept]
    numbers = {noun: sum(one.label == noun for one in kept) for noun, _ in asked}
    return sum(0.5 * (numbers[noun] > 0) + 0.5 * (numbers[noun] == wanted) for noun, wanted in asked) / len(asked)
