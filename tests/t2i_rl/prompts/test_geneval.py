"""GenEval's grammar: text and metadata agree, the benchmark comes out and stays out, shares, seeds."""

import hashlib
import itertools
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.detectors.coco import CLASSES
from rewards.geneval.reward import check_metadata
from rewards.geneval.rules import COLORS, RELATIONS, TAGS
from t2i_rl.errors import UserError
from t2i_rl.prompts import geneval as geneval_prompts
from t2i_rl.prompts.geneval import (
    HELDOUT_SHA256,
    MIX,
    SEEN,
    UNSEEN,
    benchmark,
    draw,
    heldout_records,
    lines,
    possible,
    shares,
    training_records,
)

COUNTS = {"two": 2, "three": 3, "four": 4}
PLURALS = {name + ("es" if name[-1] == "s" else "s"): name for name in CLASSES}
THING = re.compile(f"(an?) (?:({'|'.join(COLORS)}) )?({'|'.join(CLASSES)})")


def read_thing(words: str) -> dict[str, Any]:
    found = THING.fullmatch(words)
    assert found, words
    article, color, name = found.groups()
    first = (color or name)[0]
    assert article == ("an" if first in "aeiou" else "a"), words
    return {"class": name, "count": 1} | ({"color": color} if color else {})


def read(prompt: str) -> dict[str, Any]:
    """What a prompt says, read back by a parser of its own."""
    words = prompt.removeprefix("a photo of ")
    assert words != prompt
    number, _, plural = words.partition(" ")
    if number in COUNTS:
        name, count = PLURALS[plural], COUNTS[number]
        exclude = [{"class": name, "count": count + 1}]
        return {"tag": "counting", "include": [{"class": name, "count": count}], "exclude": exclude, "prompt": prompt}
    for relation in RELATIONS:
        a, middle, b = words.partition(f" {relation} ")
        if middle:
            include = [read_thing(b), read_thing(a) | {"position": [relation, 0]}]
            return {"tag": "position", "include": include, "prompt": prompt}
    include = [read_thing(part) for part in words.split(" and ")]
    kinds = {(1, False): "single_object", (2, False): "two_object", (1, True): "colors", (2, True): "color_attr"}
    return {"tag": kinds[len(include), "color" in include[0]], "include": include, "prompt": prompt}


@pytest.fixture(scope="module")
def train() -> list[dict[str, Any]]:
    return list(training_records(5000, seed=3))


def test_text_and_metadata_say_the_same(train: list[dict[str, Any]]):
    for record in [*train, *benchmark()]:
        prompt = str(record["prompt"])
        assert record == read(prompt)
        check_metadata(prompt, record)


@given(tag=st.sampled_from(TAGS), seed=st.integers(0, 2**32), classes=st.sets(st.sampled_from(CLASSES), min_size=3))
def test_a_draw_keeps_the_rules(tag: str, seed: int, classes: set[str]):
    record = draw(tag, sorted(classes), np.random.default_rng(seed))
    include = record["include"]
    assert isinstance(include, list)
    assert record == read(str(record["prompt"])) and record["tag"] == tag
    assert {item["class"] for item in include} <= classes
    for a, b in itertools.combinations(include, 2):
        assert a["class"] != b["class"]
        assert "color" not in a or a["color"] != b["color"]
    assert all(item["class"] != "person" for item in include if "color" in item)


@pytest.mark.parametrize("tag", TAGS)
def test_how_many_prompts_there_are(tag: str):
    classes = ("person", "skis", "orange", "bus")
    generator = np.random.default_rng(0)
    few = {str(draw(tag, classes, generator)["prompt"]) for _ in range(9000)}
    assert len(few) == possible(tag, classes)


def test_the_benchmark_is_the_published_one():
    # Its bytes are compared with the published file's checksum when it is made.
    assert Counter(str(record["tag"]) for record in benchmark()) == {
        "single_object": 80,
        "two_object": 99,
        "counting": 80,
        "colors": 94,
        "position": 100,
        "color_attr": 100,
    }


def test_another_benchmark_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(geneval_prompts, "BENCHMARK_SEED", 44)
    with pytest.raises(UserError, match="does not draw GenEval's benchmark"):
        next(training_records(10, seed=0))


def test_no_prompt_of_the_benchmark_is_trained_on(train: list[dict[str, Any]]):
    assert not {record["prompt"] for record in train} & {record["prompt"] for record in benchmark()}


def test_what_is_held_out_is_neither_trained_on_nor_the_benchmarks(train: list[dict[str, Any]]):
    held_out = heldout_records()
    texts = {str(record["prompt"]) for record in held_out}
    assert Counter(record["tag"] for record in held_out) == dict.fromkeys(MIX, 40) and len(texts) == 200
    assert not texts & {str(record["prompt"]) for record in benchmark()}
    for classes in (SEEN, UNSEEN):
        train = [*train, *training_records(3000, 0, classes)]
    assert not texts & {record["prompt"] for record in train}
    assert hashlib.sha256("".join(lines(held_out)).encode()).hexdigest() == HELDOUT_SHA256
    for record in held_out:
        check_metadata(str(record["prompt"]), record, CLASSES)


def test_the_shares_are_flow_grpos():
    assert shares(50_000) == {
        "position": 20588,
        "counting": 14706,
        "color_attr": 8824,
        "colors": 2941,
        "two_object": 2941,
    }


@given(total=st.integers(0, 10**7))
def test_the_shares_add_up(total: int):
    counts = shares(total)
    assert sum(counts.values()) == total
    assert all(abs(counts[tag] - total * weight / sum(MIX.values())) < 1 for tag, weight in MIX.items())


def test_the_mix_is_exact_and_well_shuffled(train: list[dict[str, Any]]):
    assert Counter(record["tag"] for record in train) == shares(5000)
    for start in range(0, 5000, 1000):
        part = Counter(record["tag"] for record in train[start : start + 1000])
        for tag, weight in MIX.items():
            share = weight / sum(MIX.values())
            assert abs(part[tag] - 1000 * share) < 5 * (1000 * share * (1 - share)) ** 0.5


def test_a_tag_repeats_only_what_it_must(train: list[dict[str, Any]]):
    different = {tag: {r["prompt"] for r in train if r["tag"] == tag} for tag in MIX}
    for tag in ("position", "color_attr", "colors", "two_object"):
        assert len(different[tag]) == shares(5000)[tag]
    # 80 classes times three numbers, without the benchmark's 80 and 40 held out; 1,471 draws miss hardly any.
    assert 115 <= len(different["counting"]) <= 120


def test_the_unseen_classes_are_never_in_the_training_set_without_them():
    assert len(SEEN) == 60 and len(UNSEEN) == 20 and {*SEEN} | {*UNSEEN} == {*CLASSES}
    for classes in (SEEN, UNSEEN):
        found = {item["class"] for record in training_records(3000, 0, classes) for item in record["include"]}  # type: ignore[attr-defined]
        assert found == {*classes}


def test_the_seed_decides_every_byte():
    first, again, other = ("".join(lines(training_records(300, seed))) for seed in (7, 7, 8))
    assert first == again != other


def test_the_records_are_streamed():
    assert next(training_records(10_000_000, seed=0))["prompt"]
