"""Run folders of a model that answers in text: being killed, bad input, pictures that are others."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from models.question import Question
from rewards.files.pins import sha256
from t2i_rl.cli import main
from t2i_rl.training.picture_record import RECORD
from tests.models.small_qwen_vl import picture
from tests.t2i_rl.training.answering import PROMPTS, question_file, words
from tests.t2i_rl.training.runs import assert_same_run, refused, without_time

KILLED = """
import os, signal, sys
from pathlib import Path
from rewards.catalogue import REWARDS, RewardEntry
from t2i_rl.cli import main
from t2i_rl.training.trainer import Trainer
from tests.t2i_rl.training.answering import ShareOfWord, words
REWARDS["word"] = RewardEntry(lambda device: ShareOfWord(), scores="answers")
step = Trainer.step
Trainer.step = lambda self, number: os.kill(os.getpid(), signal.SIGKILL) if number == 4 else step(self, number)
main(words(*map(Path, sys.argv[1:])))
"""


def test_a_killed_run_goes_on_bit_for_bit(word: None, saved: Path, tmp_path: Path):
    questions = question_file(tmp_path / "data")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(words(saved, questions, whole)) == 0
    asked = [sys.executable, "-c", KILLED, str(saved), str(questions), str(killed)]
    assert subprocess.run(asked, env=os.environ, check=False).returncode == -9
    assert main(["train", "--resume", str(killed)]) == 0
    assert_same_run(killed, whole)
    answers = json.loads((whole / "samples" / "step-000004.json").read_text())
    assert len(answers) == 4 and all(isinstance(answer, str) for answer in answers)
    assert (whole / "samples.png").is_file()


def test_a_question_that_is_too_long_is_left_out(
    word: None, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Beyond the model's 64 places, or beyond what is said; the rest is trained on as if it were all there is."""
    questions, heldout = question_file(tmp_path / "data"), question_file(tmp_path / "held")
    lines = questions.read_text().splitlines()
    fewer = [*lines[:1], *lines[3:]]
    short = questions.with_name("short.jsonl")
    short.write_text("\n".join(fewer))
    questions.write_text("\n".join([fewer[0], json.dumps({"prompt": "one " * 70, "answer": "1"}), *fewer[1:]]))
    said = ("--heldout", str(heldout), "--steps", "2")
    assert main(words(saved, questions, tmp_path / "run", *said)) == 0
    assert "1 of 3 training questions are left out: they have more tokens" in capsys.readouterr().out
    record = json.loads((tmp_path / "run/prompts.json").read_text())
    assert record["prompts"]["left_out"] == 1 == record["prompts"]["number"] - 2
    assert "left_out" not in record["heldout"]
    assert main(words(saved, short, tmp_path / "short", *said)) == 0
    assert without_time(tmp_path / "run") == without_time(tmp_path / "short")
    assert main(["train", "--resume", str(tmp_path / "run"), "--steps", "3"]) == 0
    most = ("--question.max-prompt-tokens", "9", *said)
    assert "every training question has more than 9 tokens" in refused(
        capsys, *words(saved, questions, tmp_path / "none", *most)
    )
    assert not (tmp_path / "none").exists()


def test_other_pictures_are_refused(word: None, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    questions, heldout, run = question_file(tmp_path / "data"), question_file(tmp_path / "held"), tmp_path / "run"
    assert main(words(saved, questions, run, "--heldout", str(heldout), "--steps", "2")) == 0
    record = json.loads((run / RECORD).read_text())
    assert record["prompts"].keys() == {"0-0.png", "2-0.png", "2-1.png", "3-0.png"} == record["heldout"].keys()
    assert record["prompts"]["2-1.png"] == sha256(questions.parent / "2-1.png")
    going_on = ("train", "--resume", run, "--steps", "4")
    for folder, line, name in ((questions.parent, 3, "2-1.png"), (heldout.parent, 1, "0-0.png")):
        path = folder / name
        before = path.read_bytes()
        Image.fromarray(picture(9, 16, 24)).save(path)
        said = refused(capsys, *going_on)
        assert f"line {line} shows {path}, which is not the picture that {run} began with (SHA-256 " in said
        path.unlink()
        assert f"line {line} shows {path}, which cannot be read (No such file" in refused(capsys, *going_on)
        path.write_bytes(before)
    (run / RECORD).write_text("{}")
    assert f"{RECORD} has no SHA-256 of 0-0.png" in refused(capsys, *going_on)
    (run / RECORD).unlink()  # as of a run from before there was one
    assert main([*map(str, going_on)]) == 0


def test_a_group_is_shown_with_the_pictures_that_it_was_trained_on(
    word: None, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    questions, run = question_file(tmp_path / "data"), tmp_path / "run"
    questions.write_text(questions.read_text().splitlines()[0])
    assert main(words(saved, questions, run, "--steps", "1", "--rollout.prompts-per-step", "2")) == 0
    seen = ("heatmap", "--from-run", run, "--step", "1", "--out")
    assert main([*map(str, seen), str(tmp_path / "maps")]) == 0
    capsys.readouterr()
    Image.fromarray(picture(9, 16, 24)).save(questions.parent / "0-0.png")
    assert "which is not the picture that" in refused(capsys, *seen, tmp_path / "others")


@pytest.mark.parametrize(
    ("spoil", "more", "says"),
    [
        ("mark", [], "line 1 has 2 mark(s) <image> and 1 picture(s)"),
        ("gone", [], "line 1 shows"),
        ("torn", [], "0-0.png, which cannot be read"),
        ("long", [], "places, those of the answer among them"),
        ("none", ["--method", "critical"], "looks at places of a picture"),
        ("none", ["--reward", "shapes"], "scores pictures, and the model"),
        ("none", ["--prompts", "shapes:train"], "prompts is shapes:train"),
        ("none", ["--contrast", "null"], "no negative prompt of a model that answers in text"),
        ("none", ["--rollout.sampling.guidance-scale", "2"], "answers in text have no guidance"),
        ("none", ["--negative-prompt", "x"], "a negative prompt is of guidance"),
        ("none", ["--update.log-prob", "cfg"], "log-prob cfg is of guidance"),
        ("none", ["--update.mini-batches", "3"], "more than the 2 prompts of a step"),
    ],
)
def test_bad_input_is_one_sentence(
    spoil: str, more: list[str], says: str, word: None, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    questions = question_file(tmp_path / "data")
    first, *others = questions.read_text().splitlines()
    if spoil == "mark":
        questions.write_text("\n".join([first.replace("<image>", "<image><image>"), *others]))
    elif spoil == "gone":
        (questions.parent / "0-0.png").unlink()
    elif spoil == "torn":
        path = questions.parent / "0-0.png"
        os.truncate(path, path.stat().st_size - 20)
    elif spoil == "long":
        questions.write_text("\n".join([first.replace("how many", "how many " * 40), *others]))
    said = refused(capsys, *words(saved, questions, tmp_path / "run", *more))
    assert says in said and not (tmp_path / "run").exists()


def test_questions_without_answers(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    questions = question_file(tmp_path / "data")
    questions.write_text(questions.read_text().replace('"answer"', '"solution"'))
    pytest.importorskip("mathruler")
    said = refused(capsys, *words(saved, questions, tmp_path / "run", "--reward", "math"))
    assert "has no 'answer'" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--reward math", "which scores answers, and the model tiny draws pictures"),
        ("--prompts questions:train", "prompts is questions:train, and the model tiny draws pictures"),
        ("--contrast wrong-answer", "draws pictures: choose null"),
        ("--question.instruction think", "question settings have no effect"),
    ],
)
def test_a_model_that_draws_is_not_asked_questions(words: str, says: str, capsys: pytest.CaptureFixture[str]):
    assert says in refused(capsys, "train", "--method", "cfg", *words.split())


def test_a_question_is_known_by_its_pictures():
    same = dataclasses.replace(PROMPTS[0], pictures=(picture(5, 16, 24),))
    assert len({PROMPTS[0].key, same.key, Question(PROMPTS[0].text).key}) == 3
