"""What a run keeps of an evaluation: which samples, and the verdicts on all of them."""

from pathlib import Path

import numpy as np
import pytest

from t2i_rl.pictures.answers import answers_path, read_answers
from t2i_rl.pictures.strips import read_strip, strip_path
from t2i_rl.prompts.prompt import Prompt, balanced
from t2i_rl.training.evaluation import Evaluation, Judged
from t2i_rl.training.samples import Verdict, kept, read_verdicts, save_samples, verdicts_path

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def prompts(**numbers: int) -> list[Prompt]:
    """So many of each tag."""
    return [Prompt(f"{tag} {n}", {"tag": tag}) for tag, number in numbers.items() for n in range(number)]


def test_every_tag_is_shown_with_prompts_from_its_whole_length():
    judged = balanced(prompts(**dict.fromkeys(TAGS, 5)), 7)  # of each tag the first two come twice
    assert [judged[index].text for index in kept(judged)] == [f"{tag} {n}" for tag in TAGS for n in (0, 4)]


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [
        ({"all": 40}, 16),
        ({"all": 3}, 3),
        ({"a": 9, "b": 1}, 9),
        ({"a": 9, "b": 9, "c": 9}, 15),
        (dict.fromkeys(map(str, range(12)), 4), 12),
        (dict.fromkeys(map(str, range(20)), 4), 16),
    ],
)
def test_how_many_are_shown(numbers: dict[str, int], shown: int):
    judged = prompts(**numbers)
    found = kept(judged)
    assert len(found) == len({judged[index].text for index in found}) == shown
    assert len({judged[index].metadata["tag"] for index in found}) == min(16, len(numbers))


@pytest.mark.parametrize(
    ("right", "score", "reason", "said"),
    [
        (True, 1.0, "expected ring==1, found 2", "right"),
        (False, 0.0, "expected ring>=1, found 0", "wrong: expected ring>=1, found 0"),
        (None, 0.28749, "", "score 0.287"),
        (None, 7.0, "dull", "score 7.000: dull"),
    ],
)
def test_a_verdict_in_words(right: bool | None, score: float, reason: str, said: str):
    assert Verdict("a ring", "all", 0, score, right, reason, None).said == said


ASKED = [Prompt("a ring"), Prompt("a cross", {"tag": "plain"}), Prompt("a ring")]


def evaluation(*samples: str | np.ndarray | None) -> Evaluation:
    judged = [Judged(n, n / 2, n > 1, f"reason {n}", sample) for n, sample in enumerate(samples)]
    return Evaluation({}, 0.0, len(judged), {}, judged)


def test_pictures_and_verdicts_come_back(tmp_path: Path):
    grey = [np.full((4, 4, 3), value, np.uint8) for value in (10, 200)]
    save_samples(tmp_path / "samples", 20, ASKED, evaluation(None, *grey))
    strip = read_strip(strip_path(tmp_path / "samples", 20))
    np.testing.assert_array_equal(np.asarray(strip), np.concatenate(grey, axis=1))
    assert read_verdicts(tmp_path / "samples", 20) == [
        Verdict("a ring", "all", 0, 0.0, False, "reason 0", None),
        Verdict("a cross", "plain", 1, 0.5, False, "reason 1", 0),
        Verdict("a ring", "all", 0, 1.0, True, "reason 2", 1),
    ]


def test_so_do_answers_even_empty_ones(tmp_path: Path):
    save_samples(tmp_path, 3, ASKED, evaluation("two", None, ""))
    assert read_answers(answers_path(tmp_path, 3)) == ["two", ""]
    assert [one.place for one in read_verdicts(tmp_path, 3)] == [0, None, 1]


def test_verdicts_that_are_not_there_or_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert read_verdicts(tmp_path, 1) == [] and capsys.readouterr().err == ""
    for text in ('{"prompt": "a"', "[]\n", '{"prompt": "a"}\n'):
        verdicts_path(tmp_path, 1).write_text(text)
        assert read_verdicts(tmp_path, 1) == []
        assert "step-000001.jsonl, which cannot be read" in capsys.readouterr().err
