"""`t2i-rl eval mathverse` and the like, on a random model and questions of a few words."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import Tensor

from eval.reasoning.benchmark import OURS
from models.qwen_vl.policy import QwenVLPolicy
from models.registry import TINY
from t2i_rl.cli import main
from t2i_rl.prompts import shapes_questions
from tests.models.small_qwen_vl import picture, random_qwen

QUESTIONS = ("<image>how many red circle ?", "what color is the square ?", "<image>how many red circle ?")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    random_qwen("qwen2_5_vl", folder / "processor").save(folder / "qwen")
    return folder / "qwen"


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    Image.fromarray(picture(0, 16, 16)).save(folder / "a.png")
    records = [
        {"prompt": text, "images": ["a.png"] * text.count("<image>"), "answer": "1", "tag": tag, "from": "messages"}
        for text, tag in zip(QUESTIONS, ("count", "color", "count"), strict=True)
    ]
    (folder / "own.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / "own.jsonl"


@pytest.fixture(autouse=True, scope="module")
def boxes() -> Iterator[None]:
    """The random model's words in boxes that the grader can read: 0 or 1, by their tokens."""
    decode = QwenVLPolicy.decode

    def boxed(policy: QwenVLPolicy, tokens: Tensor) -> list[str]:
        numbers = (tokens.sum(-1) % 2).tolist()
        return [f"{text} \\boxed{{{number}}}" for text, number in zip(decode(policy, tokens), numbers, strict=True)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QwenVLPolicy, "decode", boxed)
        yield


@pytest.fixture(scope="module")
def evaluated(model: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of an evaluation, and what it printed."""
    folder, said = tmp_path_factory.mktemp("evaluated") / "a", io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(words(model, questions, folder)) == 0
    return folder, said.getvalue()


def words(model: Path, questions: Path, out: Path, *more: str, name: str = "mathverse") -> list[str]:
    asked = ["--samples", "4", "--max-tokens", "5", "--instruction", "?", "--device", "cpu"]
    return ["eval", name, "--model", str(model), "--prompts", str(questions), "--out", str(out), *asked, *more]


def read(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "summary.json").read_text())
    return {key: value for key, value in found.items() if key not in ("batch", "versions", "scorer_weights")}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_questions_are_answered_graded_and_summed_up(evaluated: tuple[Path, str]) -> None:
    folder, shown = evaluated
    summary, manifest = read(folder), lines(folder / "manifest.jsonl")
    assert [(row["index"], row["sample"]) for row in manifest] == [(i, j) for i in range(3) for j in range(4)]
    assert len({row["text"] for row in manifest}) > 4 and all(1 <= row["tokens"] <= 5 for row in manifest)
    assert manifest[0]["text"] != manifest[8]["text"]  # the same question again is answered anew
    right = [[int("{1}" in row["text"]) for row in manifest[4 * one : 4 * one + 4]] for one in range(3)]
    assert [line["right"] for line in lines(folder / "questions.jsonl")] == right
    mean = 100 * sum(map(sum, right)) / 12
    assert 0 < mean < 100
    assert summary["metrics"]["accuracy"]["overall"] == pytest.approx(mean)
    assert summary["answers"]["avg@4"] == pytest.approx(mean)
    assert summary["metrics"]["accuracy"]["categories"].keys() == {"count", "color"}
    assert summary["settings"]["picture_size"] == {"least": 200704, "most": 1003520}
    assert summary["settings"]["rules"] == {"questions": "messages"} and not summary["notes"]
    assert summary["scorers"] == {"answers": "math (mathruler 0.1.0)"}
    assert f"avg@4 {mean:.1f} ± " in shown and "12 answers of 3 prompts" in shown and "answers/s" in shown


def test_batches_and_an_interruption_change_nothing(
    evaluated: tuple[Path, str], model: Path, questions: Path, tmp_path: Path
) -> None:
    assert main(words(model, questions, tmp_path / "b", "--batch", "1", "--generate-only")) == 0
    assert not (tmp_path / "b/summary.json").exists()
    held = (tmp_path / "b/manifest.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b/manifest.jsonl").unlink()
    (tmp_path / "b/manifest.0.jsonl").write_text("".join(held[:5]) + held[5][:20])  # killed in the middle of a line
    assert main(words(model, questions, tmp_path / "b", "--batch", "1", "--resume")) == 0
    assert read(tmp_path / "b") == read(evaluated[0])
    for name in ("manifest.jsonl", "questions.jsonl", "scores/answers.jsonl"):
        assert (evaluated[0] / name).read_text() == (tmp_path / "b" / name).read_text()


def test_a_question_that_the_model_has_no_place_for_counts_as_wrong(
    evaluated: tuple[Path, str], model: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *others = questions.read_text().splitlines()
    own = questions.with_name("longer.jsonl")
    own.write_text("\n".join([first, first.replace("how many", "how many " * 40), *others]))
    for grader in ("math", "math-verify"):
        out = tmp_path / grader
        assert main(words(model, own, out, "--grader", grader)) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "1 of 4 questions are too long for the model: not asked, and wrong" in shown
        answers = [(row["index"], row["text"], row["tokens"]) for row in lines(out / "manifest.jsonl")]
        asked = [
            (row["index"] + (row["index"] > 0), row["text"], row["tokens"])
            for row in lines(evaluated[0] / "manifest.jsonl")
        ]
        assert answers == sorted([*asked, *[(1, "", 0)] * 4], key=lambda row: row[0])
        summary = read(out)["answers"]
        assert summary["too_long"] == 25 and summary["ungraded"] == 0 == summary["pass@1"] - summary["avg@4"]
        assert lines(out / "questions.jsonl")[1]["right"] == [0] * 4


def test_the_protocol_and_what_is_given_besides(
    evaluated: tuple[Path, str], model: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(model, questions, tmp_path / "a", "--protocol", "papo", "--grader", "math-verify")) == 0
    settings = read(tmp_path / "a")["settings"]
    assert (settings["protocol"], settings["max_tokens"], settings["instruction"]) == ("papo", 5, "?")
    assert settings["picture_size"] == {"least": 1024, "most": 589824} and settings["sampling"]["top_k"] == 50
    assert read(tmp_path / "a")["scorers"]["answers"].startswith("math-verify (math-verify ")
    assert main(["compare", str(evaluated[0]), str(tmp_path / "a")]) == 2
    assert "was judged by math (mathruler" in capsys.readouterr().err


def test_two_runs_compared(
    evaluated: tuple[Path, str], model: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = str(evaluated[0])
    assert main(words(model, questions, tmp_path / "b", "--seed", "1")) == 0
    capsys.readouterr()
    assert main(["compare", first, str(tmp_path / "b")]) == 0
    assert "accuracy | count | color" in capsys.readouterr().out
    assert main(["compare", first, "--published"]) == 2
    assert "3 prompts instead of 2180 and 4 instead of 8 answers of each" in capsys.readouterr().err


def test_questions_of_a_table_are_marked_as_ours(model: Path, questions: Path, tmp_path: Path) -> None:
    own = questions.with_name("table.jsonl")
    own.write_text(questions.read_text().replace('"messages"', '"table"'))
    assert main(words(model, own, tmp_path / "a", name="mm12k")) == 0
    assert read(tmp_path / "a")["notes"] == [OURS]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("a.png", "b.png"), "line 1 shows "),
        (('"answer": "1", ', ""), "has no 'answer': give every prompt its right answer"),
        (("<image>how", "how"), "line 1 has 0 mark(s) <image> and 1 picture(s)"),
        (("<image>how", "<image><|im_end|>how"), "line 1 holds <|im_end|>, a control token of the model"),
    ],
    ids=["lost", "unanswered", "unmarked", "control"],
)
def test_what_cannot_be_asked_is_refused(
    change: tuple[str, str], said: str, model: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = questions.with_name("changed.jsonl")
    own.write_text(questions.read_text().replace(*change))
    assert main(words(model, own, tmp_path / "a")) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--model", "tiny"], "tiny draws pictures, and here questions are answered"),
        (["--model", str(TINY)], "models/tiny draws pictures, and here questions are answered"),
        (["--samples", "0"], "samples is 0: it has to be at least 1"),
        (["--top-p", "0"], "top-p is 0"),
        (["--resume"], "no evaluation was begun in"),
    ],
    ids=["draws", "a-folder-that-draws", "samples", "top-p", "resume"],
)
def test_what_cannot_be_meant_is_refused(
    more: list[str], said: str, model: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(model, questions, tmp_path / "a", *more)) == 2
    assert said in capsys.readouterr().err


def test_without_a_model_or_its_questions(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("T2I_RL_CACHE", str(tmp_path))
    assert main(["eval", "mm12k"]) == 2
    assert main(["eval", "mm12k", "--model", str(model)]) == 2
    error = capsys.readouterr().err
    assert "missing: --model" in error and "the prompts mm12k are not here yet: run t2i-rl data make mm12k" in error


def test_questions_about_the_shapes_world_need_no_files(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dict.fromkeys(shapes_questions.NUMBERS, 6)
    monkeypatch.setattr(shapes_questions, "NUMBERS", few)
    asked = ["--model", str(model), "--samples", "2", "--max-tokens", "3", "--out", str(tmp_path / "a")]
    assert main(["eval", "questions", *asked]) == 0
    summary = read(tmp_path / "a")
    assert summary["settings"]["instruction"] == "" and summary["settings"]["rules"] == {"questions": "own"}
    assert summary["counts"]["images"] == 12
    assert {*summary["metrics"]["accuracy"]["categories"]} <= {*shapes_questions.TAGS}
    assert main(["eval", "questions", *asked[2:], "--out", str(tmp_path / "b")]) == 0
    assert read(tmp_path / "b")["settings"]["model"] == "tiny-vlm"
