"""Runs of a model that answers in text: the step, its parts, what they must not depend on, and being killed."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.question import Question
from models.qwen_vl.policy import QwenVLPolicy
from rewards.catalogue import REWARDS, RewardEntry
from rewards.reward import Scores
from t2i_rl.cli import main
from t2i_rl.configuration.config import QuestionConfig, RolloutConfig, TrainConfig, UpdateConfig
from t2i_rl.methods.catalogue import METHODS, find_method
from t2i_rl.prompts.contrasts import CONTRASTS
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.groups import Rollout
from t2i_rl.training.trainer import Trainer
from t2i_rl.training.update import even_parts
from tests.models.small_qwen_vl import KINDS, picture, random_qwen
from tests.t2i_rl.training.runs import assert_same_run, refused

PROMPTS = [
    Prompt("<image>how many circle are there ?", pictures=(picture(0, 16, 24),)),
    Prompt("how many is one and two ?"),
    Prompt("is <image> left of <image> ?", pictures=(picture(1, 8, 16), picture(2, 24, 16))),
    Prompt("<image>what color is the circle ?", pictures=(picture(3, 16, 16),)),
]
WORD, MOST = "circle", 12
ON_TEXT = [name for name, method in METHODS.items() if not method.credit.places and method.objective.unit != "row"]


class ShareOfWord:
    """How much of an answer is one word; hardly anything else, so that few answers tie."""

    name = "word"

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Any prompt will do."""

    def score(self, answers: Sequence[str], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Scores:
        assert all(isinstance(answer, str) for answer in answers)
        words = [answer.split() for answer in answers]
        total = [one.count(WORD) / max(1, len(one)) + 1e-3 * (len("".join(one)) % 7) for one in words]
        right = torch.tensor(total)
        return Scores(right, {"strict": (right > 0).float()}, ("",) * len(answers))


def policy(kind: str, folder: Path) -> QwenVLPolicy:
    """One that ends its answers early and late: a few of the words are stop tokens to it."""
    found = random_qwen(kind, folder)
    found.stop_tokens = (*found.stop_tokens, *range(3, 6))
    return found


def settings(update_micro: int = 16, rollout_micro: int = 4, contrast: str | None = None, **update: Any) -> TrainConfig:
    return TrainConfig(
        model="tiny-vlm",
        reward="math",
        prompts="questions:train",
        heldout="questions:heldout",
        contrast=contrast,
        question=QuestionConfig(max_tokens=MOST),
        rollout=RolloutConfig(len(PROMPTS), 4, rollout_micro),
        update=UpdateConfig(**{"learning_rate": 1e-3, "schedule": "constant", "micro_batch": update_micro, **update}),
    )


class Kept(Trainer):
    """Keeps what it collected."""

    def update(self, number: int, groups: Any) -> dict[str, float]:
        self.updated = groups
        return super().update(number, groups)


def trainer(method: str, config: TrainConfig, folder: Path, kind: str = KINDS[0]) -> Kept:
    return Kept(config, policy(kind, folder), find_method(method), ShareOfWord(), PROMPTS)


def weights(found: Kept) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in found.policy.module.named_parameters()}


def timeless(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "second" not in name}


@pytest.mark.parametrize("method", ON_TEXT)
def test_every_method_of_tokens_takes_a_step(method: str, tmp_path: Path):
    config = settings(updates_per_rollout=1 + (METHODS[method].source == "current"))
    metrics = trainer(method, config, tmp_path).step(1)
    assert all(np.isfinite(value) for value in metrics.values()) and metrics["grad_norm"] > 0
    assert 1 < metrics["length"] < MOST and 0 <= metrics["truncated"] < 1
    assert metrics["logprob_gap"] < 1e-4 and "answers_per_second" in metrics


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["cfg-text", "dapo", "gspo", "vppo[objective=cfg-text]", "dr-grpo"])
def test_micro_batches_padding_and_order_do_not_matter(method: str, kind: str, tmp_path: Path):
    """A rollout in rows of other companions: the same answers, and the same gradient up to float32's rounding."""
    ends = []
    for update_micro, rollout_micro in ((16, 4), (1, 1), (5, 3)):
        found = trainer(method, settings(update_micro, rollout_micro, learning_rate=0.1), tmp_path, kind)
        found.optimizer = torch.optim.SGD([*found.policy.trainable_parameters()])
        found.step(1)
        ends.append((found.updated.rollout, weights(found)))
    (whole, moved), *others = ends
    assert len(set(whole.lengths.flatten().tolist())) > 3
    for rollout, other in others:
        assert torch.equal(rollout.tokens, whole.tokens)
        for name in moved:
            torch.testing.assert_close(other[name], moved[name], rtol=0, atol=2e-6)


def test_what_stands_behind_an_end_is_never_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    method, config = "cfg-text", settings(learning_rate=0.1)
    plain = trainer(method, config, tmp_path)
    wider = trainer(method, config, tmp_path)
    choose = type(wider.collector).choose

    def with_rubbish(collector: Any, collected: Any) -> Any:
        groups = choose(collector, collected)
        tokens, rollout = groups.rollout.tokens.clone(), groups.rollout
        assert (~rollout.valid).any()
        tokens[~rollout.valid] = 9
        statistics = {name: values.masked_fill(~rollout.valid, 77.0) for name, values in rollout.statistics.items()}
        stops = rollout.lengths
        spoilt = Rollout(rollout.condition, tokens, statistics, rollout.stop_tokens)
        assert torch.equal(spoilt.lengths, stops)
        return dataclasses.replace(groups, rollout=spoilt)

    plain.step(1)
    monkeypatch.setattr(type(wider.collector), "choose", with_rubbish)
    wider.step(1)
    assert all(torch.equal(value, weights(wider)[name]) for name, value in weights(plain).items())


@pytest.mark.parametrize("contrast", [*CONTRASTS, "text:are there <image> ?"])
def test_every_negative_prompt(contrast: str, tmp_path: Path):
    config = settings(contrast=contrast)
    if contrast.startswith("text:"):
        config = dataclasses.replace(config, rollout=RolloutConfig(1, 4))
        found = Kept(config, policy(KINDS[0], tmp_path), find_method("cfg-text"), ShareOfWord(), PROMPTS[:1])
    else:
        found = trainer("cfg-text[filter_zero_std=off]", config, tmp_path)
    found.step(1)
    divergence = found.updated.rollout.statistics["kl_cond_uncond"]
    pictures = contrast in ("blank-image", "masked-image", "no-image")
    for prompt, values in zip(found.updated.records, divergence, strict=True):
        differs = bool(prompt.pictures) or not pictures
        assert (values.max() > 1e-6) == differs


def test_parts_of_a_rollout(tmp_path: Path):
    """Several optimizer steps, each on other questions; from the second on, ratios are those to the first policy."""
    assert even_parts(4, 3) == [slice(0, 1), slice(1, 2), slice(2, 4)] and even_parts(1, 3) == [slice(0, 1)]
    seen = []

    class Watched(Kept):
        def credit(self, rollout: Rollout, context: Any) -> Any:
            seen.append((rollout.tokens, weights(self)))
            return super().credit(rollout, context)

    config = settings(mini_batches=2, updates_per_rollout=2)
    found = Watched(config, policy(KINDS[0], tmp_path), find_method("cfg-text-released"), ShareOfWord(), PROMPTS)
    metrics = found.step(1)
    assert len(seen) == 4 and metrics["logprob_gap"] < 1e-4 and metrics["clip_fraction"] >= 0
    groups = found.updated.rollout.tokens
    for (tokens, _), rows in zip(seen, even_parts(len(groups), 2) * 2, strict=True):
        assert torch.equal(tokens, groups[rows])
    heads = [found["lm_head.weight"] for _, found in seen]
    assert all(not torch.equal(before, after) for before, after in pairwise(heads))


def test_it_learns(tmp_path: Path):
    learner = trainer("cfg-text", settings(learning_rate=5e-3), tmp_path)
    rewards = [learner.step(number)["reward"] for number in range(1, 16)]
    assert sum(rewards[-4:]) > 1.5 * sum(rewards[:4])


# Run folders


def question_file(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    lines = []
    for number, prompt in enumerate(PROMPTS):
        names = [f"{number}-{place}.png" for place in range(len(prompt.pictures))]
        for name, pixels in zip(names, prompt.pictures, strict=True):
            Image.fromarray(pixels).save(folder / name)
        lines.append(json.dumps({"prompt": prompt.text, "images": names, "answer": str(number), "tag": "all"}))
    path = folder / "questions.jsonl"
    path.write_text("\n".join(lines))
    return path


def words(model: Path, questions: Path, out: Path, *more: str) -> list[str]:
    said = f"""
        --model {model} --method cfg-text[filter_zero_std=off] --reward word --prompts {questions} --heldout {questions}
        --out {out} --steps 4 --rollout.prompts-per-step 2 --rollout.group-size 3 --update.mini-batches 2
        --update.learning-rate 1e-3 --question.max-tokens {MOST} --question.pictures.least 64
        --evaluation.every 2 --evaluation.images-per-tag 4 --checkpoint.every 2 --checkpoint.keep-last 1
    """
    return ["train", *said.split(), *more]


@pytest.fixture
def word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REWARDS, "word", RewardEntry(lambda device: ShareOfWord(), scores="answers"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "qwen"
    random_qwen(KINDS[0], tmp_path / "processor").save(folder)
    return folder


KILLED = """
import os, signal, sys
from pathlib import Path
from rewards.catalogue import REWARDS, RewardEntry
from t2i_rl.cli import main
from t2i_rl.training.trainer import Trainer
from tests.t2i_rl.training.test_answers import ShareOfWord, words
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
