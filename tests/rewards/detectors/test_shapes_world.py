"""The shapes world through its detector and the GenEval reward: oracle scenes earn everything, others do not."""

import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rewards import registry
from rewards.catalogue import REWARDS
from rewards.detectors.base import Subject
from rewards.detectors.shapes import PALETTE, PaletteColours, ShapesDetector
from rewards.errors import RewardError
from rewards.geneval.reward import GenEvalReward, check_metadata
from rewards.geneval.rules import GenEvalOptions
from rewards.reward import Scores, score_images
from t2i_rl.prompts.shapes_world import COLORS, TAGS, Record, Shape, all_prompts, prompts, render, scene_for

SCENES = 300


def draw(tag: str, count: int) -> list[tuple[Record, list[Shape]]]:
    """Random records of the tag, each with a scene that satisfies it."""
    generator = np.random.default_rng(TAGS.index(tag))
    of_tag = [record for record in all_prompts() if record["tag"] == tag]
    records = [of_tag[index] for index in generator.integers(len(of_tag), size=count)]
    return [(record, scene_for(record, generator)) for record in records]


def score(name: str, record: Mapping[str, Any], scene: Sequence[Shape]) -> Scores:
    return score_images(registry.build(name), [render(scene)], [record["prompt"]], [record])


def test_the_detector_finds_the_objects_of_rendered_scenes() -> None:
    """Class, colour and number exactly, boxes to the pixel that antialiasing may take from a side."""
    drawn = [scene for tag in TAGS for _, scene in draw(tag, SCENES // len(TAGS))]
    exact = 0
    for scene in drawn:
        image = render(scene)
        found = [(name, one) for name, every in ShapesDetector().detect([image])[0].items() for one in every]
        hits = [
            sum(
                name == item.shape
                and one.score > GenEvalOptions().counting_threshold
                and PaletteColours().classify([Subject(image, one, name)]) == [item.color]
                and np.abs(one.box - item.box).max() <= 1
                for name, one in found
            )
            for item in scene
        ]
        exact += len(found) == len(scene) and hits == [1] * len(scene)
    assert exact >= 0.99 * len(drawn)


@pytest.mark.parametrize("rules", [name for name in REWARDS if name.startswith("shapes")])
@pytest.mark.parametrize("tag", TAGS)
def test_oracle_scenes_earn_everything(tag: str, rules: str) -> None:
    records, scenes = zip(*draw(tag, 20), strict=True)
    texts = [record["prompt"] for record in records]
    scores = score_images(registry.build(rules), [render(scene) for scene in scenes], texts, records)
    assert scores.total.tolist() == scores.parts["strict"].tolist() == [1.0] * len(records)
    assert set(scores.reasons) == {""}


def test_wrong_scenes_are_refused_with_the_reason() -> None:
    circle = Shape("circle", "red", 4, 4, 12)
    below = replace(circle, shape="square", y=32)
    row = [replace(circle, x=x) for x in (0, 16, 32)]
    two_things = [{"class": "circle", "count": 1}, {"class": "square", "count": 1}]
    cases = [
        ("single_object", [{"class": "ring", "count": 1}], [circle], "expected ring>=1, found 0"),
        ("two_object", two_things, [circle], "expected square>=1, found 0"),
        ("counting", [{"class": "circle", "count": 4}], row, "expected circle>=4, found 3"),
        (
            "colors",
            [{"class": "circle", "count": 1, "color": "blue"}],
            [circle],
            "expected blue circle>=1, found 0 blue; and 1 red",
        ),
        (
            "position",
            [two_things[0], two_things[1] | {"position": ["above", 0]}],
            [circle, below],
            "expected square above target, found below target",
        ),
        (
            "color_attr",
            [two_things[0] | {"color": "red"}, two_things[1] | {"color": "green"}],
            [circle, below],
            "expected green square>=1, found 0 green; and 1 red",
        ),
    ]
    assert [tag for tag, *_ in cases] == list(TAGS)
    for tag, include, scene, reason in cases:
        scores = score("shapes-official", {"tag": tag, "include": include, "prompt": tag}, scene)
        assert scores.reasons == (reason,)
        assert scores.total.item() == 0


def test_the_partial_reward_logs_the_official_verdict_beside_it() -> None:
    record = {"tag": "two_object", "include": [{"class": "circle", "count": 1}], "prompt": "a photo of a circle"}
    scene = [Shape("circle", color, x, 4, 12) for color, x in (("red", 0), ("blue", 16), ("red", 32))]
    scores = score("shapes", record, scene[:2])
    assert (scores.total.item(), scores.parts["strict"].item()) == (0, 1)
    assert scores.reasons == ("expected circle==1, found 2",)
    assert score("shapes-partial-released", record, scene).total.item() == -1


def test_the_colors_of_a_batch_are_asked_in_one_call_and_only_where_a_prompt_names_one() -> None:
    class Counting(PaletteColours):
        calls: list[int]

        def classify(self, subjects: Sequence[Subject]) -> list[str]:
            self.calls.append(len(subjects))
            return super().classify(subjects)

    image = render([Shape("circle", "red", 4, 4, 16), Shape("circle", "blue", 24, 24, 16)])
    for color, calls in (({}, []), ({"color": "red"}, [3])):
        classifier = Counting()
        classifier.calls = []
        records = [{"tag": "colors", "include": [{"class": "circle", "count": count, **color}]} for count in (1, 2, 3)]
        scores = GenEvalReward(ShapesDetector(), classifier, "official").score([image] * 3, [""] * 3, records)
        assert classifier.calls == calls
        assert scores.total.tolist()[2] == 0


def test_a_threshold_under_what_the_detector_returns_is_refused() -> None:
    class Strict(ShapesDetector):
        min_score = 0.5

    with pytest.raises(ValueError, match=r"shapes drops what scores up to 0\.5, over the threshold 0\.3"):
        GenEvalReward(Strict(), PaletteColours())


def test_the_splits_are_disjoint_and_cover_the_world() -> None:
    train, held_out = ({str(record["prompt"]) for record in prompts(split)} for split in ("train", "heldout"))
    assert not train & held_out
    assert train | held_out == {str(record["prompt"]) for record in all_prompts()}
    assert {record["tag"] for record in prompts("train")} == {record["tag"] for record in prompts("heldout")} == {*TAGS}


def test_every_prompt_is_a_geneval_record_of_things_that_the_detector_knows() -> None:
    for record in all_prompts():
        check_metadata(str(record["prompt"]), record)
        for item in record["include"]:  # type: ignore[attr-defined]
            assert item["class"] in ShapesDetector.classes
            assert item.get("color", COLORS[0]) in COLORS


RING: dict[str, Any] = {"class": "ring", "count": 1}
GOOD: dict[str, Any] = {"tag": "position", "include": [RING]}


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ({"include": GOOD["include"]}, "lack the key 'tag'"),
        ({"tag": "position"}, "lack the key 'include'"),
        (GOOD | {"tag": "spatial"}, "unknown tag 'spatial': choose one of single_object"),
        (GOOD | {"include": []}, "'include' is empty"),
        (GOOD | {"include": 3}, "'include' is 3: give a list"),
        (GOOD | {"include": ["ring"]}, r"include\[0\] is 'ring': every entry is an object"),
        (GOOD | {"include": [{"class": ["ring"], "count": 1}]}, r"'class' of include\[0\] is \['ring'\]"),
        (GOOD | {"exclude": None}, "'exclude' is None: give a list"),
        (GOOD | {"include": [{"count": 1}]}, r"include\[0\] lacks the key 'class'"),
        (GOOD | {"include": [{"class": "ring"}]}, r"include\[0\] lacks the key 'count'"),
        (GOOD | {"exclude": [{"class": "ring"}]}, r"exclude\[0\] lacks the key 'count'"),
        (GOOD | {"include": [{"class": "ring", "count": 0}]}, r"'count' of include\[0\] is 0"),
        (GOOD | {"include": [{"class": "ring", "count": 1, "color": "mauve"}]}, "unknown 'color' 'mauve'"),
        (GOOD | {"include": [{"class": "ring", "count": 1, "position": ["above", 0]}]}, "index of an earlier entry"),
        (GOOD | {"include": [{"class": "ring", "count": 1, "position": "above"}]}, "index of an earlier entry"),
        (GOOD | {"include": [RING, RING | {"position": ["left of", 0.0]}]}, "index of an earlier entry"),
        (GOOD | {"include": [RING, RING | {"position": ["left of", False]}]}, "index of an earlier entry"),
        (GOOD | {"include": [RING, RING | {"position": ["left of", -1]}]}, "index of an earlier entry"),
        (GOOD | {"include": [RING, RING | {"position": ["left of"]}]}, "index of an earlier entry"),
        (GOOD | {"include": [RING | {"count": True}]}, r"'count' of include\[0\] is True"),
        (GOOD | {"include": [RING] * 65}, "'include' has 65 entries: at most 64 are judged"),
        (GOOD | {"include": [{"class": "dog", "count": 1}]}, "the detector does not know 'dog' of include"),
    ],
)
def test_metadata_that_cannot_be_judged_are_refused(record: dict, complaint: str) -> None:
    with pytest.raises(RewardError, match=f'^prompt "a photo of a ring": .*{complaint}'):
        score_images(registry.build("shapes"), [render([])], ["a photo of a ring"], [record])


def specks(height: int, width: int) -> np.ndarray:
    """Hardly two neighbours of one colour."""
    return np.array([*PALETTE.values()], dtype=np.uint8)[np.random.default_rng(0).integers(0, 6, (height, width))]


def stripes(side: int) -> np.ndarray:
    """Diagonal ones, a pixel wide: hundreds of components, each as large as the smallest object or larger."""
    rows, columns = np.mgrid[:side, :side]
    return np.array([*PALETTE.values()], dtype=np.uint8)[(rows + columns) // 2 % 6]


@pytest.mark.parametrize("image", [specks(8, 20_000), specks(20_000, 8), stripes(400)], ids=["wide", "high", "striped"])
def test_what_a_picture_takes_in_memory_grows_with_its_pixels(image: np.ndarray) -> None:
    tracemalloc.start()
    try:
        (found,) = ShapesDetector().detect([image])
        assert tracemalloc.get_traced_memory()[1] < 100 * image.nbytes
    finally:
        tracemalloc.stop()
    assert sum(map(len, found.values())) <= 64


def test_objects_beside_many_specks_are_found() -> None:
    image = np.full((64, 64, 3), 150, dtype=np.uint8)
    image[::2, ::2] = PALETTE["white"]
    image[16:40, 8:32] = PALETTE["blue"]
    ((name, (one,)),) = ShapesDetector().detect([image])[0].items()
    assert (name, one.score, one.box.tolist()) == ("square", 1.0, [8, 16, 32, 40])
    assert one.mask is not None and one.mask.sum() == 24 * 24
