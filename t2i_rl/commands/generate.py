"""`t2i-rl generate`: images of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from t2i_rl.commands.arguments import Drawing, parse
from t2i_rl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Generate(Drawing):
    """Images of prompts, a contact sheet, and a JSON file of seeds and settings.

    Attributes:
        prompts: the prompts themselves, files of them or sets by their names, as train reads them (docs/data.md); what
            ends like a prompt file (.jsonl, .json, .csv, .tsv, .txt) is taken for one.
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


def generate(arguments: Sequence[str]) -> None:
    """draw images of prompts"""
    wanted = parse(Generate, arguments, "generate")
    from t2i_rl.outputs import check_free, free_or_next
    from t2i_rl.prompts.prompt import Prompt
    from t2i_rl.prompts.reading import load_prompts, names_prompts

    out = free_or_next(wanted.out, Generate.out)
    check_free(out)
    named = [load_prompts(words) if names_prompts(words) else [Prompt(words)] for words in wanted.prompts]
    prompts = [prompt for some in named for prompt in some]
    if not prompts:
        raise UserError("there is nothing to draw: give prompts, or files of them")
    policy, sampling = wanted.load()
    from t2i_rl.pictures.image_files import write_images

    write_images(out, policy, prompts, wanted.images_per_prompt, sampling, wanted.seed, wanted.batch, wanted.model)
    print(f"{out}: see contact_sheet.png and generation.json")
