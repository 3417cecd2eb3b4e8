"""`t2i-rl export`: a whole checkpoint, in the format asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from models.files.adapter import is_adapter
from models.registry import find as find_model
from t2i_rl.commands.arguments import Precision, parse
from t2i_rl.errors import UserError
from t2i_rl.training.run_folder import ModelName


@dataclass(frozen=True, kw_only=True)
class Export:
    """A whole checkpoint: a run's adapters merged into their base, or a Janus in another format, bit for bit.

    Attributes:
        model: a registered name, a checkpoint folder, a run's (its best checkpoint; RUN@last, RUN@90) or a hub id.
        out: folder of the checkpoint; it must not hold anything.
        format: DeepSeek's, as deepseek-ai/Janus-Pro-1B, or transformers'; if not given, the one it is in.
        dtype: of the merged weights, which is also what they are merged in.
    """

    model: ModelName
    out: Path
    format: Annotated[Literal["deepseek", "transformers"] | None, tyro.conf.arg(metavar="FORMAT")] = None
    dtype: Precision = "float32"


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
    from t2i_rl.training.checkpoints import check_source

    check_source(entry.source)
    with whole_folder(wanted.out) as folder:
        if merging:
            merge(entry.source, folder, getattr(torch, wanted.dtype), wanted.format)
        elif wanted.format is not None:
            convert(entry.source, folder, wanted.format)
    print(f"{wanted.out}: {wanted.model}" + (f" in {wanted.format} format" if wanted.format else ", merged"))
