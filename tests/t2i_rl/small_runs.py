"""Training runs that take a second: a random model, two prompts, three images each, a reward that varies.

`python -m tests.t2i_rl.small_runs MODEL FOLDER` starts one run per way of dying in FOLDER and lets it die.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray

from models.janus.policy import JanusPolicy
from rewards.catalogue import REWARDS, RewardEntry
from rewards.reward import Scores
from t2i_rl.cli import main
from t2i_rl.rollout.groups import Groups, Rollout
from t2i_rl.training import optimizer_files
from t2i_rl.training.clock import Clock
from t2i_rl.training.collecting import Collected, Collector
from t2i_rl.training.metrics_log import MetricsLog
from t2i_rl.training.trainer import Trainer

STEPS = 5
DIES_AT = 4  # the second checkpoint


class Brightness:
    """The mean of the pixels: the random model draws no shapes, but no two images alike."""

    name = "brightness"

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Any prompt will do."""

    def score(self, images: Sequence[ndarray], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Scores:
        total = torch.tensor(np.array([image.mean() / 255 for image in images]), dtype=torch.float32)
        return Scores(total, {}, ("",) * len(images))


class TokenCollector(Collector):
    """Shows the reward the tokens themselves, as grey pixels, and keeps what it collected."""

    collected: Collected

    def decode(self, rollout: Rollout) -> list[ndarray]:
        pixels = rollout.tokens.flatten(0, 1)[:, None, :, None]
        return [*pixels.expand(-1, -1, -1, 3).to(torch.uint8).numpy()]

    def collect(self, step: int, clock: Clock) -> Collected:
        self.collected = super().collect(step, clock)
        return self.collected


class TokenPictures(Trainer):
    """A trainer with such pictures, which keeps what it updated on."""

    kind: type[TokenCollector] = TokenCollector

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.collector: TokenCollector = self.kind(**vars(self.collector))

    def update(self, number: int, groups: Groups) -> dict[str, float]:
        self.updated = groups
        return super().update(number, groups)


class OfTokens(Brightness):
    """The reward of such pictures, by a function of the tokens and of the prompt."""

    def total(self, tokens: torch.Tensor, prompt: str) -> float:
        raise NotImplementedError

    def score(self, images: Sequence[ndarray], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Scores:
        rows = zip(images, prompts, strict=True)
        totals = [self.total(torch.tensor(image[0, :, 0], dtype=torch.float32), prompt) for image, prompt in rows]
        return Scores(torch.tensor(totals), {}, ("",) * len(images))


def train_words(model: Path, out: Path, method: str = "cfg", *more: str) -> list[str]:
    """The words of a `t2i-rl train` whose prompts lie beside the model."""
    prompts = model.parent / "prompts.txt"
    prompts.write_text("a photo of a ring\na photo of two crosses\na photo of a red circle\n")
    settings = f"""
        --model {model} --out {out} --method {method} --reward brightness --prompts {prompts} --heldout {prompts}
        --steps {STEPS} --rollout.prompts-per-step 2 --rollout.group-size 3 --update.learning-rate 1e-3
        --evaluation.every 3 --evaluation.images-per-tag 2 --checkpoint.every 2 --checkpoint.keep-last 1
    """
    return ["train", *settings.split(), *more]


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def cut(path: Path) -> None:
    """What a file looks like when its writer dies halfway."""
    os.truncate(path, path.stat().st_size // 2)
    die()


def before_the_first_checkpoint() -> None:
    step = Trainer.step
    Trainer.step = lambda self, number: die() if number == 2 else step(self, number)


def in_the_first_checkpoint() -> None:
    Path.rename = lambda self, target: die() if self.name.startswith(".step-") else None


def between_steps() -> None:
    step = Trainer.step
    Trainer.step = lambda self, number: die() if number == DIES_AT else step(self, number)


def in_the_metrics() -> None:
    log = MetricsLog.log

    def half_a_line(self: MetricsLog, metrics: Mapping[str, float]) -> None:
        if metrics["step"] < DIES_AT:
            return log(self, metrics)
        self.file.write(json.dumps(metrics)[:40])
        self.file.flush()
        return die()

    MetricsLog.log = half_a_line


def in_the_weights() -> None:
    save = JanusPolicy.save

    def half(self: JanusPolicy, path: Path) -> None:
        save(self, path)
        if str(DIES_AT) in path.name:
            cut(path / "model.safetensors")

    JanusPolicy.save = half


def in_the_optimizer() -> None:
    save = optimizer_files.save_file

    def half(tensors: dict[str, torch.Tensor], path: Path) -> None:
        save(tensors, path)
        if str(DIES_AT) in path.parent.name:
            cut(path)

    optimizer_files.save_file = half


def before_the_rename() -> None:
    rename = Path.rename
    Path.rename = lambda self, target: die() if str(DIES_AT) in self.name else rename(self, target)


def after_the_last_checkpoint() -> None:
    rename = Path.rename

    def then_die(self: Path, target: Path) -> Path:
        renamed = rename(self, target)
        return die() if str(STEPS) in self.name else renamed

    Path.rename = then_die


DEATHS = (
    before_the_first_checkpoint,
    in_the_first_checkpoint,
    between_steps,
    in_the_metrics,
    in_the_weights,
    in_the_optimizer,
    before_the_rename,
    after_the_last_checkpoint,
)


if __name__ == "__main__":
    REWARDS["brightness"] = RewardEntry(lambda device: Brightness())
    # One process imports, its forks run and die; torch has no threads before its first operation.
    for death in DEATHS:
        if (child := os.fork()) == 0:
            death()
            main(train_words(Path(sys.argv[1]), Path(sys.argv[2]) / death.__name__))
            os._exit(1)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"{death.__name__} did not kill the run")
