"""GenEval against the original implementations: the rules' verdicts, and what detector and classifier see and say."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rewards.detectors.base import Detection
from rewards.detectors.mask2former import fitted, instances, preprocess
from rewards.geneval.colors import GREY, color_logits, cut_out, sentences, text_classifier
from rewards.geneval.rules import (
    COLORS,
    GenEvalOptions,
    iou,
    keep_all,
    official,
    partial,
    partial_released,
    relative_position,
    summarise,
)
from rewards.scorers.clip import evaluation_transform
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


def arrays(path: Path) -> tuple[dict[str, np.ndarray], list[dict]]:
    """A golden archive and the list of its cases."""
    with np.load(path) as stored:
        held = {name: stored[name] for name in stored.files}
    cases = json.loads(str(held["index_json"]))
    assert cases
    return held, cases


def test_the_objects_that_the_classifier_sees(folder: Path) -> None:
    held, cases = arrays(folder / "crops.npz")
    for case in cases:
        k, options = case["index"], case["options"]
        detection = Detection(held[f"box_{k}"][:4], 1.0, held[f"mask_{k}"] if case["has_mask"] else None)
        background = None if options.get("bgcolor") == "original" else GREY
        ours = cut_out(held[f"image_{k}"], detection, background, crop=options.get("crop") != "0")
        np.testing.assert_array_equal(ours, held[f"crop_{k}"])


def test_the_colors_that_features_stand_for(folder: Path) -> None:
    with np.load(folder / "color_classifier.npz") as held:
        assert json.loads(str(held["colors"])) == list(COLORS)
        assert json.loads(str(held["texts"])) == sentences(str(held["class_name"]))
        classifier = text_classifier(torch.from_numpy(held["text_features"]))
        logits = color_logits(torch.from_numpy(held["image_features"]), classifier[None])
        np.testing.assert_allclose(classifier.T.numpy(), held["classifier"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(logits.numpy(), held["logits"], rtol=0, atol=1e-4)
        assert logits.argmax(-1).tolist() == held["argmax"].tolist()


def test_the_pictures_that_clip_sees(folder: Path) -> None:
    held, cases = arrays(folder / "color_clip_preprocess.npz")
    transform = evaluation_transform(224)
    for case in cases:
        ours = transform(Image.fromarray(held[f"image_{case['index']}"])).numpy()
        stride = case["stride"]
        theirs = held[f"tensor_{case['index']}"].astype(np.float32)
        np.testing.assert_allclose(ours[:, ::stride, ::stride], theirs, rtol=0, atol=2e-3)
        assert (ours.mean(), ours.std()) == pytest.approx((case["mean"], case["std"]), abs=1e-4)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_pictures_that_the_detector_sees(folder: Path, swapped: bool) -> None:
    """Closer than the float16 of the stored tensors: every byte of the resized image is the same."""
    held, cases = arrays(folder / "detector_preprocess.npz")
    for case in cases:
        k, stride = case["index"], case["stride"]
        image = held[f"rgb_{k}"].repeat(case["repeat"], 0).repeat(case["repeat"], 1)
        assert fitted(*image.shape[:2]) == tuple(case["resized_hw"])
        ours = preprocess(torch.from_numpy(image).permute(2, 0, 1)[None], swap_red_blue=swapped)[0]
        assert ours.shape[1:] == tuple(case["padded_hw"])
        theirs = held[f"tensor_mmdet2_{'swapped_' if swapped else ''}{k}"].astype(np.float32)
        np.testing.assert_allclose(ours[:, ::stride, ::stride].numpy(), theirs, rtol=0, atol=1e-3)


def test_the_detections_that_logits_stand_for(folder: Path) -> None:
    """Those with a score over 0.001 (the others tie at 0), in their order within each class."""
    held, cases = arrays(folder / "detector_postprocess.npz")
    for case in cases:
        k, size = case["index"], tuple(case["original_hw"])
        logits = (torch.from_numpy(held[f"{name}_logits_{k}"]).float() for name in ("class", "mask"))
        found = instances(*logits, tuple(case["resized_hw"]), size, min_score=1e-3)
        masks = np.unpackbits(held[f"masks_packed_{k}"], axis=1)[:, : size[0] * size[1]].reshape(-1, *size)
        theirs = [held[f"labels_{k}"], held[f"scores_{k}"], held[f"boxes_{k}"], masks]
        ours = [column.numpy() for column in (found.labels, found.scores, found.boxes, found.masks)]
        theirs = [column[theirs[1] > 1e-3] for column in theirs]
        ours, theirs = ([column[np.argsort(rows[0], kind="stable")] for column in rows] for rows in (ours, theirs))
        for name, one, other in zip(("labels", "scores", "boxes", "masks"), ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 if name == "scores" else 0, err_msg=name)
        for threshold, count in ((0.3, case["n_above_0_3"]), (0.9, case["n_above_0_9"])):
            assert int((found.scores > threshold).sum()) == count
