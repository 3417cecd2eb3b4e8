"""The GenEval rules on hand-made detections: what each rule set counts, and what it may never do."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.detectors.base import Detection
from rewards.geneval.rules import (
    COLORS,
    RELATIONS,
    RULES,
    GenEvalOptions,
    Objects,
    Verdict,
    color_questions,
    iou,
    keep,
    keep_all,
    partial,
    relative_position,
    summarise,
)

OPTIONS = GenEvalOptions()


def thing(x: float = 0, y: float = 0, side: float = 10, score: float = 0.95) -> Detection:
    return Detection(np.array([x, y, x + side, y + side], dtype=np.float32), score)


def no_colors(name: str, chosen: Sequence[Detection]) -> list[str]:
    raise AssertionError("nobody asked for a colour")


def judge(rules: str, include: list[dict], objects: Objects, colors: Sequence[str] = (), **more: Any) -> Verdict:
    def colors_of(name: str, chosen: Sequence[Detection]) -> list[str]:
        return list(colors[: len(chosen)])

    return RULES[rules]({"include": include, **more}, objects, colors_of if colors else no_colors, OPTIONS)


boxes = st.builds(
    lambda x, y, width, height: np.array([x, y, x + width, y + height], dtype=np.float32),
    *[st.integers(0, 40)] * 2,
    *[st.integers(1, 40)] * 2,
)


@given(boxes, boxes)
def test_relations_are_mirrored_when_the_boxes_change_places(a: np.ndarray, b: np.ndarray) -> None:
    opposite = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))
    assert relative_position(b, a) == [opposite[relation] for relation in relative_position(a, b)]
    assert relative_position(a, a) == []


@given(boxes, boxes)
def test_overlap_is_symmetric_within_bounds_and_one_with_itself(a: np.ndarray, b: np.ndarray) -> None:
    assert iou(a, b) == iou(b, a)
    assert 0 <= iou(a, b) <= 1
    assert iou(a, a) == 1


@given(st.lists(st.floats(0, 1, width=32), max_size=30), st.sampled_from(["counting", "colors"]))
def test_the_best_scores_over_the_threshold_are_kept(scores: list[float], tag: str) -> None:
    threshold = np.float32(0.9 if tag == "counting" else 0.3)
    kept = [detection.score for detection in keep([thing(score=score) for score in scores], tag, OPTIONS)]
    assert kept == sorted((score for score in scores if score > threshold), reverse=True)[:16]


@given(st.lists(st.builds(thing, st.integers(0, 30), st.integers(0, 30)), max_size=12), st.floats(0.1, 0.9))
def test_kept_boxes_overlap_less_than_allowed(detections: list[Detection], most: float) -> None:
    kept = keep(detections, "colors", GenEvalOptions(max_overlap=most))
    assert bool(kept) == bool(detections)
    assert all(iou(a.box, b.box) < most for a in kept for b in kept if a is not b)


def test_a_score_at_the_threshold_is_not_kept() -> None:
    at = [thing(score=0.3), thing(score=float(np.float32(0.3)))]
    assert keep_all({"dog": at, "cat": [thing(score=0.31)]}, "colors", OPTIONS).keys() == {"cat"}


def test_extra_objects_pass_the_benchmark_but_not_the_training_rules() -> None:
    dogs = {"dog": [thing()] * 3}
    include = [{"class": "dog", "count": 2}]
    assert judge("official", include, dogs) == Verdict(True, 1.0)
    assert judge("partial", include, dogs) == Verdict(False, 0.5, "expected dog==2, found 3", (0.5,))


def test_exclude_forbids_extra_objects() -> None:
    dogs = {"dog": [thing()] * 3}
    include, exclude = [{"class": "dog", "count": 2}], [{"class": "dog", "count": 3}]
    assert judge("official", include, dogs, exclude=exclude).reason == "expected dog<3, found 3"
    assert judge("partial", include, dogs, exclude=exclude).fractions == (0.5, 0.0)
    assert judge("partial-released", include, dogs, exclude=exclude).fractions == (0.5,)
    assert judge("partial", include, {}, exclude=exclude).score == 0
    assert judge("partial", include, {"dog": [thing()] * 2}, exclude=exclude) == Verdict(True, 1.0, "", (1.0,))


def test_a_crowd_scores_zero_and_as_released_less() -> None:
    include, crowd = [{"class": "dog", "count": 1}], {"dog": [thing()] * 16}
    assert judge("partial", include, crowd).score == 0
    assert judge("partial-released", include, crowd).score == -14


def test_a_violated_position_counts_once_and_as_released_twice() -> None:
    include = [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}]
    objects = {"cat": [thing(x=0)], "dog": [thing(x=30)]}
    for rules, fractions in (("partial", (1.0, 1.0, 0.0)), ("partial-released", (1.0, 1.0, 0.0, 1.0))):
        verdict = judge(rules, include, objects)
        assert verdict.fractions == fractions
        assert verdict.reason == "expected dog left of target, found right of target"


def test_a_relation_to_a_missing_object_fails() -> None:
    include = [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["above", 0]}]
    verdict = judge("official", include, {"dog": [thing()]})
    assert verdict.reason == "expected cat>=1, found 0\nno target for dog to be above"


def test_the_colors_of_the_best_objects_decide() -> None:
    include = [{"class": "dog", "count": 2, "color": "red"}]
    verdict = judge("partial", include, {"dog": [thing()] * 2}, colors=("red", "blue"))
    assert verdict.fractions == (1.0, 0.5)
    assert verdict.reason == "expected red dog>=2, found 1 red; and 1 red, 1 blue"
    assert judge("official", include, {"dog": [thing()] * 3}, colors=("red", "red", "blue")).correct


def test_no_color_is_asked_for_when_the_count_is_wrong() -> None:
    verdict = judge("partial", [{"class": "dog", "count": 1, "color": "red"}], {})
    assert verdict.fractions == (0.0, 0.0)


entries = st.fixed_dictionaries(
    {"class": st.sampled_from(["cat", "dog"]), "count": st.integers(1, 4)},
    optional={"color": st.sampled_from(COLORS[:3])},
)
excludes = st.lists(st.fixed_dictionaries({"class": st.sampled_from(["cat", "dog"]), "count": st.integers(1, 6)}))
found = st.dictionaries(st.sampled_from(["cat", "dog"]), st.integers(1, 16).map(lambda many: [thing()] * many))


@given(st.lists(entries, min_size=1, max_size=3), excludes, found, st.lists(st.sampled_from(COLORS[:3]), min_size=16))
def test_the_partial_score_is_a_fraction_and_one_only_when_correct(
    include: list[dict], exclude: list[dict], objects: Objects, colors: list[str]
) -> None:
    ours = judge("partial", include, objects, colors, exclude=exclude)
    assert 0 <= ours.score <= 1
    assert (ours.score == 1) == ours.correct == (not ours.reason)
    if ours.correct:
        assert judge("official", include, objects, colors, exclude=exclude).correct


@given(st.lists(entries, min_size=1, max_size=3), found)
def test_every_rule_set_asks_only_the_colors_that_are_foreseen(include: list[dict], objects: Objects) -> None:
    metadata = {"include": include}
    foreseen = color_questions(metadata, objects)
    asked: dict[str, int] = {}

    def colors_of(name: str, chosen: Sequence[Detection]) -> list[str]:
        assert list(chosen) == list(foreseen[name][: len(chosen)])
        asked[name] = max(asked.get(name, 0), len(chosen))
        return ["red"] * len(chosen)

    for rule in RULES.values():
        rule(metadata, objects, colors_of, OPTIONS)
    assert asked == {name: len(chosen) for name, chosen in foreseen.items()}


@given(st.integers(1, 4))
def test_the_partial_score_rises_towards_the_right_count(count: int) -> None:
    metadata = {"include": [{"class": "dog", "count": count}], "exclude": [{"class": "dog", "count": count + 1}]}
    scores = [partial(metadata, {"dog": [thing()] * many}, no_colors, OPTIONS).score for many in range(2 * count + 1)]
    assert scores[0] == scores[-1] == 0
    assert all(before < after for before, after in pairwise(scores[: count + 1]))
    assert all(before > after for before, after in pairwise(scores[count:]))


def test_the_summary_weighs_tags_equally_and_asks_for_rows() -> None:
    rows = [
        {"tag": "colors", "correct": correct, "metadata": prompt}
        for correct, prompt in ((True, "a"), (False, "a"), (False, "b"), (False, "b"))
    ]
    summary = summarise([*rows, {"tag": "position", "correct": True, "metadata": "c"}])
    assert summary.per_tag == {"colors": 0.25, "position": 1.0}
    assert summary.images_per_tag == {"colors": 4, "position": 1}
    assert (summary.overall, summary.image_accuracy, summary.prompt_accuracy) == (0.625, 0.4, pytest.approx(2 / 3))
    with pytest.raises(ValueError, match="no images"):
        summarise([])
