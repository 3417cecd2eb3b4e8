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


def generate(arguments: Sequence[str]) -> None:
    """draw images of prompts"""
    wanted = parse(Generate, arguments, "generate")
    from t2i_rl.outputs import check_free
    from t2i_rl.prompts.prompt import Prompt
    from t2i_rl.prompts.reading import load_prompts

    check_free(wanted.out)
    is_file = len(wanted.prompts) == 1 and Path(wanted.prompts[0]).suffix in (".jsonl", ".txt")
    prompts = load_prompts(wanted.prompts[0]) if is_file else [Prompt(text) for text in wanted.prompts]
    if not prompts:
        raise UserError("there is nothing to draw: give prompts, or a .jsonl or .txt file of them")
    policy, sampling = wanted.load()
    from t2i_rl.pictures.image_files import write_images

    write_images(
        wanted.out, policy, prompts, wanted.images_per_prompt, sampling, wanted.seed, wanted.batch, wanted.model
    )
    print(f"{wanted.out}: see contact_sheet.png and generation.json")
