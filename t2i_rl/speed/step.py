"""`t2i-rl bench step`: whole training steps of several methods, and of the first one as released trainers make them.

A step is what `t2i-rl train` does: sample with the statistics that the method names, decode, score (here a reward
that costs nothing), ask the reference, credit, update. The arms train the same weights with one optimizer and take
turns in every round, so that whatever else the machine does falls on all alike.

First the gate: in float32 the wasteful update (`t2i_rl.speed.released`) has to give our log-probabilities, loss and
gradient, for the same tokens.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy import ndarray
from rich.console import Console
from torch import Tensor

from models.architectures import janus_of
from models.policy import Policy
from rewards.reward import Scores
from t2i_rl.configuration.config import RolloutConfig, TrainConfig, UpdateConfig
from t2i_rl.errors import UserError
from t2i_rl.methods.catalogue import find_method
from t2i_rl.methods.credit.rule import Context
from t2i_rl.methods.objectives import ImageRows, denominators
from t2i_rl.planning.plan import floors
from t2i_rl.planning.plan_config import PlanConfig
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.speed.counting import of_one_more
from t2i_rl.speed.measuring import in_turns, machine, ratio, spread, timed, with_peak, write
from t2i_rl.speed.random_model import janus, random_policy
from t2i_rl.speed.released import WastefulTrainer
from t2i_rl.speed.settings import Shape, StepBench
from t2i_rl.speed.tables import table
from t2i_rl.training.clock import Clock
from t2i_rl.training.optimizer import MasterAdamW
from t2i_rl.training.reference import LOG_PROB
from t2i_rl.training.trainer import Trainer

PROMPTS = (Prompt("a photo of a red circle"), Prompt("a photo of two rings"))
PHASES = ("sample", "decode", "reference", "update")
RELEASED = "released"
GATE = Shape(layers=2, width=64, mlp=96, heads=2, codes=128, grid=4)
NEAR, ALIKE = 1e-5, 0.99999  # of log-probabilities and loss; cosine of gradients


class Brightness:
    """The mean of the pixels."""

    name = "brightness"

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Any prompt will do."""

    def score(self, images: Sequence[ndarray], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Scores:
        return Scores(torch.tensor([float(image.mean()) / 255 for image in images]), {}, ("",) * len(images))


def trainers(bench: StepBench, policy: Policy, reference: Policy) -> dict[str, Trainer]:
    """One for each arm, all with the same weights, reference and optimizer."""
    first, *_ = bench.methods
    config = TrainConfig(
        steps=bench.rounds + 1,
        seed=bench.seed,
        device=bench.device,
        rollout=RolloutConfig(2, bench.images // 2, 2, sampling=Sampling(bench.guidance)),
        update=UpdateConfig(learning_rate=1e-9, micro_batch=bench.micro_batch),
    )
    found = dict[str, Trainer]()
    for arm in (*bench.methods, *([RELEASED] if bench.wastes else [])):
        method = first if arm == RELEASED else arm
        given = replace(config, method=method), policy, find_method(method), Brightness(), PROMPTS, reference
        trainer = WastefulTrainer(frozenset(bench.wastes), *given) if arm == RELEASED else Trainer(*given)
        if found:
            if isinstance(trainer.optimizer, MasterAdamW):
                trainer.optimizer.close()
            trainer.optimizer = found[first].optimizer
        found[arm] = trainer
    return found


def gate(bench: StepBench) -> dict[str, float]:
    """How far the wasteful update is from ours on a small model. Raises UserError beyond rounding."""
    policy = random_policy(bench, GATE, torch.float32)
    elsewhere = random_policy(replace(bench, seed=bench.seed + 1, lora_rank=0), GATE, torch.float32)
    arms = trainers(bench, policy, elsewhere.reference())
    if RELEASED not in arms:
        return {}
    ours, released = arms[bench.methods[0]], arms[RELEASED]
    rollout, images, parts = same_update(ours)
    found = []
    for trainer in (ours, released):
        sums, lp = trainer.backward(rollout, images, parts)
        gradient = torch.cat([p.grad.flatten() for p in policy.trainable_parameters() if p.grad is not None])
        policy.module.zero_grad(set_to_none=True)
        found.append((sums["value"], lp, gradient))
    (loss, lp, gradient), (other_loss, other_lp, other_gradient) = found
    apart = {
        "log_prob": (lp - other_lp).abs().max().item(),
        "loss": abs(loss - other_loss),
        "gradient_cosine": F.cosine_similarity(gradient.double(), other_gradient.double(), dim=0).item(),
    }
    if max(apart["log_prob"], apart["loss"]) > NEAR or apart["gradient_cosine"] < ALIKE:
        raise UserError(f"bench step: the released step is not ours ({apart}), so their times cannot be compared")
    return apart


def same_update(trainer: Trainer) -> tuple[Rollout, ImageRows, Any]:
    """A rollout of the trainer and what the update needs to know of it, with rewards that tell the images apart."""
    clock = Clock()
    groups = trainer.collector.collect(1, clock).rounds[0]
    rollout = groups.rollout
    earned: Float[Tensor, "P G"] = trainer.advantages(groups).to(rollout.tokens.device)
    credit = trainer.credit(rollout, Context(earned))
    images = ImageRows.of(credit, earned, None, rollout.statistics.get(LOG_PROB))
    return rollout, images, denominators(credit, trainer.method.objective)


def looks(bench: StepBench, arms: dict[str, Trainer]) -> dict[str, int]:
    """How often the host waits in one more micro-batch of the update."""
    found = {}
    for arm in {bench.methods[0], RELEASED} & arms.keys():
        trainer = arms[arm]
        rollout, images, parts = same_update(arms[bench.methods[0]])

        def work(batches: int, trainer: Trainer = trainer, given: Any = (rollout, images, parts)) -> None:
            size = -(-bench.images // batches)
            trainer.config = replace(trainer.config, update=replace(trainer.config.update, micro_batch=size))
            trainer.backward(*given)
            trainer.policy.module.zero_grad(set_to_none=True)

        found[arm] = of_one_more(work, 1, torch.device(bench.device)).looks
    return found


def least(bench: StepBench, trainer: Trainer) -> tuple[float, float]:
    """Bytes that a step of the trainer has to move, and operations that it cannot save (`t2i_rl.planning.plan`)."""
    policy = trainer.policy
    plan = replace(
        PlanConfig.of(trainer.config, trainer.config.model),  # the sizes are those below
        dtype=bench.dtype,
        evaluation_batch=0,
        lora_rank=bench.lora_rank,
        prompt_tokens=policy.encode([prompt.text for prompt in PROMPTS]).tensors["ids"].shape[-1],
    )
    with torch.device("meta"):
        found = floors(janus_of(janus(policy).model.config), plan)
    return sum(found["bytes"]), sum(found["operations"])


def measure(bench: StepBench, console: Console) -> dict[str, Any]:
    """All figures of the benchmark, as JSON holds them."""
    if bench.threads:
        torch.set_num_threads(bench.threads)
    apart, device = gate(bench), torch.device(bench.device)
    known = machine(device)
    small = random_policy(bench, GATE, getattr(torch, bench.dtype))
    waits = looks(bench, trainers(bench, small, small.reference()))
    shape = replace(bench.shape, grid=bench.grid or bench.shape.grid)
    policy = random_policy(bench, shape, getattr(torch, bench.dtype))
    arms = trainers(bench, policy, policy.reference())
    first_method = bench.methods[0]
    phases: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    peaks = dict[str, float | None]()

    def run(arm: str, number: int) -> float:
        found = dict[str, float]()

        def step() -> None:
            found.update(arms[arm].step(number + 1))

        if number == 0:
            spent = timed(lambda: peaks.update({arm: with_peak(step, device)}), device)
        else:
            spent = timed(step, device)
            phases[arm].append({phase: found.get(f"seconds/{phase}", 0.0) for phase in PHASES})
        console.print(f"round {number}/{bench.rounds}  {arm}  {spent:.2f} s")
        return spent

    first, seconds = in_turns(list(arms), bench.rounds, run)

    def figures(arm: str) -> dict[str, Any]:
        against = ratio(seconds, arm, first_method)
        compared = ratio(seconds, RELEASED, arm) if RELEASED in arms else None
        median, (moved, operations) = statistics.median(seconds[arm]), least(bench, arms[arm])
        nominal = known["nominal_gb_per_s"]
        return {
            "first_seconds": first[arm],
            "seconds": median,
            **{phase: statistics.median(row[phase] for row in phases[arm]) for phase in PHASES},
            "cost_percent": 100 * (statistics.median(against) - 1),
            "spread_percent": 100 * spread(against),
            "gb": moved / 1e9,
            "gflop": operations / 1e9,
            "gb_per_s": moved / 1e9 / median,
            "gflop_per_s": operations / 1e9 / median,
            "share_of_floor": moved / 1e9 / known["copy_gb_per_s"] / median,
            "share_of_nominal": None if nominal is None else moved / 1e9 / nominal / median,
            "peak_gb": peaks[arm],
            "ratio_vs_released": None if compared is None else statistics.median(compared),
        }

    result = {
        "settings": asdict(bench),
        **known,
        "gate": apart,
        "syncs_per_micro_batch": waits,
        "rounds": seconds,
        "arms": {arm: figures(arm) for arm in arms},
    }
    title = f"A training step: {bench.model}, {bench.images} images, {bench.dtype} on {bench.device}"
    console.print(table(title, result["arms"], f"the host waits in a micro-batch: {waits}"))
    return result


def bench_step(bench: StepBench) -> None:
    write(bench.json, measure(bench, Console()))
