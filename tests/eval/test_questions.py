"""Questions to a judge: a benchmark of one's own in one file, and what is refused."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from eval.description import read
from eval.questions import Question, QuestionScorer
from rewards.errors import RewardError
from rewards.judges.endpoint import Endpoint
from t2i_rl.cli import main
from t2i_rl.prompts.prompt import Prompt
from tests.conftest import random_janus
from tests.eval.small import lines
from tests.rewards.judges.test_judge import HASTY, Reply, endpoint, level, likely
from tests.rewards.servers import answering

EXAMPLES = re.findall(r"```toml\n(.*?)```", (Path(__file__).parents[2] / "docs/add-a-benchmark.md").read_text(), re.S)


def text_of(asked: dict) -> str:
    return next(part["text"] for part in asked["messages"][0]["content"] if part["type"] == "text")


def test_the_documented_files_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Every file of docs/add-a-benchmark.md, as it stands there."""
    random_janus().save(tmp_path / "model")
    asked: list[str] = []

    def reply(question: dict) -> tuple[int, bytes]:
        asked.append(text_of(question))
        return likely(**{"2": 0.5, "1": 0.5} if "2" in asked[-1] else {"yes": 0.8, "no": 0.2})

    monkeypatch.setenv("T2I_RL_CACHE", str(tmp_path / "cache"))
    assert len(EXAMPLES) >= 2
    with answering(endpoint(reply)) as address:
        monkeypatch.setenv("T2I_RL_JUDGE", f"{address}/v1")
        for number, example in enumerate(EXAMPLES):
            file, out = tmp_path / f"{number}.toml", tmp_path / f"out{number}"
            file.write_text(example)
            drawing = ["--model", str(tmp_path / "model"), "--guidance-scale", "2", "--batch", "8"]
            assert main(["eval", str(file), *drawing, "--out", str(out)]) == 0, capsys.readouterr().err
            summary = json.loads((out / "summary.json").read_text())
            described = read(file)
            assert summary["metrics"].keys() == {metric.name for metric in described.benchmark.metrics}
            assert summary["counts"]["images"] == len(described.benchmark.keys)
            assert "judge-7b" in summary["scorers"]["questions"] and address not in summary["scorers"]["questions"]
            row = lines(out / "scores/questions.jsonl")[0]
            prompt = described.benchmark.prompts[0]
            every = [text for question in described.questions for text in question.texts(prompt)]
            assert [*row["details"]["grades"]] == every and {*every} <= {*asked}
            for question in described.questions:
                expected = 1.5 if set(question.words) == {"0", "1", "2"} else 0.8
                assert [row["values"][name] for name in question.values] == pytest.approx(
                    [expected] * len(question.values)
                )


def scorer(address: str, *questions: Question) -> QuestionScorer:
    return QuestionScorer(questions, Endpoint(f"{address}/v1"), HASTY)


def by_level(question: dict) -> tuple[int, bytes]:
    """Yes with the brightness of the image; in doubt about dogs."""
    share = 0.5 if "dog" in text_of(question) else max(level(question), 1) / 256
    return likely(yes=share, no=1 - share)


def score(reply: Reply, *questions: Question, images: int = 2):
    prompts = [Prompt("a cat", {"parts": ["a cat", "a dog"]}), Prompt("a cup", {"parts": ["a cup"]})][:images]
    pictures = [np.full((4, 4, 3), 64, np.uint8), np.full((4, 4, 3), 128, np.uint8)][:images]
    with answering(endpoint(reply)) as address:
        judged = scorer(address, *questions)
        judged.check(prompts)
        return judged.score(pictures, prompts)


def test_one_question_for_each_entry():
    parts, whole = Question("parts", "Is there {entry}?", "parts"), Question("whole", "Does it show {prompt}?")
    first, second = score(by_level, parts, whole)
    assert first.values == pytest.approx(
        {"parts": 0.375, "parts_geometric": math.sqrt(0.125), "parts_worst": 0.25, "whole": 0.25}, abs=1e-6
    )
    assert second.values == pytest.approx(
        {"parts": 0.5, "parts_geometric": 0.5, "parts_worst": 0.5, "whole": 0.5}, abs=1e-6
    )
    assert first.details["grades"].keys() == {"Is there a cat?", "Is there a dog?", "Does it show a cat?"}


def test_an_answer_in_other_words_is_no_score():
    with pytest.raises(RewardError, match="would not say any of yes, no"):
        score(lambda question: likely(perhaps=0.9), Question("whole", "Is it {prompt}?"))


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Question("why", "Is it {because}?"), "\"a cat\" has no 'because', which the question 'why' needs"),
        (Question("why", "Is it {entry}?", "atoms"), "has no 'atoms'"),
        (Question("why", "Is it {entry}?", "prompt"), "'prompt' is 'a cat', not a list"),
    ],
)
def test_metadata_that_lack_something(question: Question, message: str):
    with pytest.raises(RewardError, match=re.escape(message)):
        QuestionScorer([question], Endpoint("http://there/v1"), HASTY).check([Prompt("a cat")])


def test_the_name_tells_questions_and_models_apart():
    names = []
    for text in ("Is it {prompt}?", "Is this {prompt}?"):
        with answering(endpoint(by_level)) as address:
            judged = scorer(address, Question("whole", text))
            judged.check([Prompt("a cat")])
            names.append(judged.name)
    assert len({*names}) == 2 and all(name.endswith("to judge-7b") for name in names)


def test_no_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.delenv("T2I_RL_JUDGE", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text('name = "own"\nprompts = ["a cat"]\n[questions.red]\nask = "Is it red?"\n')
    assert main(["eval", "own.toml"]) == 2
    assert "T2I_RL_JUDGE is not set, so there is no judge to ask" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["own.toml"]
