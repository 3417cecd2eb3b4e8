"""`t2i-rl methods | models | rewards | presets | plan | check`: what there is, what runs need, what is sound."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import tyro

from models.kin import kin
from models.registry import MODELS, TINY
from rewards.catalogue import REWARDS
from t2i_rl.commands.arguments import Drawing, one_sentence, parse
from t2i_rl.configuration.adapter_presets import ADAPTED
from t2i_rl.configuration.config import RewardSpecification, to_json
from t2i_rl.configuration.presets import find_preset, papers, preset, preset_name
from t2i_rl.errors import UserError
from t2i_rl.methods.catalogue import METHODS, find_method
from t2i_rl.methods.description import describe
from t2i_rl.planning.plan_config import PlanConfig

METHODS_HELP = """usage: t2i-rl methods [METHOD]

Without a word: every method in one line. With one: what it is made of, with equations, defaults and deviations.
A variant is spelt out: 'critical[credit.share=0.05,dynamic=none]'."""
MODELS_HELP = """usage: t2i-rl models

The models that have a name: family, token grid or scales, guidance, licence, where they come from.
--model also takes a checkpoint folder or a hub id."""
REWARDS_HELP = """usage: t2i-rl rewards

The rewards that have a name: what they score, between which numbers, and what they load, or which variable
has the address of the model that they ask. docs/rewards.md says what each measures. --reward also takes sums, servers,
and one of your own as MODULE:NAME."""
PRESETS_HELP = """usage: t2i-rl presets [NAME | --cards | --costs]

Without a word: every preset in one line; NAME-lora is the same with adapters. With a name: the whole of it, as a run
file that t2i-rl train --config takes. --cards: which training a card holds, of every model. --costs: what the
papers' runs take in GPUs, hours and disk."""


@dataclass(frozen=True, kw_only=True)
class Check(Drawing):
    """Whether a checkpoint is whole and computes what it should: each line is ok, or what is wrong.

    Attributes:
        out: where the pictures of four fixed prompts go, a PNG.
    """

    draws: ClassVar[bool] = False

    out: Path = Path("runs/check.png")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out.suffix != ".png":
            raise UserError(f"{self.out} is no name of a PNG: end it in .png")


def methods(arguments: Sequence[str]) -> None:
    """list the methods, or say what one is made of: methods cfg"""
    if list(arguments[:1]) in (["-h"], ["--help"]):
        print(METHODS_HELP)
    elif arguments:
        print(describe(find_method(arguments[0])))
    else:
        width = max(map(len, METHODS))
        for name, method in METHODS.items():
            print(f"{name:<{width}}  {method.summary}")


def models(arguments: Sequence[str]) -> None:
    """list the models that have a name"""
    if list(arguments[:1]) in (["-h"], ["--help"]):
        print(MODELS_HELP)
        return
    if arguments:
        raise UserError(f"t2i-rl models lists all models and takes nothing: leave out {arguments[0]}")
    rows: list[tuple[str, ...]] = [("name", "family", "grid or scales", "guidance", "licence", "from")]
    for entry in MODELS.values():
        source = "shipped" if entry.source == str(TINY) else entry.source
        source += f" (of {entry.paper})" if entry.paper else ""
        rows.append((entry.name, str(entry.family), entry.grid, str(entry.guidance), entry.licence, source))
    _print(rows)


def rewards(arguments: Sequence[str]) -> None:
    """list the rewards that have a name"""
    if arguments and arguments[0] not in ("-h", "--help"):
        raise UserError(f"t2i-rl rewards lists all rewards and takes nothing: leave out {arguments[0]}")
    if arguments:
        print(REWARDS_HELP)
        return
    rows: list[tuple[str, ...]] = [("name", "of", "range", "loads, or asks")]
    for name, entry in REWARDS.items():
        needs = [one.source.rpartition("/")[2] if "://" in one.source else one.source for one in entry.weights]
        low, high = entry.range
        rows.append((name, entry.scores, f"{low:g}..{high:g}", ", ".join(needs) or entry.endpoint or "nothing"))
    _print(rows)


def _print(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as what they hold."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def presets(arguments: Sequence[str]) -> None:
    """list the presets, or print one as a run file: presets NAME > run.json"""
    if list(arguments[:1]) in (["-h"], ["--help"]):
        print(PRESETS_HELP)
    elif list(arguments) == ["--cards"]:
        from t2i_rl.planning.cards import table as of_cards

        _print(of_cards())
    elif list(arguments) == ["--costs"]:
        from t2i_rl.planning.costs import table as of_runs

        _print(of_runs())
    elif arguments:
        print(to_json(find_preset(arguments[0])), end="")
    else:
        rows: list[tuple[str, ...]] = [("name", "samples a step", "steps", "learning rate", "prompts")]
        for name in [*papers(), *(name + ADAPTED for name in papers()), "tiny-shapes-METHOD", "tiny-vlm-math-METHOD"]:
            config = find_preset(name.replace("METHOD", "cfg"))
            images = config.rollout.prompts_per_step * config.rollout.group_size
            rows.append((name, str(images), str(config.steps), f"{config.update.learning_rate:g}", config.prompts))
        _print(rows)


@dataclass(frozen=True)
class PlanChoice:
    """What picks the training run that is planned."""

    preset: str | None = None
    model: str | None = None
    method: str = "cfg"
    reward: RewardSpecification | None = None


def plan(arguments: Sequence[str]) -> None:
    """say what a run would need: memory per GPU, whether it fits, the least time of a step"""
    with one_sentence("plan"):
        choice, rest = tyro.cli(PlanChoice, args=arguments, return_unknown_args=True, add_help=False)
    wanted = parse(PlanConfig, rest, "plan", _planned(choice))
    from models.architectures import architecture
    from t2i_rl.planning.plan_report import report

    print("\n".join(report(architecture(wanted.model), wanted)))


def _planned(choice: PlanChoice) -> PlanConfig | None:
    """What `t2i-rl train` would take for these words; the plan's own defaults for a model without presets."""
    if choice.preset is not None:
        config = find_preset(choice.preset)
        return PlanConfig.of(config, _sizes(choice.model or config.model))
    if choice.model is None:
        return None
    if preset_name(choice.model, choice.reward, choice.method) is None:
        return PlanConfig(model=_sizes(choice.model))
    return PlanConfig.of(preset(choice.model, choice.reward, choice.method), _sizes(choice.model))


def _sizes(model: str) -> str:
    """The model with a name whose sizes it has. Raises UserError."""
    if (found := kin(model)) is None:
        raise UserError(f"nothing here says what sizes {model} has: name one of t2i-rl models that it is like")
    return found


def check(arguments: Sequence[str]) -> None:
    """look whether a checkpoint is whole and computes what it should"""
    wanted = parse(Check, arguments, "check")
    policy, sampling = wanted.load()
    from t2i_rl.planning.check_model import Finding, findings

    wrong = 0
    print(Finding("files", True, f"{wanted.model} is loaded"), flush=True)
    for finding in findings(policy, wanted.model, sampling, wanted.seed, wanted.out):
        print(finding, flush=True)
        wrong += not finding.fine
    if wrong:
        raise UserError(f"{wanted.model} is not what it should be: {wrong} of the checks above say why")
