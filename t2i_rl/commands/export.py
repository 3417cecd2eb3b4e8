"""`t2i-rl export`: a whole checkpoint, in the format asked for."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from models.files.adapter import is_adapter
from models.registry import HUB_ID
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
        push: upload it to this repository of the hub too, OWNER/NAME, which is private; a whole checkpoint then needs
            no --format, and goes there without what only training needs.
        public: let everybody see that repository.
    """

    model: ModelName
    out: Path
    format: Annotated[Literal["deepseek", "transformers"] | None, tyro.conf.arg(metavar="FORMAT")] = None
    dtype: Precision = "float32"
    push: Annotated[str | None, tyro.conf.arg(metavar="REPO")] = None
    public: bool = False

    def __post_init__(self) -> None:
        if self.push is not None and not re.fullmatch(HUB_ID, self.push):
            raise UserError(f"{self.push} is no repository of the hub: name it as OWNER/NAME")
        if self.public and self.push is None:
            raise UserError("--public says who sees a repository: name it with --push")


def export(arguments: Sequence[str]) -> None:
    """merge adapters into their base, or write a Janus in DeepSeek's or transformers' format; --push uploads it"""
    wanted = parse(Export, arguments, "export")
    entry = find_model(wanted.model)
    merging = is_adapter(entry.source)
    if wanted.format is None and not merging and (wanted.push is None or not Path(entry.source).is_dir()):
        raise UserError(f"{wanted.model} has no adapters to merge: name a --format, deepseek or transformers")
    if wanted.format is not None and entry.family not in (None, "janus"):
        raise UserError(f"{wanted.model} is a {entry.family} model: only Janus has two formats")
    import torch

    from models.export import convert, merge
    from models.files.upload import claim, push
    from t2i_rl.outputs import check_free, whole_folder
    from t2i_rl.training.checkpoints import check_source, model_files
    from t2i_rl.training.model_card import CARD, carried

    check_source(entry.source)
    check_free(wanted.out)
    if wanted.push is not None:
        claim(wanted.push, wanted.public)
    card = Path(entry.source) / CARD
    with whole_folder(wanted.out) as folder:
        if merging:
            merge(entry.source, folder, getattr(torch, wanted.dtype), wanted.format)
        elif wanted.format is not None:
            convert(entry.source, folder, wanted.format)
        else:
            for file in model_files(Path(entry.source)):
                shutil.copyfile(file, folder / file.name)
        if card.is_file() and (merging or wanted.format is not None):
            (folder / CARD).write_text(carried(card.read_text(encoding="utf-8")), encoding="utf-8")
    done = f" in {wanted.format} format" if wanted.format else ", merged" if merging else ""
    print(f"{wanted.out}: {wanted.model}{done}", flush=True)
    if wanted.push is not None:
        push(wanted.out, wanted.push)
        print(f"https://huggingface.co/{wanted.push}, {'public' if wanted.public else 'private'}: look at its card")
