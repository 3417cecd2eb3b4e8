"""Images as files: one by one, as a folder in the layout of GenEval, on a contact sheet."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track

from models.policy import Policy
from t2i_rl.outputs import aside_of, whole_folder
from t2i_rl.pictures.figures import ornament
from t2i_rl.pictures.fonts import of_line, say_what_lacks
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.generate import generate
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.rollout.words import check_prompts

SHEET_PROMPTS = 64  # the contact sheet shows this many prompts, the first ones


CELL, MARGIN, CAPTION = 128, 8, 20  # pixels


JPEG_QUALITY = 95


def image_path(prompt: int, sample: int) -> Path:
    """Where GenEval looks for an image, below the output folder."""
    return Path(f"{prompt:05d}", "samples", f"{sample:04d}.png")


def save_image(path: Path, image: UInt8[ndarray, "H W 3"]) -> None:
    """Write a PNG, or for a name that ends in .jpg a JPEG, that is there whole or not at all."""
    options = {"format": "JPEG", "quality": JPEG_QUALITY} if path.suffix == ".jpg" else {"format": "PNG"}
    with aside_of(path) as aside:
        Image.fromarray(image).save(aside, **options)


def save_metadata(folder: Path, index: int, prompt: Prompt) -> None:
    """Write the prompt's record beside its samples: one JSON line, as GenEval reads it."""
    path = folder / f"{index:05d}" / "metadata.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = dict(prompt.metadata, prompt=prompt.text)
    path.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")


def contact_sheet(groups: Sequence[tuple[str, Sequence[UInt8[ndarray, "H W 3"]]]]) -> Image.Image:
    """One row per prompt: the caption, and its images below. Small images grow by whole pixels."""
    columns = max(len(images) for _, images in groups)
    width, height = columns * (CELL + MARGIN) + MARGIN, CAPTION + CELL + MARGIN
    sheet = Image.new("RGB", (width, height * len(groups) + MARGIN), "white")
    canvas = ImageDraw.Draw(sheet)
    say_what_lacks(caption for caption, _ in groups)
    for row, (caption, images) in enumerate(groups):
        top, font = row * height + MARGIN // 2, of_line(caption, 12)
        canvas.text((MARGIN, top), shortened(caption, font, width - 2 * MARGIN), fill="black", font=font)
        for column, image in enumerate(images):
            cell = Image.fromarray(image)
            resample = Image.Resampling.NEAREST if max(cell.size) < CELL else Image.Resampling.LANCZOS
            sheet.paste(cell.resize((CELL, CELL), resample), (MARGIN + column * (CELL + MARGIN), top + CAPTION))
    return sheet


def shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text on one line of at most `width` pixels, its end replaced by an ellipsis where it is longer."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def write_images(
    folder: Path,
    policy: Policy,
    prompts: Sequence[Prompt],
    images_per_prompt: int,
    sampling: Sampling,
    seed: int,
    batch: int,
    model: str,
) -> None:
    """Generate into a new folder: `00000/samples/0000.png` and `00000/metadata.jsonl` per prompt (GenEval's
    layout), `contact_sheet.png`, and `generation.json` with the settings and what each file shows.

    The folder appears when it is complete. Raises UserError if it already holds something, and for a prompt that the
    model cannot be asked.
    """
    check_prompts(policy, prompts)
    with whole_folder(folder) as aside:
        files: list[dict[str, object]] = []
        shown: list[tuple[str, list[ndarray]]] = [(prompt.text, []) for prompt in prompts[:SHEET_PROMPTS]]
        images = generate(policy, [prompt.text for prompt in prompts], images_per_prompt, sampling, seed, batch)
        for index, sample, image in track(images, "generating", total=len(prompts) * images_per_prompt):
            assert not isinstance(image, str)  # the policy draws
            save_image(aside / image_path(index, sample), image)
            files.append({"file": str(image_path(index, sample)), "prompt": prompts[index].text, "sample": sample})
            if index < SHEET_PROMPTS:
                shown[index][1].append(image)
        for index, prompt in enumerate(prompts):
            save_metadata(aside, index, prompt)
        settings = {"model": model, "sampling": asdict(sampling), "seed": seed, "images_per_prompt": images_per_prompt}
        text = json.dumps(settings | {"files": files}, indent=1, ensure_ascii=False)
        (aside / "generation.json").write_text(text + "\n", encoding="utf-8")
        with ornament("the contact sheet"):
            contact_sheet(shown).save(aside / "contact_sheet.png")
