"""The same steps and runs on 1, 2 and 4 processes, as the tests of this folder read them.

`python -m tests.t2i_rl.parallel.many steps FOLDER` and `... runs MODEL FOLDER`: one process imports, and its forks are
the processes; torch has no threads before its first operation.
"""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from models.lora import adapt
from models.policy import Policy
from models.registry import load
from rewards.catalogue import REWARDS, RewardEntry
from t2i_rl.cli import main
from t2i_rl.configuration.config import RolloutConfig, TrainConfig, UpdateConfig
from t2i_rl.methods.catalogue import find_method
from t2i_rl.parallel.processes import Processes
from t2i_rl.parallel.ranks import ALONE, Ranks
from t2i_rl.parallel.settings import Parallel
from t2i_rl.parallel.weights import local
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.training import optimizer_files
from t2i_rl.training.trainer import Trainer
from tests.conftest import random_janus
from tests.models.small_qwen_vl import KINDS
from tests.models.small_star import random_star
from tests.models.tiny_llamagen import save_release
from tests.t2i_rl.small_runs import Brightness, OfTokens, TokenPictures, die, train_words
from tests.t2i_rl.training import answering as answers

WORLDS = (1, 2, 4)
PROMPTS = [
    Prompt(f"a photo of {what}")
    for what in ("a red circle", "a blue ring", "two squares", "a green square", "two rings and a red square")
]
TAUGHT = PROMPTS[3:]  # the others teach nothing where the reward is `Half`


class LowTokens(OfTokens):
    def total(self, tokens: Tensor, prompt: str) -> float:
        return tokens.mean().item() / 32


class Half(LowTokens):
    """Of some prompts every image earns the same: of 5 prompts, those of the first of 2 processes."""

    def total(self, tokens: Tensor, prompt: str) -> float:
        return super().total(tokens, prompt) if prompt in [known.text for known in TAUGHT] else 1.0


class Strict(LowTokens):
    """With a verdict, for methods with an entropy reward."""

    def score(self, *asked: object):
        scores = super().score(*asked)
        return dataclasses.replace(scores, parts={"strict": (scores.total > 0.5).float()})


@dataclasses.dataclass(frozen=True)
class Case:
    """A step of so many prompts. descent: by plain gradient descent, so that the weights show the gradient."""

    method: str
    prompts: int = 5
    reward: type[OfTokens] = LowTokens
    asked: list[Prompt] = dataclasses.field(default_factory=lambda: PROMPTS)
    policy: Callable[[Path], Policy] = lambda folder: random_janus()
    parallel: Parallel = dataclasses.field(default_factory=Parallel)
    update: UpdateConfig = dataclasses.field(default_factory=lambda: dataclasses.replace(RATE, learning_rate=0.1))
    steps: int = 1
    descent: bool = True
    worlds: tuple[int, ...] = (1, 2)


def in_bfloat16(folder: Path) -> Policy:
    policy = random_janus()
    policy.language_model.bfloat16()
    policy.model.model.generation_head.bfloat16()
    policy.model.model.generation_embeddings.bfloat16()
    policy.model.model.generation_aligner.bfloat16()
    return policy


def llamagen(folder: Path) -> Policy:
    if not folder.exists():
        save_release(folder)
    return load(str(folder))


ASKED = tuple(zip(KINDS, ("wrong-answer", "masked-image"), strict=True))
RATE = UpdateConfig(learning_rate=1e-2, schedule="constant", micro_batch=4)
CASES = {
    "cfg": Case("cfg", worlds=WORLDS),
    "critical": Case("critical", update=dataclasses.replace(RATE, learning_rate=0.1, gradient_checkpointing=True)),
    "dapo": Case("dapo", reward=Half, worlds=WORLDS),
    "dropped": Case("grpo[filter_zero_std=drop]", reward=Half),
    "tracker": Case("tracker", steps=2),
    "released": Case("cfg-released", reward=Strict),
    "two updates": Case("grpo", update=dataclasses.replace(RATE, updates_per_rollout=2), descent=False),
    "exact kl": Case("grpo-full-kl", steps=2),
    "vppo": Case("vppo"),
    "quantile": Case("entropy-top"),
    "whole": Case("cfg", parallel=Parallel(shard=1)),
    "copies": Case("cfg", parallel=Parallel(shard=2, reshard=False), worlds=(1, 4)),
    "offload": Case("cfg", parallel=Parallel(offload=True), descent=False, update=RATE),
    "adapters": Case(
        "cfg", policy=lambda folder: adapt(random_janus(), "tiny", 2, 4.0), descent=False, update=RATE, steps=2
    ),
    "adam": Case("cfg", descent=False, update=RATE, steps=2),
    # In batches of the same sizes and of prompts of one length: bfloat16's rounding would show any other.
    "bfloat16": Case(
        "grpo",
        4,
        asked=PROMPTS[:2],
        policy=in_bfloat16,
        descent=False,
        update=dataclasses.replace(RATE, micro_batch=6),
        steps=2,
    ),
    "llamagen": Case("grpo[filter_zero_std=drop]", reward=Half, policy=llamagen),
    "star": Case("cfg", policy=lambda folder: random_star()),
}


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "second" not in name}


def step(case: Case, ranks: Ranks, folder: Path) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """What a case comes to, and its metrics."""
    config = TrainConfig(
        steps=10,
        rollout=RolloutConfig(case.prompts, 3, 2, Sampling(guidance_scale=2.0)),
        update=case.update,
        parallel=case.parallel,
    )
    policy = case.policy(folder / "llamagen")
    trainer = TokenPictures(config, policy, find_method(case.method), case.reward(), case.asked, None, ranks)
    if case.descent:
        trainer.optimizer = torch.optim.SGD(trainer.weights.trained.trainable_parameters())
    metrics = [trainer.step(number) for number in range(1, case.steps + 1)]
    rounds = trainer.collector.collected.rounds
    found = {
        "tokens": torch.cat([ranks.gather(groups.rollout.tokens) for groups in rounds]),
        "rewards": torch.cat([groups.rewards for groups in rounds]),
    }
    weights = trainer.weights.policy.module.named_parameters()
    found |= {f"weight {name}": weight.detach().clone() for name, weight in weights if weight.requires_grad}
    if not case.descent:
        found |= whole_state(trainer, folder / f"optimizer-{ranks.world}")
    return found, [*map(timeless, metrics)]


def answered(kind: str, contrast: str, ranks: Ranks, folder: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """A step of a model that answers, of which one process sees no picture in some of its micro-batches.

    Answers end early and late; behind the end of a process's longest there is -1.
    """
    policy = answers.policy(kind, folder / f"{kind}-{ranks.world}-{ranks.rank}")
    config = answers.settings(update_micro=4, learning_rate=0.1, contrast=contrast)
    method, reward = find_method("cfg-text[filter_zero_std=off]"), answers.ShareOfWord()
    trainer = answers.Kept(config, policy, method, reward, answers.PROMPTS, None, ranks)
    trainer.optimizer = torch.optim.SGD(trainer.weights.trained.trainable_parameters())
    metrics = timeless(trainer.step(1))
    rollout, weights = trainer.updated.rollout, trainer.policy.module.named_parameters()
    ends = rollout.tokens.float().masked_fill(~rollout.valid, torch.nan)
    tokens = trainer.everyone(len(rollout.prompts), ends).nan_to_num(-1)
    found = {name: weight.detach().clone() for name, weight in weights}
    return {"tokens": tokens, "rewards": trainer.updated.rewards, **found}, metrics


def whole_state(trainer: Trainer, folder: Path) -> dict[str, Tensor]:
    """Moments and masters, put together from the parts of all processes."""
    folder.mkdir(exist_ok=True)
    trainer.ranks.meet()
    optimizer_files.save(folder, trainer.weights, trainer.optimizer)
    trainer.ranks.meet()
    files = sorted(folder.glob(optimizer_files.PATTERN))
    stored = optimizer_files._pieces(files)
    found = {key: piece.rows(0, piece.shape[0]).clone() for key, piece in stored.items()}
    # What was written comes back to each process, whoever it is.
    before = [local(value).clone() for state in trainer.optimizer.state.values() for value in state.values()]
    optimizer_files.load(folder, trainer.weights, trainer.optimizer)
    after = [local(value) for state in trainer.optimizer.state.values() for value in state.values()]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    trainer.ranks.meet()
    if trainer.ranks.first:
        for path in files:
            path.unlink()
    return found


def steps(folder: Path, world: int, rank: int) -> None:
    """Every case, into one file for each."""
    ranks = ALONE
    if world > 1:
        store = f"file://{folder}/store-{world}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
        ranks = Processes()
    for name, case in CASES.items():
        if world in case.worlds:
            found, metrics = step(case, ranks, folder)
            if rank == 0:
                save_file({key: value.contiguous() for key, value in found.items()}, folder / f"{name}-{world}")
                (folder / f"{name}-{world}.json").write_text(json.dumps(metrics))

    for kind, contrast in ASKED if world < 4 else ():
        found, numbers = answered(kind, contrast, ranks, folder)
        if rank == 0:
            save_file(found, folder / f"{kind}-{world}")
            (folder / f"{kind}-{world}.json").write_text(json.dumps(numbers))


def forked(world: int, work: Callable[[int], object]) -> list[int]:
    """The exit codes of so many processes that do some work; a signal's number is negative."""
    children = []
    for rank in range(world):
        if (child := os.fork()) == 0:
            torch.set_num_threads(1)
            try:
                os._exit(work(rank) or 0)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(99)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def run(world: int, words: list[str], said: Path, hurt: Callable[[int], object] = lambda rank: None) -> list[int]:
    """A command on so many processes, as torchrun starts them; what they say lies in files."""
    port = free_port()

    def work(rank: int) -> int:
        hurt(rank)
        if world > 1:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        with (
            Path(f"{said}.{rank}.out").open("w", buffering=1) as out,
            Path(f"{said}.{rank}.err").open("w", buffering=1) as err,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            return main(words)

    return forked(world, work)


def in_a_step(rank: int) -> None:
    """The second of two dies while the fourth step is sampled."""
    before = Trainer.step
    if rank == 1:
        Trainer.step = lambda self, number: die() if number == 4 else before(self, number)


def in_a_checkpoint(rank: int) -> None:
    """The second of two dies with half of its part of the second checkpoint written."""
    save = optimizer_files.save_file

    def half(tensors: dict[str, Tensor], path: Path) -> None:
        save(tensors, path)
        if "step-000004" in str(path):
            os.truncate(path, path.stat().st_size // 2)
            die()

    if rank == 1:
        optimizer_files.save_file = half


def stopped_in(step: int) -> Callable[[int], None]:
    """The last of the processes is told in a step that time is up."""

    def hurt(rank: int) -> None:
        before = Trainer.step

        def told(self: Trainer, number: int) -> dict[str, float]:
            if number == step and rank == self.ranks.world - 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            return before(self, number)

        Trainer.step = told

    return hurt


DEATHS = (in_a_step, in_a_checkpoint)


def runs(model: Path, folder: Path) -> Iterator[tuple[str, list[int]]]:
    """The exit codes of runs of five steps: on two processes, whole or left by one; and on 2, then 1, then 4."""

    def words(name: str, *more: str) -> list[str]:
        wide = ("--rollout.prompts-per-step", "4", "--update.micro-batch", "3")
        return [*train_words(model, folder / name, "cfg", *wide), *more]

    def again(name: str, *more: str) -> list[str]:
        return ["train", "--resume", str(folder / name), *more]

    yield "whole", run(2, words("whole"), folder / "whole-said")
    for death in DEATHS:
        name = death.__name__
        yield name, run(2, words(name), folder / f"{name}-said", death)
        yield f"{name} again", run(2, again(name), folder / f"{name}-again")
    yield "wandering 2", run(2, words("wandering"), folder / "wandering-2", stopped_in(2))
    yield "wandering 1", run(1, again("wandering"), folder / "wandering-1", stopped_in(3))
    yield "wandering 4", run(4, again("wandering"), folder / "wandering-4")
    yield "used", run(2, words("whole"), folder / "used")
    yield "few", run(2, words("few", "--rollout.prompts-per-step", "1"), folder / "few")


if __name__ == "__main__":
    torch.set_num_threads(1)
    REWARDS["brightness"] = RewardEntry(lambda device: Brightness())
    if sys.argv[1] == "steps":
        for world in WORLDS:
            if any(codes := forked(world, lambda rank, world=world: steps(Path(sys.argv[2]), world, rank))):
                sys.exit(f"{world} processes ended with {codes}")
    else:
        codes = dict(runs(Path(sys.argv[2]), Path(sys.argv[3])))
        (Path(sys.argv[3]) / "codes.json").write_text(json.dumps(codes))
