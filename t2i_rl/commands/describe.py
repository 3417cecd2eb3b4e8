"""`t2i-rl methods | models | plan | check`: what there is, what a run needs, whether a checkpoint is sound."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from models.registry import MODELS, TINY
from models.registry import find as find_model
from t2i_rl.commands.arguments import Drawing, parse
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
    rows = [("name", "family", "grid or scales", "guidance", "licence", "from")]
    for entry in MODELS.values():
        source = "shipped" if entry.source == str(TINY) else entry.source
        rows.append((entry.name, str(entry.family), entry.grid, str(entry.guidance), entry.licence, source))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def plan(arguments: Sequence[str]) -> None:
    """say what a run would need: memory per GPU, whether it fits, the least time of a step"""
    wanted = parse(PlanConfig, arguments, "plan")
    find_model(wanted.model)
    from models.architectures import architecture
    from t2i_rl.planning.plan import report

    print("\n".join(report(architecture(wanted.model), wanted)))


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
