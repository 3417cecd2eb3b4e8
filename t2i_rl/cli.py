"""The command line: `t2i-rl train | generate | eval | heatmap | methods`.

Errors are one sentence on stderr: exit code 2 for bad input, 1 for a run that diverged. Help and
argument errors import neither torch nor transformers, so commands import what they need when they run.
The first line of a command's docstring is what `t2i-rl --help` says of it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from models.errors import ModelError
from models.registry import find as find_model
from rewards.errors import RewardError
from t2i_rl.config import Sampling, TrainConfig, override, preset, read_settings
from t2i_rl.errors import DivergenceError, UserError
from t2i_rl.methods import METHODS, describe, find_method

if TYPE_CHECKING:
    from models.policy import Policy

Parsed = TypeVar("Parsed")
BOX = "╭╮╰╯│─ "


@dataclass(frozen=True)
class TrainChoice:
    """What picks the preset that the run file and the other flags then override."""

    model: str | None = None
    method: str | None = None
    reward: str | None = None
    config: Path | None = None


@dataclass(frozen=True)
class Resume:
    """Continue a run that was stopped, or that is to do more steps. Its other settings stay as they were.

    Attributes:
        resume: the run folder.
        steps: a new number of steps for the whole run, not only for the rest.
        device: where everything runs from now on, such as cpu or cuda.
    """

    resume: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    steps: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    device: Annotated[str | None, tyro.conf.arg(metavar="STR")] = None


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What every command that draws images asks for.

    Attributes:
        model: a registered name, a checkpoint folder or a hub id.
        guidance_scale: of classifier-free guidance, the model's own if not given; 1 switches it off.
        temperature: divides the guided logits; 0 takes the most likely token.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens up to this total probability; 1 keeps all.
        seed: of the noise.
        device: where the model runs, such as cpu or cuda.
    """

    model: str = "tiny"
    guidance_scale: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse before torch is imported."""
        find_model(self.model)
        Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)

    def load(self) -> tuple[Policy, Sampling]:
        """The model, and how it is sampled."""
        from models.registry import load

        policy = load(self.model, device=self.device)
        scale = policy.default_guidance if self.guidance_scale is None else self.guidance_scale
        return policy, Sampling(scale, self.temperature, self.top_k, self.top_p)


@dataclass(frozen=True, kw_only=True)
class Generate(Drawing):
    """Images of prompts, a contact sheet, and a JSON file of seeds and settings.

    Attributes:
        prompts: the prompts themselves, or one .jsonl or .txt file of them.
        out: folder of the images; it must not hold anything.
        images_per_prompt: images of each prompt.
        batch: images sampled at once; only memory and speed depend on it.
    """

    prompts: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PROMPT ...", help_behavior_hint="")
    ]
    out: Path = Path("runs/generate")
    images_per_prompt: int = 4
    batch: int = 32


@dataclass(frozen=True, kw_only=True)
class EvalGenEval(Drawing):
    """The GenEval benchmark: six tags and their mean. Run again, it continues where it was.

    Attributes:
        prompts: GenEval records: shapes:heldout, or a .jsonl file.
        reward: the detector and its rules.
        out: folder of the images, `manifest.jsonl` and `summary.json`.
        images_per_prompt: the benchmark draws 4.
        batch: images sampled at once; only memory and speed depend on it.
    """

    prompts: str = "shapes:heldout"
    reward: str = "shapes-official"
    out: Path = Path("runs/geneval")
    images_per_prompt: int = 4
    batch: int = 64


@dataclass(frozen=True, kw_only=True)
class Heatmap(Drawing):
    """What every token map looks like on a group of images, as PNG, HTML and npz.

    Attributes:
        prompt: what is drawn.
        group_size: images of the prompt; similarity compares them.
        reference: a second checkpoint of the model, for the divergence from it.
        out: folder of the three files; it must not hold anything.
    """

    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT")]
    group_size: int = 4
    reference: Annotated[str | None, tyro.conf.arg(metavar="STR")] = None
    out: Path = Path("runs/heatmap")


@contextlib.contextmanager
def one_sentence(command: str) -> Iterator[None]:
    """What tyro would put in a box becomes one sentence; help passes through."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            yield
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        lines = [line.strip(BOX) for line in stderr.getvalue().splitlines()[1:]]
        sentence = " ".join(lines[: lines.index("")] if "" in lines else lines).rstrip(".")
        raise UserError(f"{sentence} (see t2i-rl {command} --help)") from None


def parse(kind: type[Parsed], arguments: Sequence[str], command: str, default: Parsed | None = None) -> Parsed:
    """The arguments as a dataclass."""
    more: dict[str, Any] = {} if default is None else {"default": default}
    with one_sentence(command):
        return tyro.cli(kind, args=arguments, prog=f"t2i-rl {command.partition(' --')[0]}", **more)


def resolve(arguments: Sequence[str]) -> TrainConfig:
    """Flag > run file > preset. Names that nothing goes by are refused here, before torch is imported."""
    with one_sentence("train"):
        choice, rest = tyro.cli(TrainChoice, args=arguments, return_unknown_args=True, add_help=False)
    named = {name: value for name in ("model", "reward", "method") if (value := getattr(choice, name)) is not None}
    settings = {} if choice.config is None else read_settings(choice.config)
    chosen = override(TrainConfig(), settings, str(choice.config))
    chosen = replace(chosen, **named)
    config = override(preset(chosen.model, chosen.reward, chosen.method), settings, str(choice.config))
    config = parse(TrainConfig, rest, "train", default=replace(config, **named))
    find_method(config.method)
    find_model(config.model)
    return config


def train(arguments: Sequence[str]) -> None:
    """train a model with reinforcement learning, or continue a run"""
    if any(word.split("=")[0] == "--resume" for word in arguments):
        again = parse(Resume, arguments, "train --resume RUN")
        from t2i_rl.run import resume

        finished = resume(again.resume, again.steps, again.device)
    else:
        config = resolve(arguments)
        from t2i_rl.run import start

        finished = start(config)
    print(f"{finished}: see reward.png, samples.png and metrics.jsonl")


def generate(arguments: Sequence[str]) -> None:
    """draw images of prompts"""
    wanted = parse(Generate, arguments, "generate")
    from t2i_rl.outputs import check_free
    from t2i_rl.prompts import Prompt, load_prompts

    check_free(wanted.out)
    is_file = len(wanted.prompts) == 1 and Path(wanted.prompts[0]).suffix in (".jsonl", ".txt")
    prompts = load_prompts(wanted.prompts[0]) if is_file else [Prompt(text) for text in wanted.prompts]
    if not prompts:
        raise UserError("there is nothing to draw: give prompts, or a .jsonl or .txt file of them")
    policy, sampling = wanted.load()
    from t2i_rl.generate import write_images

    write_images(
        wanted.out, policy, prompts, wanted.images_per_prompt, sampling, wanted.seed, wanted.batch, wanted.model
    )
    print(f"{wanted.out}: see contact_sheet.png and generation.json")


def evaluate(arguments: Sequence[str]) -> None:
    """measure a model on a benchmark: geneval"""
    if list(arguments[:1]) in (["-h"], ["--help"]):
        print("usage: t2i-rl eval BENCHMARK [OPTIONS]\n\nBenchmarks: geneval\n\nSee t2i-rl eval BENCHMARK --help")
        return
    if list(arguments[:1]) != ["geneval"]:
        named = f"there is no benchmark {arguments[0]!r}" if arguments else "no benchmark is named"
        raise UserError(f"{named}: use t2i-rl eval geneval --model MODEL")
    wanted = parse(EvalGenEval, arguments[1:], "eval geneval")
    from rewards.registry import build
    from t2i_rl.prompts import load_prompts

    prompts, reward = load_prompts(wanted.prompts), build(wanted.reward)
    policy, sampling = wanted.load()
    from rich.console import Console

    from eval import geneval

    summary = geneval.evaluate(
        policy,
        prompts,
        reward,
        wanted.images_per_prompt,
        sampling,
        wanted.seed,
        wanted.out,
        wanted.batch,
        wanted.model,
    )
    Console().print(geneval.table(summary, f"GenEval, {wanted.model}"))
    print(f"{wanted.out}: see summary.json and manifest.jsonl")


def heatmap(arguments: Sequence[str]) -> None:
    """draw the token maps of a prompt's images"""
    wanted = parse(Heatmap, arguments, "heatmap")
    from t2i_rl.outputs import check_free

    check_free(wanted.out)
    policy, sampling = wanted.load()
    from models.registry import load
    from t2i_rl.heatmaps import save, token_maps

    reference = load(wanted.reference, device=wanted.device) if wanted.reference else None
    save(token_maps(policy, wanted.prompt, wanted.group_size, sampling, wanted.seed, reference), wanted.out)
    print(f"{wanted.out}: see heatmap.png, heatmap.html and maps.npz")


def methods(arguments: Sequence[str]) -> None:
    """list the methods, or say what one is made of: methods cfg"""
    if list(arguments[:1]) in (["-h"], ["--help"]):
        print("usage: t2i-rl methods [METHOD]")
    elif arguments:
        print(describe(find_method(arguments[0])))
    else:
        width = max(map(len, METHODS))
        for name, method in METHODS.items():
            print(f"{name:<{width}}  {method.summary}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print("usage: t2i-rl COMMAND [OPTIONS]\n\nReinforcement learning for autoregressive text-to-image models.\n")
        for name, function in COMMANDS.items():
            print(f"  {name:<10}{function.__doc__}")
        print("\nSee t2i-rl COMMAND --help")
        return 0
    try:
        command = COMMANDS.get(words[0])
        if command is None:
            raise UserError(f"there is no command {words[0]!r}: choose one of {', '.join(COMMANDS)}")
        command(words[1:])
    except (UserError, ModelError, RewardError) as error:
        print(f"t2i-rl: {error}", file=sys.stderr)
        return 2
    except DivergenceError as error:
        print(f"t2i-rl: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("t2i-rl: stopped; a training run goes on with --resume", file=sys.stderr)
        return 130
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:  # nothing that the user could mend
            raise
        where = f"cannot use {error.filename}" if error.filename else "cannot write on"
        print(f"t2i-rl: {where} ({error.strerror}): check the path and the free space", file=sys.stderr)
        return 2
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "generate": generate,
    "eval": evaluate,
    "heatmap": heatmap,
    "methods": methods,
}
