"""`t2i-rl generate`: images of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from t2i_rl.commands.arguments import Drawing, parse
from t2i_rl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Generate(Drawing):
    """Images of prompts, a contact sheet, and a JSON file of seeds and settings; or answers to questions.

    Attributes:
        prompts: the prompts themselves, files of them or sets by their names, as train reads them (docs/data.md); what
            ends like a prompt file (.jsonl, .json, .csv, .tsv, .txt) is taken for one.
        out: folder of the images; it must not hold anything.
        images_per_prompt: images of each prompt, or answers to it.
        image: files of the pictures that the questions on the command line are about, in the order of their marks
            <image>; one without marks has them in front.
        instruction: how to answer, behind every question.
        max_tokens: of an answer.
        batch: images sampled at once; only memory and speed depend on it.
    """

    draws: ClassVar[bool] = False

    prompts: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PROMPT ...", help_behavior_hint="")
    ]
    out: Path = Path("runs/generate")
    images_per_prompt: int = 4
    image: tuple[Path, ...] = ()
    instruction: str = ""
    max_tokens: int = 2048
    batch: int = 32


def generate(arguments: Sequence[str]) -> None:
    """draw images of prompts, or answer questions"""
    wanted = parse(Generate, arguments, "generate")
    from t2i_rl.commands.questions import asking, question
    from t2i_rl.outputs import check_free, free_or_next
    from t2i_rl.prompts.reading import load_prompts, names_prompts

    out = free_or_next(wanted.out, Generate.out)
    check_free(out)
    each = (load_prompts(said) if names_prompts(said) else [question(said, wanted.image)] for said in wanted.prompts)
    prompts = [prompt for some in each for prompt in some]
    if not prompts:
        raise UserError("there is nothing to draw: give prompts, or files of them")
    policy, sampling = wanted.load()
    count, seed, batch = wanted.images_per_prompt, wanted.seed, wanted.batch
    if policy.stop_tokens:
        from t2i_rl.rollout.answer_files import ANSWERS, write_answers

        asked = asking(policy, prompts, sampling, wanted.instruction)
        write_answers(out, policy, prompts, asked, count, sampling, seed, batch, wanted.max_tokens)
        print(f"{out}: see {ANSWERS}")
        return
    if wanted.image or wanted.instruction:
        raise UserError(f"{wanted.model} draws pictures, and --image and --instruction are of questions")
    from t2i_rl.pictures.image_files import write_images

    write_images(out, policy, prompts, count, sampling, seed, batch, wanted.model)
    print(f"{out}: see contact_sheet.png and generation.json")
