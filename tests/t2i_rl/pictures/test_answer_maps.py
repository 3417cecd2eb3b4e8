"""Answers word by word: what is shown are the answer's own words, values and colours."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.question import Question
from models.registry import load
from t2i_rl.cli import main
from t2i_rl.methods.catalogue import find_method
from t2i_rl.pictures.answer_files import COLUMNS, broken, draw, page, rows
from t2i_rl.pictures.answer_maps import END, AnswerMaps, answer_maps, words_of
from t2i_rl.prompts.asking import Asking
from t2i_rl.prompts.reading import load_prompts
from t2i_rl.rollout.noise import Noise
from t2i_rl.rollout.sampler import ask, sample_group
from t2i_rl.rollout.sampling import Sampling
from tests.t2i_rl.training.runs import refused

PLAIN, ASKING = Sampling(1.0), Asking(against="wrong-answer")


@pytest.fixture(scope="module")
def maps() -> AnswerMaps:
    prompt = load_prompts("questions:heldout")[4]
    return answer_maps(load("tiny-vlm"), prompt, ASKING, 3, PLAIN, 0, find_method("cfg-text"), 40, "tiny-vlm")


def test_the_words_are_the_answer():
    policy, [prompt] = load("tiny-vlm"), load_prompts("questions:heldout")[:1]
    rollout = sample_group(policy, ask(policy, ASKING, [prompt]), 2, PLAIN, Noise(0), max_tokens=40)
    lengths = rollout.lengths[0].tolist()
    for tokens, length, text in zip(rollout.tokens[0], lengths, rollout.samples(policy), strict=True):
        words = words_of(policy, tokens[:length])
        assert len(words) == length and words[-1] == END and "".join(words[:-1]) == text
    cut = words_of(policy, rollout.tokens[0, 0, :3])
    assert cut[-1] != END and "".join(cut) == policy.decode(rollout.tokens[:1, 0, :3])[0]


def test_the_values_of_each_word(maps: AnswerMaps):
    for answer in maps.answers:
        n = len(answer.words)
        assert all(values.shape == (n,) for values in answer.maps.values())
        order = answer.maps["kl"].argsort().argsort()
        np.testing.assert_allclose(answer.maps["cfg"], order / (n - 1), atol=1e-6)  # no ties here
        np.testing.assert_array_equal(answer.maps["credit"], answer.maps["cfg"])
        heading = dict(zip(answer.words, answer.maps["cfg"].tolist(), strict=True))
        assert heading[" I"] < 0.5


def test_a_page_and_a_figure(maps: AnswerMaps):
    html = page(maps)
    assert html.count("<table>") == 3 and "data:image/png;base64," in html and "&lt;think&gt;" in html
    assert maps.question in html and "<image>" not in maps.question
    figure = draw(maps)
    assert len(figure.axes) == 2
    for answer in maps.answers:
        for _, words in rows(maps, answer):
            lines = broken(words)
            assert all(sum(len(word) for word, _, _ in line) <= COLUMNS for line in lines)
            assert [word for line in lines for word in line] == words
            assert all(0 <= color[3] <= 1 for _, _, color in words)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    prompt = load_prompts("questions:heldout")[0]
    path = tmp_path / "picture.png"
    Image.fromarray(prompt.pictures[0]).save(path)
    words = ["heatmap", "How many rings are there?", "--model", "tiny-vlm", "--image", str(path), "--max-tokens", "40"]
    assert main([*words, "--group-size", "2", "--maps", "kl", "credit", "--out", str(tmp_path / "maps")]) == 0
    assert {one.name for one in (tmp_path / "maps").iterdir()} == {"heatmap.png", "heatmap.html", "answers.json"}
    found = json.loads((tmp_path / "maps" / "answers.json").read_text())
    assert found["question"] == "How many rings are there?" and len(found["answers"]) == 2
    assert {"kl", "credit"} <= found["answers"][0].keys() and "entropy" not in found["answers"][0]
    capsys.readouterr()
    for more, says in (
        (["--method", "critical"], "looks at places of a picture"),
        (["--maps", "similarity"], "there is no map 'similarity' of answers"),
        (["--image", str(path), str(path), "--contrast", "cheerful"], "unknown negative prompt 'cheerful'"),
    ):
        assert says in refused(capsys, *words, *more, "--out", tmp_path / "more")
    assert "are of questions" in refused(capsys, "heatmap", "a ring", "--image", path, "--out", tmp_path / "more")


def test_a_question_of_no_picture_is_asked_too():
    found = load("tiny-vlm").encode([Question("How many rings are there?")])
    assert torch.is_tensor(found.tensors["ids"])
