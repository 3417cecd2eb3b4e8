"""Prompts in GenEval's grammar: the benchmark itself, prompts to choose checkpoints by, and training prompts.

A record is `{tag, include, exclude (counting only), prompt}`. `draw` makes one at random; the order in which it asks
the generator for its choices is the benchmark's, so that `benchmark` comes out byte for byte from the benchmark's own
seed (Ghosh et al. 2023, "GenEval"; its checksum is compared). Training prompts follow Flow-GRPO's mix of tags (Liu et
al. 2025, "Flow-GRPO") and leave out every prompt of the benchmark and of the held-out set. No two of the three share a
prompt, word for word.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from rewards.detectors.coco import CLASSES
from rewards.geneval.rules import COLORS, RELATIONS, TAGS
from t2i_rl.errors import UserError
from t2i_rl.prompts.shapes_world import NUMBERS, Record

# fmt: off
# Flow-GRPO's split of unseen objects: trained on 60 classes, tested on these.
UNSEEN = (
    "car", "traffic light", "fire hydrant", "dog", "elephant", "umbrella", "frisbee", "skis", "baseball bat",
    "skateboard", "wine glass", "cup", "bowl", "apple", "bed", "toilet", "microwave", "book", "clock", "toothbrush",
)
# fmt: on
SEEN = tuple(name for name in CLASSES if name not in UNSEEN)
NEVER_COLOURED = "person"
MIX = {"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1}  # Flow-GRPO's, in tenths

BENCHMARK_SEED = 43
BENCHMARK_DRAWS = 100  # of each tag but single_object, which has every class once
BENCHMARK_SHA256 = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"  # evaluation_metadata.jsonl

HELDOUT_SEED = 44
HELDOUT_DRAWS = 40  # of each tag that is trained on; of counting, 120 prompts are left to train on
HELDOUT_SHA256 = "1b092d5919428a8cd26a6313850d5365dbead96195523fa39b94fb27bec12175"  # geneval-heldout.jsonl


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _plural(name: str) -> str:
    return name + ("es" if name.endswith("s") else "s")


def _record(tag: str, words: str, *include: Record, **more: object) -> Record:
    return {"tag": tag, "include": list(include), **more, "prompt": f"a photo of {words}"}


def _thing(name: str, count: int = 1, **more: object) -> Record:
    return {"class": name, "count": count, **more}


def single_object(name: str) -> Record:
    return _record("single_object", _article(name), _thing(name))


def draw(tag: str, classes: Sequence[str], generator: np.random.Generator) -> Record:
    """A record of the tag with uniform choices among the classes; two objects, or their colours, always differ."""

    def two(choices: Sequence[str]) -> Iterator[str]:
        return (choices[index] for index in generator.choice(len(choices), size=2, replace=False))

    def one(choices: Sequence[str]) -> str:
        return choices[generator.choice(len(choices))]

    def coloured() -> list[str]:
        return [name for name in classes if name != NEVER_COLOURED]

    match tag:
        case "single_object":
            return single_object(one(classes))
        case "two_object":
            a, b = two(classes)
            return _record(tag, f"{_article(a)} and {_article(b)}", _thing(a), _thing(b))
        case "counting":
            name, count = one(classes), int(generator.integers(min(NUMBERS), max(NUMBERS) + 1))
            words = f"{NUMBERS[count]} {_plural(name)}"
            return _record(tag, words, _thing(name, count), exclude=[_thing(name, count + 1)])
        case "colors":
            name, color = one(coloured()), one(COLORS)
            return _record(tag, f"{_article(color)} {name}", _thing(name, color=color))
        case "position":
            (a, b), relation = two(classes), one(RELATIONS)
            # The object that the relation refers to comes first.
            words = f"{_article(a)} {relation} {_article(b)}"
            return _record(tag, words, _thing(b), _thing(a, position=[relation, 0]))
        case "color_attr":
            (a, b), (color_a, color_b) = two(coloured()), two(COLORS)
            words = f"{_article(color_a)} {a} and {_article(color_b)} {b}"
            return _record(tag, words, _thing(a, color=color_a), _thing(b, color=color_b))
    raise ValueError(f"there is no tag {tag!r}")


def possible(tag: str, classes: Sequence[str]) -> int:
    """How many different prompts `draw` can make."""
    names, coloured, colors = len(classes), len(classes) - (NEVER_COLOURED in classes), len(COLORS)
    pairs, coloured_pairs = names * (names - 1), coloured * (coloured - 1)
    return {
        "single_object": names,
        "two_object": pairs,
        "counting": names * len(NUMBERS),
        "colors": coloured * colors,
        "position": pairs * len(RELATIONS),
        "color_attr": coloured_pairs * colors * (colors - 1),
    }[tag]


def lines(records: Iterable[Record]) -> Iterator[str]:
    """The records as JSON lines."""
    return (json.dumps(record) + "\n" for record in records)


def benchmark() -> list[Record]:
    """GenEval's 553 records, as published. Raises UserError where NumPy draws other numbers from the seed."""
    generator = np.random.default_rng(BENCHMARK_SEED)
    order = generator.choice(len(CLASSES), size=len(CLASSES), replace=False)
    drawn = [single_object(CLASSES[index]) for index in order]
    drawn += [draw(tag, CLASSES, generator) for tag in TAGS[1:] for _ in range(BENCHMARK_DRAWS)]
    records = list({record["prompt"]: record for record in drawn}.values())
    if hashlib.sha256("".join(lines(records)).encode()).hexdigest() != BENCHMARK_SHA256:
        raise UserError(
            f"NumPy {np.__version__} does not draw GenEval's benchmark from its seed, so its prompts cannot be told "
            "from others: use the NumPy of another release"
        )
    return records


def heldout_records() -> list[Record]:
    """The prompts by which a run is judged while it trains: `HELDOUT_DRAWS` of each tag, none of the benchmark's."""
    generator = np.random.default_rng(HELDOUT_SEED)
    taken = {str(record["prompt"]) for record in benchmark()}
    found = []
    for tag in MIX:
        for _ in range(HELDOUT_DRAWS):
            while str((record := draw(tag, CLASSES, generator))["prompt"]) in taken:
                pass
            taken.add(str(record["prompt"]))
            found.append(record)
    return found


def shares(total: int) -> dict[str, int]:
    """How many of `total` records each tag gets: in proportion, the largest remainders taking what is left over."""
    whole = sum(MIX.values())
    counts = {tag: total * weight // whole for tag, weight in MIX.items()}
    by_remainder = sorted(MIX, key=lambda tag: -(total * MIX[tag] % whole))  # stable: the mix's order decides a tie
    for tag in by_remainder[: total - sum(counts.values())]:
        counts[tag] += 1
    return counts


def training_records(total: int, seed: int, classes: Sequence[str] = CLASSES) -> Iterator[Record]:
    """`total` records in random order, one after the other: the mix's share of each tag, none of the benchmark's
    and none held out.

    A tag with as many prompts as its share or more repeats none; the prompts of another come again at random.
    Memory grows with the prompts of the former tags only.
    """
    held_out = [*benchmark(), *heldout_records()]
    generator = np.random.default_rng(seed)
    left = shares(total)
    kept_out = {str(record["prompt"]) for record in held_out}
    allowed = {*classes}
    repeats = {}
    for tag, share in left.items():
        tested = [record for record in held_out if record["tag"] == tag]
        taken = sum(all(item["class"] in allowed for item in record["include"]) for record in tested)  # type: ignore[attr-defined]
        repeats[tag] = share > possible(tag, classes) - taken
    for remaining in range(total, 0, -1):
        # A tag with the probability of its share of what is left: the shares come out exactly, in uniform order.
        place = int(generator.integers(remaining))
        ends = np.cumsum([*left.values()])
        tag = [*left][int(np.searchsorted(ends, place, side="right"))]
        left[tag] -= 1
        while str((record := draw(tag, classes, generator))["prompt"]) in kept_out:
            pass
        if not repeats[tag]:
            kept_out.add(str(record["prompt"]))
        yield record
