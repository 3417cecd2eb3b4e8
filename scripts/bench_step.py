"""What token credit costs: whole training steps of several methods, in turn, on one random Janus-shaped model.

    python scripts/bench_step.py --json step.json
    python scripts/bench_step.py --shape.device cuda --shape.dtype bfloat16 --shape.layers 24 --shape.width 2048

A step is what `t2i-rl train` does: sample with the statistics that the method names, decode, score (here a reward
that costs nothing), credit, scoring pass of the reference, update. The methods train the same weights and take turns in
every round, so that whatever else the machine does falls on all alike; costs are medians over rounds of the ratio to
the first method's step in the same round.
"""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from bench_rollout import Bench, random_policy, timed
from jaxtyping import UInt8
from numpy import ndarray
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from models.registry import TINY
from rewards.reward import Scores
from t2i_rl.configuration.config import RolloutConfig, TrainConfig, UpdateConfig
from t2i_rl.methods.catalogue import find_method
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.training.trainer import Trainer

PHASES = ("sample", "decode", "score", "update")


@dataclass(frozen=True)
class StepBench:
    """methods: compared with the first. shape: of the model and the rollout. rounds: of one step of each method.

    micro_batch: images per forward and backward pass. json: where to write the figures.
    """

    methods: tuple[str, ...] = ("grpo", "cfg", "critical")
    shape: Bench = field(default_factory=partial(Bench, grid=12))
    rounds: int = 7
    micro_batch: int = 8
    json: Path | None = None


class Brightness:
    """The mean of the pixels."""

    name = "brightness"

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Any prompt will do."""

    def score(
        self,
        images: Sequence[UInt8[ndarray, "H W 3"]],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Scores:
        return Scores(torch.tensor([float(image.mean()) / 255 for image in images]), {}, ("",) * len(images))


def trainers(bench: StepBench) -> dict[str, Trainer]:
    """One for each method, all with the same policy."""
    shape = bench.shape
    torch.set_num_threads(shape.threads)
    policy = random_policy(shape)
    policy.tokenizer = AutoTokenizer.from_pretrained(TINY)
    sampling = Sampling(shape.guidance)
    config = TrainConfig(
        steps=bench.rounds + 1,
        seed=shape.seed,
        rollout=RolloutConfig(shape.prompts, shape.group, shape.prompts, sampling=sampling),
        update=UpdateConfig(learning_rate=1e-9, micro_batch=bench.micro_batch),
    )
    prompts = [Prompt("a photo of a red circle"), Prompt("a photo of two rings")]
    return {
        name: Trainer(dataclasses.replace(config, method=name), policy, find_method(name), Brightness(), prompts)
        for name in bench.methods
    }


def take_step(trainer: Trainer, number: int, metrics: dict[str, float]) -> None:
    metrics |= trainer.step(number)


def measure(bench: StepBench) -> dict[str, Any]:
    """Seconds of every step by method, and of its phases; what a method costs over the first."""
    by_method = trainers(bench)
    names = list(by_method)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    phases: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(1, bench.rounds + 2):  # the first round warms up
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            trainer, found = by_method[name], dict[str, float]()
            spent = timed(partial(take_step, trainer, number, found), trainer.policy.device)
            if number > 1:
                seconds[name].append(spent)
                phases[name].append({phase: found[f"seconds/{phase}"] for phase in PHASES})

    def ratio(name: str) -> list[float]:
        return [mine / base for mine, base in zip(seconds[name], seconds[names[0]], strict=True)]

    return {
        "settings": asdict(bench),
        "torch": torch.__version__,
        "seconds": seconds,
        "methods": {
            name: {
                "seconds": statistics.median(seconds[name]),
                "cost_percent": 100 * (statistics.median(ratio(name)) - 1),
                "spread_percent": 100 * statistics.median(abs(r - statistics.median(ratio(name))) for r in ratio(name)),
                **{phase: statistics.median(row[phase] for row in phases[name]) for phase in PHASES},
            }
            for name in names
        },
    }


def table(result: dict[str, Any]) -> Table:
    columns = list(next(iter(result["methods"].values())))
    shown = Table("method", *(name.replace("_", " ") for name in columns), title="A training step")
    for name, figures in result["methods"].items():
        shown.add_row(name, *(f"{figures[column]:.3g}" for column in columns))
    return shown


def main(bench: StepBench) -> None:
    result = measure(bench)
    Console().print(table(result))
    if bench.json is not None:
        bench.json.write_text(json.dumps(result, indent=2, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(StepBench, description=__doc__))
