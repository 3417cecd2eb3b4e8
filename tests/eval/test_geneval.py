"""GenEval as a benchmark: its figures, its files, and what it refuses."""

import json
from pathlib import Path
from statistics import fmean

import pytest
import torch

from eval import geneval
from eval.geneval import GenEvalScorer
from eval.images import Generation
from eval.runner import run
from models.janus.policy import JanusPolicy
from rewards.detectors.base import Detection
from rewards.detectors.shapes import PaletteColours, ShapesDetector
from rewards.errors import RewardError
from rewards.geneval.reward import GenEvalReward
from rewards.registry import build
from rewards.reward import Scores
from t2i_rl.cli import main
from t2i_rl.prompts.prompt import Prompt, balanced
from t2i_rl.prompts.reading import load_prompts
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.training import evaluation
from tests.eval.small import ByPixel, lines

SAMPLING = Sampling(guidance_scale=3.0)


@pytest.fixture
def prompts() -> list[Prompt]:
    return balanced(load_prompts("shapes:heldout"), 2)[:6]


def judge(policy: JanusPolicy, prompts: list[Prompt], folder: Path, reward=None) -> dict:
    source = Generation(policy, SAMPLING, 0, "random")
    scorers = {"geneval": GenEvalScorer(reward or ByPixel("strict"))}
    summary = run(geneval.benchmark(prompts, 2), source, scorers, folder, batch=4)
    assert summary is not None
    return summary


def test_figures_and_files(policy: JanusPolicy, prompts: list[Prompt], tmp_path: Path):
    summary = judge(policy, prompts, tmp_path / "out")
    images, records = lines(tmp_path / "out/manifest.jsonl"), lines(tmp_path / "out/results.jsonl")
    assert [(row["index"], row["sample"]) for row in images] == [(i, s) for i in range(6) for s in range(2)]
    assert {record["correct"] for record in records} == {True, False}
    tags = {record["tag"] for record in records}
    by_tag = {tag: fmean(one["correct"] for one in records if one["tag"] == tag) for tag in tags}
    assert summary["per_tag"] == by_tag == summary["metrics"]["correct"]["categories"]
    assert summary["overall"] == summary["metrics"]["correct"]["overall"] == pytest.approx(fmean(by_tag.values()))
    assert all((tmp_path / "out" / record["filename"]).is_file() for record in records)
    assert json.loads((tmp_path / "out/summary.json").read_text()) == summary
    assert json.loads((tmp_path / "out/00003/metadata.jsonl").read_text()) == prompts[3].metadata
    assert [json.loads(record["metadata"]) for record in records[::2]] == [prompt.metadata for prompt in prompts]


def test_the_run_in_memory_gives_the_same_figures(policy: JanusPolicy, prompts: list[Prompt], tmp_path: Path):
    summary = judge(policy, prompts, tmp_path / "out")
    found = evaluation.evaluate(policy, prompts, ByPixel("strict"), SAMPLING, seed=0, batch=5, images_per_prompt=2)
    assert (found.per_tag, found.overall, found.images) == (summary["per_tag"], summary["overall"], summary["images"])


def test_the_official_verdict_and_the_fraction_of_training(policy: JanusPolicy, prompts: list[Prompt], tmp_path: Path):
    summary = judge(policy, prompts, tmp_path, build("shapes-official"))
    rows, records = lines(tmp_path / "scores/geneval.jsonl"), lines(tmp_path / "results.jsonl")
    reward = build("shapes")
    for image, row, record in zip(lines(tmp_path / "manifest.jsonl"), rows, records, strict=True):
        from eval.images import read_image

        scores = reward.score([read_image(tmp_path / image["file"])], [image["prompt"]], [image["metadata"]])
        score = scores.total.item()
        assert row["values"] == {
            "correct": scores.parts["strict"].item(),
            "strict": float(score == 1),
            "score": score,
        }
        assert record["correct"] == (not record["reason"])
    assert summary["metrics"]["score"]["overall"] >= summary["metrics"]["correct"]["overall"]


class Crowd:
    """Two circles, of which one is wanted: right by the benchmark's rules, wrong by training's."""

    name, classes, min_score = "crowd", ("circle",), 0.3

    def __init__(self) -> None:
        self.calls = 0

    def detect(self, images):
        self.calls += 1
        one = Detection(torch.tensor([0.0, 0, 4, 4]).numpy(), 0.9)
        return [{"circle": [one, one]} for _ in images]


def test_reasons_are_the_benchmarks_own_and_detection_happens_once(policy: JanusPolicy, tmp_path: Path):
    record = {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a circle"}
    detector = Crowd()
    summary = judge(policy, [Prompt("a circle", record)], tmp_path, GenEvalReward(detector, PaletteColours()))
    assert detector.calls == 1
    assert {name: one["overall"] for name, one in summary["metrics"].items()} == {"correct": 1, "strict": 0, "score": 0}
    official = lines(tmp_path / "results.jsonl")
    assert [one["reason"] for one in official] == ["", ""]
    assert json.loads(official[0]["details"]) == {"circle": [[0, 0, 4, 4, 0.9]] * 2}


def test_prompts_that_are_no_geneval_records() -> None:
    with pytest.raises(RewardError, match=r'"a ring".*tag'):
        geneval.benchmark([Prompt("a ring")])


class Bare(ByPixel):
    def score(self, images, prompts, metadata) -> Scores:
        scores = super().score(images, prompts, metadata)
        return Scores(scores.total, {}, scores.reasons)


def test_a_reward_without_a_verdict(policy: JanusPolicy, prompts: list[Prompt], tmp_path: Path):
    with pytest.raises(RewardError, match="no verdict by GenEval's rules"):
        judge(policy, prompts, tmp_path, Bare())


@pytest.mark.parametrize("reward", ["shapes-official:1.0 shapes:0.5", "shapes-official shapes", "shapes-official:2"])
def test_a_weighted_sum_is_refused(reward: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["eval", "geneval", "--reward", *reward.split(), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "GenEval is judged by one reward" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_scorer_has_the_detectors_name():
    assert ShapesDetector().name in GenEvalScorer(build("shapes")).name


def test_balanced_takes_turns():
    prompts = [Prompt(text, {"tag": text[0]}) for text in ("a1", "a2", "a3", "b1")] + [Prompt("free")]
    chosen = [prompt.text for prompt in balanced(prompts, 2)]
    assert chosen == ["a1", "a2", "b1", "b1", "free", "free"]
