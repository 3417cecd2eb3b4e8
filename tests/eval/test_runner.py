"""The runner: an evaluation that is stopped, shared, given images, or tampered with."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from eval.benchmark import Benchmark, Metric, RewardScorer
from eval.images import Generation, Given
from eval.records.manifest import Shard
from eval.runner import run
from models.janus.policy import JanusPolicy
from rewards.cut import Cut
from rewards.errors import RewardError
from t2i_rl.errors import UserError
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.sampling import Sampling
from tests.eval.small import ByPixel, lines

PROMPTS = tuple(Prompt(f"a photo of {name}", {"category": name[-1]}) for name in ("a ring", "two rings", "a square"))
BENCHMARK = Benchmark("small", PROMPTS, 2, (Metric("score", "pixel"), Metric("even", "verdict", {"even": 100.0})))
IMAGES = 6


def scorers(fail_after: int = 10**9) -> dict[str, RewardScorer]:
    return {"pixel": RewardScorer(ByPixel()), "verdict": RewardScorer(ByPixel("even", fail_after))}


def drawn(policy: JanusPolicy, folder: Path, seed: int = 0, batch: int = 4, fail_after: int = 10**9, **more):
    source = Generation(policy, Sampling(3.0), seed, "random")
    return run(BENCHMARK, source, scorers(fail_after), folder, batch=batch, **more)


def test_figures(policy: JanusPolicy, tmp_path: Path):
    summary = drawn(policy, tmp_path)
    rows = lines(tmp_path / "scores/pixel.jsonl")
    values = [row["values"]["total"] for row in rows]
    assert summary["metrics"]["score"]["overall"] == pytest.approx(sum(values) / IMAGES)
    assert summary["metrics"]["score"]["categories"]["e"] == pytest.approx(sum(values[4:]) / 2)
    even = [row["values"]["even"] for row in lines(tmp_path / "scores/verdict.jsonl")]
    assert summary["metrics"]["even"]["overall"] == pytest.approx(100 * sum(even) / IMAGES)
    counts = {"prompts": 3, "images": IMAGES, "images_per_category": {"g": 2, "s": 2, "e": 2}, "missing": []}
    assert summary["counts"] == counts
    assert {"python", "torch"} <= summary["versions"].keys()
    assert summary["settings"]["sampling"]["guidance_scale"] == 3 and summary["scorers"]["pixel"] == "by pixel"


@pytest.mark.parametrize("fail_after", [0, 3])
def test_a_killed_run_ends_with_the_same_summary(policy: JanusPolicy, tmp_path: Path, fail_after: int):
    whole = drawn(policy, tmp_path / "whole")
    killed = tmp_path / "killed"
    with pytest.raises(RewardError):
        drawn(policy, killed, batch=3, fail_after=fail_after)
    assert not (killed / "summary.json").exists() and len(lines(killed / "scores/pixel.0.jsonl")) == IMAGES
    for name in ("manifest.0.jsonl", "scores/verdict.0.jsonl"):  # what a kill does to the line that is being written
        with (killed / name).open("a") as file:
            file.write('{"index": 2, "sam')
    text = (killed / "manifest.0.jsonl").read_text().splitlines()
    (killed / "manifest.0.jsonl").write_text("\n".join([*text[:-2], text[-1]]))  # the last image was not entered either
    assert drawn(policy, killed) == whole
    for name in ("manifest.jsonl", "scores/pixel.jsonl", "scores/verdict.jsonl", "summary.json"):
        assert (killed / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert not list(killed.rglob("*.0.jsonl"))


def test_two_processes_give_the_numbers_of_one(policy: JanusPolicy, tmp_path: Path):
    whole = drawn(policy, tmp_path / "one")
    assert drawn(policy, tmp_path / "two", shard=Shard(1, 2)) is None
    assert {row["index"] for row in lines(tmp_path / "two/manifest.1.jsonl")} == {2}
    assert drawn(policy, tmp_path / "two", shard=Shard(0, 2)) == whole
    assert (tmp_path / "two/manifest.jsonl").read_text() == (tmp_path / "one/manifest.jsonl").read_text()


def test_another_number_of_processes_may_go_on(policy: JanusPolicy, tmp_path: Path):
    whole = drawn(policy, tmp_path / "one")
    drawn(policy, tmp_path / "two", shard=Shard(1, 3))
    assert drawn(policy, tmp_path / "two") == whole


def test_the_processes_of_torchrun(monkeypatch: pytest.MonkeyPatch):
    assert Shard.from_environment() == Shard(0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Shard.from_environment() == Shard(3, 4)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="RANK is '3'"):
        Shard.from_environment()


def test_drawing_and_judging_apart(policy: JanusPolicy, tmp_path: Path):
    whole = drawn(policy, tmp_path / "whole")
    source = Generation(policy, Sampling(3.0), 0, "random")
    assert run(BENCHMARK, source, {}, tmp_path / "apart") is None
    assert not (tmp_path / "apart/summary.json").exists()
    given = run(BENCHMARK, Given(tmp_path / "apart"), scorers(), tmp_path / "judged")
    assert given["metrics"] == whole["metrics"] and given["counts"] == whole["counts"]
    assert given["settings"]["generated_with"] == json.loads((tmp_path / "whole/settings.json").read_text())
    assert drawn(policy, tmp_path / "apart") == whole


def test_a_further_scorer_takes_the_images_that_are_there(policy: JanusPolicy, tmp_path: Path):
    drawn(policy, tmp_path)
    before = (tmp_path / "manifest.jsonl").read_text()
    more = Benchmark("small", PROMPTS, 2, (Metric("other", "other"),))
    source = Generation(policy, Sampling(3.0), 0, "random")
    summary = run(more, source, {"other": RewardScorer(ByPixel(name="another"))}, tmp_path)
    assert summary["scorers"] == {"other": "another"} and (tmp_path / "manifest.jsonl").read_text() == before


def test_other_settings_need_another_folder(policy: JanusPolicy, tmp_path: Path):
    drawn(policy, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="another seed"):
        drawn(policy, tmp_path, seed=1)
    with pytest.raises(UserError, match="holds scores by by pixel, now it is new"):
        source = Generation(policy, Sampling(3.0), 0, "random")
        run(BENCHMARK, source, {"pixel": RewardScorer(ByPixel(name="new"))}, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_lines_of_two_evaluations_do_not_mix(policy: JanusPolicy, tmp_path: Path):
    drawn(policy, tmp_path / "a")
    drawn(policy, tmp_path / "b", seed=1)
    mine, theirs = (path / "manifest.jsonl" for path in (tmp_path / "a", tmp_path / "b"))
    mine.write_text("".join([*mine.read_text().splitlines(True)[:-1], theirs.read_text().splitlines(True)[-1]]))
    shutil.copy(tmp_path / "b/00002/samples/0001.png", tmp_path / "a/00002/samples/0001.png")
    with pytest.raises(UserError, match="mixes two settings: image 1 of prompt 2"):
        drawn(policy, tmp_path / "a")


def test_a_folder_of_something_else(policy: JanusPolicy, tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="something else"):
        drawn(policy, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize("damage", [Path.unlink, cut])
def test_a_lost_image_is_an_error(policy: JanusPolicy, tmp_path: Path, damage):
    drawn(policy, tmp_path)
    damage(tmp_path / "00001/samples/0000.png")
    with pytest.raises(UserError, match=r"00001/samples/0000\.png is in the manifest but cannot be read"):
        drawn(policy, tmp_path)


def test_a_broken_line_is_named(policy: JanusPolicy, tmp_path: Path):
    drawn(policy, tmp_path)
    text = (tmp_path / "manifest.jsonl").read_text().split("\n")
    (tmp_path / "manifest.jsonl").write_text("\n".join([text[0], "{}", *text[2:]]))
    with pytest.raises(UserError, match=r"manifest\.jsonl, line 2"):
        drawn(policy, tmp_path)


@pytest.mark.parametrize("damage", [Path.unlink, cut])
def test_given_images_that_are_missing(policy: JanusPolicy, tmp_path: Path, damage):
    whole = drawn(policy, tmp_path / "drawn")
    damage(tmp_path / "drawn/00001/samples/0000.png")
    with pytest.raises(UserError, match=r"00001/samples/0000\.png.*--missing-as-zero"):
        run(BENCHMARK, Given(tmp_path / "drawn"), scorers(), tmp_path / "judged")
    shutil.rmtree(tmp_path / "judged", ignore_errors=True)
    found = run(BENCHMARK, Given(tmp_path / "drawn", missing_as_zero=True), scorers(), tmp_path / "judged")
    lost = lines(tmp_path / "drawn/scores/pixel.jsonl")[2]["values"]["total"]
    assert found["counts"]["missing"] == [[1, 0]] and found["counts"]["images"] == IMAGES
    expected = whole["metrics"]["score"]["overall"] - lost / IMAGES
    assert found["metrics"]["score"]["overall"] == pytest.approx(expected)


def test_images_that_changed_are_another_evaluation(policy: JanusPolicy, tmp_path: Path):
    drawn(policy, tmp_path / "a")
    drawn(policy, tmp_path / "b", seed=1)
    run(BENCHMARK, Given(tmp_path / "a"), scorers(), tmp_path / "judged")
    shutil.copy(tmp_path / "b/00002/samples/0001.png", tmp_path / "a/00002/samples/0001.png")
    with pytest.raises(UserError, match="another images_sha256"):
        run(BENCHMARK, Given(tmp_path / "a"), scorers(), tmp_path / "judged")


def test_a_folder_without_images(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no image of small: it should hold 00000/samples/0000\.png"):
        run(BENCHMARK, Given(tmp_path / "empty"), scorers(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_counts_below_one(policy: JanusPolicy, tmp_path: Path):
    with pytest.raises(UserError, match="batch is 0"):
        drawn(policy, tmp_path / "out", batch=0)
    with pytest.raises(UserError, match="images_per_prompt is 0"):
        Benchmark("small", PROMPTS, 0, ())
    assert not (tmp_path / "out").exists()


def test_a_figure_of_what_the_scorer_does_not_give(policy: JanusPolicy, tmp_path: Path):
    source = Generation(policy, Sampling(3.0), 0, "random")
    wrong = Benchmark("small", PROMPTS, 1, (Metric("beauty", "pixel", {"beauty": 1.0}),))
    with pytest.raises(RewardError, match="gives no 'beauty'"):
        run(wrong, source, {"pixel": RewardScorer(ByPixel())}, tmp_path)


def test_a_scorer_that_learns_its_name(policy: JanusPolicy, tmp_path: Path):
    """A judge asks its endpoint for the model's name."""

    class Learning(ByPixel):
        def check(self, prompts, metadata) -> None:
            self.name = "learnt"

    source = Generation(policy, Sampling(3.0), 0, "random")
    benchmark = Benchmark("small", PROMPTS, 2, (Metric("score", "pixel"),))
    assert run(benchmark, source, {"pixel": RewardScorer(Learning())}, tmp_path)["scorers"] == {"pixel": "learnt"}


def test_prompts_that_are_cut_are_counted_at_the_start(
    policy: JanusPolicy, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    class Short(ByPixel):
        def check(self, prompts, metadata) -> list[Cut]:
            return [Cut("short", 4, len(prompts) - 2)]

    monkeypatch.setattr(policy, "cut", lambda prompts: (3, 2), raising=False)
    source, benchmark = (
        Generation(policy, Sampling(3.0), 0, "a model"),
        replace(BENCHMARK, metrics=BENCHMARK.metrics[:1]),
    )
    for shard in (Shard(0, 2), Shard(1, 2)):
        run(benchmark, source, {"pixel": RewardScorer(Short())}, tmp_path, shard)
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [
        "2 of 3 prompts are longer than the 3 tokens that a model reads: what is beyond counts for nothing",
        "1 of 3 prompts is longer than the 4 tokens that short reads: what is beyond counts for nothing",
    ]
    assert sum("longer than" in line for line in said) == 2  # by one process


def test_scores_by_other_weights_of_the_same_name_are_not_mixed(policy: JanusPolicy, tmp_path: Path):
    def judged(**made_of: str) -> None:
        run(BENCHMARK, Generation(policy, Sampling(3.0), 0, "random"), scorers(), tmp_path, made_of=made_of)

    judged(geneval="one")
    judged(geneval="one")
    with pytest.raises(
        UserError, match=r"holds scores by by pixel, now it is by pixel of other weights or code: remove"
    ):
        judged(geneval="another")
    for ledger in (tmp_path / "scores").iterdir():
        rows = [{key: value for key, value in row.items() if key != "weights"} for row in lines(ledger)]
        ledger.write_text("".join(json.dumps(row) + "\n" for row in rows))  # as older ones are
    judged(geneval="another")


@pytest.mark.parametrize(
    ("file", "changes", "complaint"),
    [
        ("scores/pixel.jsonl", {"values": {"total": float("nan")}}, r"pixel\.jsonl, line 1 .*NaN is no finite number"),
        ("scores/pixel.jsonl", {"values": {"total": "1"}}, r"pixel\.jsonl, line 1 .*a value is no number"),
        ("scores/pixel.jsonl", {"values": [1.0]}, r"pixel\.jsonl, line 1 is not about an image"),
        ("manifest.jsonl", {"category": "easy"}, "says of image 0 of prompt 0 another category than it was drawn for"),
        ("manifest.jsonl", {"prompt": "a photo"}, "says of image 0 of prompt 0 another prompt"),
        ("manifest.jsonl", {"metadata": {"tag": "x"}}, "says of image 0 of prompt 0 another metadata"),
        ("manifest.jsonl", {"settings": None}, "mixes two settings"),
    ],
)
def test_lines_that_were_edited_are_not_believed(
    file: str, changes: dict, complaint: str, policy: JanusPolicy, tmp_path: Path
):
    drawn(policy, tmp_path)
    path = tmp_path / file
    first, *rest = lines(path)
    path.write_text("".join(json.dumps(row) + "\n" for row in ({**first, **changes}, *rest)))
    with pytest.raises(UserError, match=complaint):
        drawn(policy, tmp_path)


@pytest.mark.parametrize("text", ["1e999", "[" * 10**5])
def test_a_line_that_no_scorer_writes_is_named(text: str, policy: JanusPolicy, tmp_path: Path):
    drawn(policy, tmp_path)
    path = tmp_path / "scores" / "pixel.jsonl"
    path.write_text('{"index": 0, "sample": 0, "values": {"total": ' + text + "}}\n" + path.read_text())
    with pytest.raises(UserError, match=r"pixel\.jsonl, line 1 is not about an image"):
        drawn(policy, tmp_path)
