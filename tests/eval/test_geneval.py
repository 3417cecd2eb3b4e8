"""The GenEval runner: its figures, its files, and how it continues."""

import json
from pathlib import Path
from statistics import fmean

import pytest
import torch
from rich.console import Console

from eval.geneval import Summary, evaluate, table
from models.janus import JanusPolicy
from rewards.errors import RewardError
from rewards.geneval_reward import check_metadata
from rewards.registry import build
from rewards.reward import Scores
from t2i_rl import evaluation
from t2i_rl.config import Sampling
from t2i_rl.errors import UserError
from t2i_rl.prompts import Prompt, balanced, load_prompts

SAMPLING = Sampling(guidance_scale=3.0)


class ByPixel:
    """A verdict that random images pass about half of the time."""

    name = "geneval-official (by pixel)"

    def __init__(self, fail_after: int = 10**9) -> None:
        self.left = fail_after

    def check(self, prompts, metadata) -> None:
        for prompt, record in zip(prompts, metadata, strict=True):
            check_metadata(prompt, record)

    def score(self, images, prompts, metadata) -> Scores:
        self.left -= len(images)
        if self.left < 0:
            raise RewardError("the scorer is gone")
        strict = torch.tensor([float(image.sum() % 2) for image in images])
        return Scores(strict, {"strict": strict}, tuple("" if value else "odd" for value in strict))


@pytest.fixture
def prompts() -> list[Prompt]:
    return balanced(load_prompts("shapes:heldout"), 2)[:6]


def run(
    policy: JanusPolicy, prompts: list[Prompt], folder: Path, reward=None, seed: int = 0, batch: int = 4
) -> Summary:
    return evaluate(policy, prompts, reward or ByPixel(), 2, SAMPLING, seed, folder, batch, model="random")


def manifest(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_figures_and_files(policy: JanusPolicy, prompts: list[Prompt], tmp_path: Path):
    summary = run(policy, prompts, tmp_path / "out")
    rows = manifest(tmp_path / "out")
    assert [(row["index"], row["sample"]) for row in rows] == [(i, s) for i in range(6) for s in range(2)]
    assert {row["correct"] for row in rows} == {True, False}
    by_tag = {tag: fmean(row["correct"] for row in rows if row["tag"] == tag) for tag in {row["tag"] for row in rows}}
    assert summary.per_tag == by_tag and summary.overall == pytest.approx(fmean(by_tag.values()))
    assert all((tmp_path / "out" / row["file"]).is_file() for row in rows)
    written = json.loads((tmp_path / "out/summary.json").read_text())
    assert written["overall"] == summary.overall and written["settings"]["reward"] == ByPixel.name
    record = json.loads((tmp_path / "out/00003/metadata.jsonl").read_text())
    assert record == prompts[3].metadata


def test_the_run_in_memory_gives_the_same_figures(policy: JanusPolicy, prompts: list[Prompt], tmp_path: Path):
    summary = run(policy, prompts, tmp_path / "out")
    found = evaluation.evaluate(policy, prompts, ByPixel(), SAMPLING, seed=0, batch=5, images_per_prompt=2)
    assert (found.per_tag, found.overall, found.images) == (summary.per_tag, summary.overall, summary.images)


@pytest.mark.parametrize("fail_after", [4, 7])
def test_a_killed_run_continues(policy: JanusPolicy, prompts: list[Prompt], tmp_path: Path, fail_after: int):
    whole = run(policy, prompts, tmp_path / "whole")
    with pytest.raises(RewardError):
        run(policy, prompts, tmp_path / "killed", ByPixel(fail_after), batch=3)
    path = tmp_path / "killed/manifest.jsonl"
    assert not (tmp_path / "killed/summary.json").exists() and 0 < len(manifest(tmp_path / "killed")) < 12
    path.write_text(path.read_text() + '{"index": 5, "sam')
    left = 12 - path.read_text().count("\n")
    assert run(policy, prompts, tmp_path / "killed", ByPixel(left)) == whole
    assert manifest(tmp_path / "killed") == manifest(tmp_path / "whole")


def test_other_settings_need_another_folder(policy: JanusPolicy, prompts: list[Prompt], tmp_path: Path):
    run(policy, prompts[:2], tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="another seed"):
        run(policy, prompts[:2], tmp_path, seed=1)
    with pytest.raises(UserError, match="another prompts_sha256"):
        run(policy, prompts[2:4], tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_of_something_else(policy: JanusPolicy, prompts: list[Prompt], tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="something else"):
        run(policy, prompts, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:40])])
def test_a_lost_image_is_an_error(policy: JanusPolicy, prompts: list[Prompt], tmp_path: Path, damage):
    run(policy, prompts[:2], tmp_path)
    damage(tmp_path / "00001/samples/0000.png")
    with pytest.raises(UserError, match=r"00001/samples/0000\.png is in the manifest but cannot be read"):
        run(policy, prompts[:2], tmp_path)


def test_a_broken_manifest_line_is_named(policy: JanusPolicy, prompts: list[Prompt], tmp_path: Path):
    run(policy, prompts[:2], tmp_path)
    lines = (tmp_path / "manifest.jsonl").read_text().split("\n")
    (tmp_path / "manifest.jsonl").write_text("\n".join([lines[0], "{}", *lines[2:]]))
    with pytest.raises(UserError, match=r"manifest\.jsonl, line 2"):
        run(policy, prompts[:2], tmp_path)


def test_prompts_that_are_no_geneval_records(policy: JanusPolicy, tmp_path: Path):
    with pytest.raises(RewardError, match=r'"a ring".*tag'):
        run(policy, [Prompt("a ring")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_batch_of_nothing(policy: JanusPolicy, prompts: list[Prompt], tmp_path: Path):
    with pytest.raises(UserError, match="batch is 0"):
        run(policy, prompts, tmp_path / "out", batch=0)
    assert not (tmp_path / "out").exists()


def test_with_the_shapes_detector(policy: JanusPolicy, prompts: list[Prompt], tmp_path: Path):
    summary = run(policy, prompts, tmp_path, build("shapes-official"))
    assert summary.images == 12 and summary.prompts == 6
    assert all(row["reason"] for row in manifest(tmp_path) if not row["correct"])


def test_balanced_takes_turns():
    prompts = [Prompt(text, {"tag": text[0]}) for text in ("a1", "a2", "a3", "b1")] + [Prompt("free")]
    chosen = [prompt.text for prompt in balanced(prompts, 2)]
    assert chosen == ["a1", "a2", "b1", "b1", "free", "free"]


def test_the_table_shows_the_figures():
    console = Console(width=80, record=True)
    console.print(table(Summary(4, 2, {"colors": 0.25}, {"colors": 4}, 0.25, 0.25, 0.5), "GenEval"))
    text = console.export_text()
    assert all(shown in text for shown in ("colors", "25.0%", "50.0%"))
