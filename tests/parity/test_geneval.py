"""The GenEval rules against the verdicts of the original implementations."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.detectors.base import Detection
from rewards.geneval import (
    GenEvalOptions,
    iou,
    keep_all,
    official,
    partial,
    partial_released,
    relative_position,
    summarise,
)
from tests.parity.golden import golden_folder

EXACT = {"rel": 0, "abs": 1e-9}


@pytest.fixture(scope="module")
def folder() -> Path:
    return golden_folder("geneval")


def read_lines(path: Path) -> list[dict]:
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def cases(folder: Path) -> list[dict]:
    return read_lines(folder / "cases.jsonl.gz")


class Case:
    """One golden case: its raw detections, and the colour that its stub classifier gives to each."""

    def __init__(self, case: dict) -> None:
        self.metadata, self.expected = case["metadata"], case["expected"]
        self.options = GenEvalOptions(**case["options"])
        self.raw = {
            name: [Detection(np.array(row[:4], dtype=np.float32), float(np.float32(row[4]))) for row in rows]
            for name, rows in case["detections"].items()
        }
        self.color_of = {
            id(detection): color
            for name, found in self.raw.items()
            for detection, color in zip(found, case["colors"][name], strict=True)
        }
        self.kept = keep_all(self.raw, self.metadata["tag"], self.options)

    def colors_of(self, name: str, chosen: Sequence[Detection]) -> list[str]:
        return [self.color_of[id(detection)] for detection in chosen]

    def judge(self, rule: Callable) -> Any:
        return rule(self.metadata, self.kept, self.colors_of, self.options)


def test_the_detections_that_are_kept(cases: list[dict]) -> None:
    for case in map(Case, cases):
        kept = {
            name: [next(i for i, raw in enumerate(case.raw[name]) if raw is one) for one in found]
            for name, found in case.kept.items()
        }
        assert kept == case.expected["kept"]


def test_the_official_verdict(cases: list[dict]) -> None:
    for case in map(Case, cases):
        verdict = case.judge(official)
        assert {"correct": verdict.correct, "reason": verdict.reason} == case.expected["eval"]
        assert verdict.score == verdict.correct


def test_the_released_training_reward(cases: list[dict]) -> None:
    compared = [case for case in map(Case, cases) if "train" in case.expected]
    assert compared
    for case in compared:
        verdict, expected = case.judge(partial_released), case.expected["train"]
        assert (verdict.correct, verdict.reason) == (expected["strict_correct"], expected["reason"])
        assert verdict.fractions == pytest.approx(expected["rewards"], **EXACT)
        assert verdict.score == pytest.approx(expected["score"], **EXACT)


def test_our_training_reward_departs_only_where_it_says(cases: list[dict]) -> None:
    for case in map(Case, cases):
        ours, released, excluded = case.judge(partial), case.judge(partial_released), case.metadata.get("exclude", [])
        crowded = any(len(case.kept.get(item["class"], [])) >= item["count"] for item in excluded)
        assert 0 <= ours.score <= 1
        assert (ours.score == 1) == ours.correct == (released.correct and not crowded)
        same_length = len(released.fractions) == len(ours.fractions)  # else a relation does not hold
        if same_length and not crowded and min(released.fractions, default=-1) >= 0:
            assert ours == released


def test_the_replies_of_the_reward_server(folder: Path, cases: list[dict]) -> None:
    by_id = {case["id"]: case for case in cases}
    for batch in json.loads((folder / "batch_replies.json").read_text()):
        held = [Case(by_id[number]) for number in batch["case_ids"]]
        released, benchmark = ([case.judge(rule) for case in held] for rule in (partial_released, official))
        reply = batch["reply"]
        assert [verdict.score for verdict in released] == pytest.approx(reply["scores"], **EXACT)
        assert [float(verdict.correct) for verdict in released] == reply["strict_rewards"]
        official_scores = [0.0] * len(held) if batch["only_strict"] else [verdict.score for verdict in benchmark]
        assert official_scores == reply["rewards"]


def test_relations_and_overlaps_of_boxes(folder: Path) -> None:
    for row in json.loads((folder / "relative_position.json").read_text()):
        a, b = (np.array(row[name], dtype=np.float32) for name in "ab")
        assert relative_position(a, b) == row["relations"]
        assert iou(np.array(row["a"]), np.array(row["b"])) == pytest.approx(row["iou_plus1"], **EXACT)


def test_the_summary_of_a_benchmark_run(folder: Path) -> None:
    summary = summarise(read_lines(folder / "summary_rows.jsonl.gz"))
    expected = json.loads((folder / "summary_expected.json").read_text())
    assert (summary.images, summary.prompts) == (expected["total_images"], expected["total_prompts"])
    assert summary.images_per_tag == expected["per_task_n"]
    assert summary.per_tag == pytest.approx(expected["per_task"], rel=0, abs=1e-12)
    for ours, theirs in (("overall",) * 2, ("image_accuracy",) * 2, ("prompt_accuracy", "prompt_any_accuracy")):
        assert getattr(summary, ours) == pytest.approx(expected[theirs], rel=0, abs=1e-12)
