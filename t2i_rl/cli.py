"""The command line: `t2i-rl train | generate | eval | heatmap | methods | models | plan | check | export`.

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
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from models.errors import ModelError
from models.registry import MODELS, TINY, is_adapter
from models.registry import find as find_model
from rewards.errors import RewardError
from t2i_rl.checks import check_settings
from t2i_rl.config import PlanConfig, RewardSpecification, Sampling, TrainConfig, override, read_settings
from t2i_rl.errors import DivergenceError, UserError
from t2i_rl.methods import METHODS, describe, find_method
from t2i_rl.presets import find_preset, preset
from t2i_rl.variants import base_name

if TYPE_CHECKING:
    from models.policy import Policy

Parsed = TypeVar("Parsed")
Precision = Literal["float32", "bfloat16", "float16"]
BOX = "╭╮╰╯│─ "


@dataclass(frozen=True)
class TrainChoice:
    """What picks the preset that the run file and the other flags then override: its name, or the three others."""

    preset: str | None = None
    model: str | None = None
    method: str | None = None
    reward: RewardSpecification | None = None
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
        negative_prompt: what guidance leads away from; nothing: the model's unconditional branch.
        seed: of the noise.
        dtype: of the weights; logits and what is measured on them are float32, and so are pixels.
        device: where the model runs, such as cpu or cuda.
    """

    model: str = "tiny"
    guidance_scale: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    negative_prompt: str = ""
    seed: int = 0
    dtype: Precision = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse before torch is imported."""
        find_model(self.model)
        Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)

    def policy(self, model: str) -> Policy:
        """A model in the precision and place asked for."""
        import torch

        from models.registry import load

        return load(model, getattr(torch, self.dtype), self.device)

    def load(self) -> tuple[Policy, Sampling]:
        """The model, and how it is sampled."""
        policy = self.policy(self.model)
        scale = policy.default_guidance if self.guidance_scale is None else self.guidance_scale
        return policy, Sampling(scale, self.temperature, self.top_k, self.top_p, self.negative_prompt)


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
    reward: RewardSpecification = "shapes-official"
    out: Path = Path("runs/geneval")
    images_per_prompt: int = 4
    batch: int = 64


@dataclass(frozen=True, kw_only=True)
class Check(Drawing):
    """Whether a checkpoint is whole and computes what it should: each line is ok, or what is wrong.

    Attributes:
        out: where the pictures of four fixed prompts go.
    """

    out: Path = Path("runs/check.png")


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


@dataclass(frozen=True, kw_only=True)
class Export:
    """A whole checkpoint: a run's adapters merged into their base, or a Janus in another format, bit for bit.

    Attributes:
        model: a registered name, a checkpoint folder or a hub id.
        out: folder of the checkpoint; it must not hold anything.
        format: DeepSeek's, as deepseek-ai/Janus-Pro-1B, or transformers'; if not given, the one it is in.
        dtype: of the merged weights, which is also what they are merged in.
    """

    model: str
    out: Path
    format: Annotated[Literal["deepseek", "transformers"] | None, tyro.conf.arg(metavar="FORMAT")] = None
    dtype: Precision = "float32"


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
    """Flag > run file > preset. Names that nothing goes by are refused here, before torch is imported.

    The bare name of the preset's own method is that method with the preset's settings, so that naming model, reward
    and method is the same as naming their preset.
    """
    with one_sentence("train"):
        choice, rest = tyro.cli(TrainChoice, args=arguments, return_unknown_args=True, add_help=False)
    named = {name: value for name in ("model", "reward", "method") if (value := getattr(choice, name)) is not None}
    settings, where = {} if choice.config is None else read_settings(choice.config), str(choice.config)
    if choice.preset is None:
        chosen = replace(override(TrainConfig(), settings, where), **named)
        base = preset(chosen.model, chosen.reward, chosen.method)
    else:
        base = find_preset(choice.preset)
    config = replace(override(base, settings, where), **named)
    if config.method == base_name(base.method):
        config = replace(config, method=base.method)
    config = parse(TrainConfig, rest, "train", default=config)
    find_model(config.model)
    check_settings(config, find_method(config.method))
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

    prompts, reward = load_prompts(wanted.prompts), build(wanted.reward, wanted.device)
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
    from t2i_rl.heatmaps import save, token_maps

    reference = wanted.policy(wanted.reference) if wanted.reference else None
    save(token_maps(policy, wanted.prompt, wanted.group_size, sampling, wanted.seed, reference), wanted.out)
    print(f"{wanted.out}: see heatmap.png, heatmap.html and maps.npz")


def serve(arguments: Sequence[str]) -> None:
    """serve a reward to runs on this machine or others: serve shapes"""
    from rewards import server

    server.serve(parse(server.Service, arguments, "serve"))


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


def models(arguments: Sequence[str]) -> None:
    """list the models that have a name"""
    if list(arguments[:1]) in (["-h"], ["--help"]):
        print("usage: t2i-rl models")
        return
    if arguments:
        raise UserError(f"t2i-rl models lists all models and takes nothing: leave out {arguments[0]}")
    rows = [("name", "family", "grid or scales", "guidance", "licence", "from")]
    for entry in MODELS.values():
        source = "shipped" if entry.source == str(TINY) else entry.source
        rows.append((entry.name, str(entry.family), entry.grid, str(entry.guidance), entry.licence, source))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def export(arguments: Sequence[str]) -> None:
    """merge adapters into their base, or write a Janus in DeepSeek's or transformers' format"""
    wanted = parse(Export, arguments, "export")
    entry = find_model(wanted.model)
    merging = is_adapter(entry.source)
    if wanted.format is None and not merging:
        raise UserError(f"{wanted.model} has no adapters to merge: name a --format, deepseek or transformers")
    if entry.family not in (None, "janus"):
        raise UserError(f"{wanted.model} is a {entry.family} model: only Janus has two formats")
    import torch

    from models.export import convert, merge
    from t2i_rl.outputs import whole_folder

    with whole_folder(wanted.out) as folder:
        if merging:
            merge(entry.source, folder, getattr(torch, wanted.dtype), wanted.format)
        elif wanted.format is not None:
            convert(entry.source, folder, wanted.format)
    print(f"{wanted.out}: {wanted.model}" + (f" in {wanted.format} format" if wanted.format else ", merged"))


def plan(arguments: Sequence[str]) -> None:
    """say what a run would need: memory per GPU, whether it fits, the least time of a step"""
    wanted = parse(PlanConfig, arguments, "plan")
    find_model(wanted.model)
    from models.architectures import architecture
    from t2i_rl.plan import report

    print("\n".join(report(architecture(wanted.model), wanted)))


def check(arguments: Sequence[str]) -> None:
    """look whether a checkpoint is whole and computes what it should"""
    wanted = parse(Check, arguments, "check")
    policy, sampling = wanted.load()
    from t2i_rl.check_model import Finding, findings

    wanted.out.parent.mkdir(parents=True, exist_ok=True)
    wrong = 0
    print(Finding("files", True, f"{wanted.model} is loaded"), flush=True)
    for finding in findings(policy, wanted.model, sampling, wanted.seed, wanted.out):
        print(finding, flush=True)
        wrong += not finding.fine
    if wrong:
        raise UserError(f"{wanted.model} is not what it should be: {wrong} of the checks above say why")


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
    "serve": serve,
    "methods": methods,
    "models": models,
    "plan": plan,
    "check": check,
    "export": export,
}
