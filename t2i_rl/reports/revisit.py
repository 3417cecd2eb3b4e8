"""A step of a finished or running training run, once more: the same weights, noise and rules, so the same groups.

The trainer itself samples, scores and credits (`t2i_rl.training.trainer`), from the checkpoint of the step before;
nothing is updated. In float32 on the machine of the run the images are the same bit for bit.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from models.device import AUTO, device_of
from models.registry import answers_in_text, load
from rewards.catalogue import Samples
from rewards.registry import build
from t2i_rl.configuration.asking import DEFAULT_CONTRAST
from t2i_rl.configuration.config import CONFIG, TrainConfig, read_config
from t2i_rl.configuration.run_method import run_method
from t2i_rl.errors import UserError
from t2i_rl.methods.baselines import Running
from t2i_rl.methods.credit.rule import Context
from t2i_rl.pictures.answer_maps import AnswerMaps, answers_of
from t2i_rl.pictures.heatmaps import CONTRAST, CRITICAL, TokenMaps, maps_of
from t2i_rl.rollout.measure import measure
from t2i_rl.rollout.sampler import ask
from t2i_rl.training import checkpoints
from t2i_rl.training.clock import Clock
from t2i_rl.training.origins import origin_of
from t2i_rl.training.picture_record import check_pictures
from t2i_rl.training.prompt_record import prompts_of
from t2i_rl.training.run_folder import CHECKPOINTS, at_step, complete
from t2i_rl.training.trainer import Trainer


def run_config(run: Path) -> TrainConfig:
    """The configuration that a run was started with; UserError when the folder is not a run's."""
    if not (run / CONFIG).is_file():
        raise UserError(f"{run} is not a run folder: give the one that was the --out of the run")
    return replace(read_config(run / CONFIG), out=run)


def weights_before(run: Path, config: TrainConfig, step: int) -> Path | None:
    """The checkpoint that sampled a step's groups; None for the model that the run began with.

    Raises UserError where it is not there, naming those that are.
    """
    if not 1 <= step <= config.steps:
        raise UserError(f"{run} has no step {step}: choose one from 1 to {config.steps}")
    if step == 1:
        return None
    folder = run / CHECKPOINTS
    wanted = at_step(folder, step - 1)
    if not wanted.is_dir():
        there = [path.name for path in complete(folder)]
        steps = [1, *(int(name.removeprefix("step-")) + 1 for name in there)]
        possible = ", ".join(str(number) for number in steps if number <= config.steps)
        raise UserError(
            f"step {step} of {run} was sampled from the weights of {wanted.name}, which are not there; "
            f"there are {', '.join(there) or 'no checkpoints'}: choose a --step of {possible}"
        )
    return wanted


def trainer_before(run: Path, step: int, device: str) -> tuple[Trainer, Path | None]:
    """The trainer as it stood before a step, but for its optimizer; and the checkpoint that it was read from."""
    device = device_of(device)
    config = replace(run_config(run), device=device)
    checkpoint = weights_before(run, config, step)
    method, dtype = run_method(config), getattr(torch, config.dtype)
    samples: Samples = "answers" if answers_in_text(str(checkpoint or config.model)) else "pictures"
    reward, prompts = build(config.reward, device, config.reward_server, samples), prompts_of(config, "prompts")
    if checkpoint is None:
        return Trainer(config, origin_of(run, config, device), method, reward, prompts), None
    history = checkpoints.read(checkpoint, resuming=False).history
    # A policy with adapters is its own reference, for it has them still to switch off.
    apart = method.needs_reference and not config.lora.rank
    reference = origin_of(run, config, device) if apart else None
    trainer = Trainer(config, load(str(checkpoint), dtype, device), method, reward, prompts, reference)
    trainer.history = {prompt: Running(**seen) for prompt, seen in history.items()}
    return trainer, checkpoint


@dataclass(frozen=True)
class Seen:
    """What is asked of a step. row: which of its groups, from 0, in the order of the update."""

    run: Path
    step: int
    row: int = 0
    device: str = AUTO


@torch.no_grad()
def seen_maps(asked: Seen) -> TokenMaps | AnswerMaps:
    """The token maps of a group that a step was trained on, with its rewards and the method's credit.

    Raises UserError where the weights of that step are not kept, and for a group that it did not have.
    """
    trainer, checkpoint = trainer_before(asked.run, asked.step, asked.device)
    config, method, policy = trainer.config, trainer.method, trainer.policy
    groups = trainer.collector.choose(trainer.collector.collect(asked.step, Clock()))
    if not 0 <= asked.row < len(groups.records):
        raise UserError(
            f"step {asked.step} of {asked.run} has {len(groups.records)} groups in its update: "
            f"choose a --row from 0, not {asked.row}"
        )
    check_pictures(asked.run, "prompts", [groups.records[asked.row]])
    earned = trainer.advantages(groups).to(groups.rollout.tokens.device)
    credit = trainer.credit(groups.rollout, Context(earned, asked.step, config.steps, config.seed))
    row = slice(asked.row, asked.row + 1)
    rollout = groups.rollout.take([asked.row])
    names = [*CONTRAST.statistics, *CRITICAL.statistics]
    if policy.stop_tokens:  # compared as the default is, where the method compares with nothing
        asking = trainer.collector.asking
        contrast = asking if asking.against else replace(asking, against=DEFAULT_CONTRAST)
        condition = ask(policy, contrast, [groups.records[asked.row]], asked.step)
        rollout = replace(rollout, condition=condition)
    measured = measure(policy, rollout, config.rollout.sampling, names, 1)
    rollout = replace(rollout, statistics={**measured, **{n: v for n, v in rollout.statistics.items() if n in names}})
    own = replace(
        credit,
        weight=credit.weight[row],
        mask=credit.mask[row],
        advantages=None if credit.advantages is None else credit.advantages[row],
    )
    what = "answer" if policy.stop_tokens else "image"
    labels = [
        f"{what} {number} · reward {reward:.3f} · advantage {advantage:+.2f}"
        for number, (reward, advantage) in enumerate(
            zip(groups.rewards[asked.row].tolist(), earned[asked.row].tolist(), strict=True)
        )
    ]
    weights = f"the model {config.model}" if checkpoint is None else f"its checkpoint {checkpoint.name}"
    source = (
        f"{asked.run.name}, step {asked.step} of {config.steps}, group {asked.row} · sampled again from {weights} · "
        f"seed {config.seed}, method {method.name}"
    )
    if policy.stop_tokens:
        [question] = asking.questions([groups.records[asked.row]])
        return answers_of(policy, rollout, own, question, source, labels, earned[asked.row].tolist())
    return maps_of(policy, rollout, own, method, trainer.reference, source, labels, trainer.distribution)
