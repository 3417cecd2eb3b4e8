"""T2I-CompBench's formulas against the original implementations' numbers."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from eval.compbench.attributes import QUESTIONS, attribute_score, probability_of_yes, questions
from eval.compbench.boxes import Labelled
from eval.compbench.numeracy import counted, numeracy_score, read_nouns
from eval.compbench.spatial import depth_score, plane_relation, plane_score
from eval.compbench.three_in_one import as_key, three_in_one
from tests.parity.golden import golden_folder


@pytest.fixture(scope="module")
def folder() -> Path:
    return golden_folder("compbench")


def read_lines(path: Path) -> list[dict]:
    with gzip.open(path, "rt") as lines:
        cases = [json.loads(line) for line in lines]
    assert cases
    return cases


def detections(case: dict) -> list[Labelled]:
    return [Labelled(row["label"], np.array(row["box"]), row["score"]) for row in case["detections"]]


def test_relations_in_the_plane(folder: Path) -> None:
    rows = json.loads((folder / "determine_position_2d.json").read_text())
    ours = [plane_relation(row["locality"], np.array(row["box1"]), np.array(row["box2"])) for row in rows]
    np.testing.assert_allclose(ours, [row["score"] for row in rows], rtol=0, atol=1e-9)


def test_scores_in_the_plane(folder: Path) -> None:
    cases = read_lines(folder / "spatial_2d.jsonl.gz")
    ours = [plane_score(case["prompt"], tuple(case["nouns"]), detections(case)) for case in cases]
    np.testing.assert_allclose(ours, [case["expected"] for case in cases], rtol=0, atol=1e-6)


def test_scores_in_depth(folder: Path) -> None:
    cases, ours = read_lines(folder / "spatial_3d.jsonl.gz"), []
    with np.load(folder / "spatial_3d_depth.npz") as maps:
        for case in cases:
            depth = maps[case["depth_key"]].astype(np.float32) / np.float32(255)
            ours.append(depth_score(case["prompt"], tuple(case["nouns"]), detections(case), depth))
    np.testing.assert_allclose(ours, [case["expected"] for case in cases], rtol=0, atol=1e-5)


def test_counted_objects(folder: Path) -> None:
    nouns, cases = read_nouns(folder / "new_objects.txt"), read_lines(folder / "numeracy.jsonl.gz")
    ours = []
    for case in cases:
        found = detections(case)
        asked = counted(case["prompt"].split(), nouns)
        ours.append(numeracy_score(asked, found, {one.label for one in found}))
    np.testing.assert_allclose(ours, [case["expected"] for case in cases], rtol=0, atol=1e-6)


def test_bound_attributes(folder: Path) -> None:
    held = json.loads((folder / "blip_vqa.json").read_text())
    scores = []
    for image in held["images"]:
        asked = questions(image["noun_chunks"])
        assert asked == [question for question in image["questions"] if question]
        assert len(image["questions"]) == QUESTIONS
        answered = zip(image["questions"], image["p_yes"], strict=True)
        scores.append(attribute_score([float(yes) for question, yes in answered if question]))
        assert f"{scores[-1]:.4f}" == image["expected"]
    assert np.mean(scores) == pytest.approx(held["dataset_average"], rel=0, abs=1e-9)


def test_the_answer_yes(folder: Path) -> None:
    for row in json.loads((folder / "blip_vqa.json").read_text())["yes_no"]:
        assert f"{probability_of_yes(row['logit_yes'], row['logit_no']):.4f}" == f"{float(row['answer']):.4f}"


def test_complex_prompts(folder: Path) -> None:
    whole, spatial, actions = (
        [as_key(line) for line in (folder / f"complex_val{part}.txt").read_text().splitlines() if line.strip()]
        for part in ("", "_spatial", "_action")
    )
    with np.load(folder / "three_in_one.npz") as held:
        attribute, place, action, expected = (held[key] for key in ("attribute", "spatial", "action", "expected"))
        average = float(held["average"])
    images = len(expected) // len(whole)
    assert images * len(whole) == len(expected)
    ours = [
        three_in_one(whole[row // images], attribute[row], place[row], action[row], spatial, actions)
        for row in range(len(expected))
    ]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)
    assert np.mean(ours) == pytest.approx(average, rel=0, abs=1e-12)
