"""What tests share of runs that answer in text: questions, a reward, a small policy, and a run's command line."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from models.qwen_vl.policy import QwenVLPolicy
from rewards.reward import Scores
from t2i_rl.configuration.config import QuestionConfig, RolloutConfig, TrainConfig, UpdateConfig
from t2i_rl.methods.catalogue import find_method
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.training.trainer import Trainer
from tests.models.small_qwen_vl import KINDS, picture, random_qwen

PROMPTS = [
    Prompt("<image>how many circle are there ?", pictures=(picture(0, 16, 24),)),
    Prompt("how many is one and two ?"),
    Prompt("is <image> left of <image> ?", pictures=(picture(1, 8, 16), picture(2, 24, 16))),
    Prompt("<image>what color is the circle ?", pictures=(picture(3, 16, 16),)),
]
WORD, MOST = "circle", 12


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
