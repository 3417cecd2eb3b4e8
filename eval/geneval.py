"""GenEval: generate the benchmark's images, judge each by the official rules, report the benchmark's figures.

    FOLDER/settings.json             what was asked for; another request needs another folder
    FOLDER/00000/samples/0000.png    the images, beside 00000/metadata.jsonl (the benchmark's own layout)
    FOLDER/manifest.jsonl            one line per judged image
    FOLDER/summary.json              the figures; there only when every image has been judged

An interrupted evaluation continues where it was: what the manifest holds is not generated again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from rich.progress import track
from rich.table import Table

from models.policy import Policy
from rewards.geneval import Summary, summarise
from rewards.reward import Reward
from t2i_rl.checkpoints import write_atomically
from t2i_rl.config import Sampling
from t2i_rl.errors import UserError
from t2i_rl.evaluation import chunks, score_generated
from t2i_rl.generate import check_counts, generate, image_path, save_image, save_metadata
from t2i_rl.prompts import Prompt

SETTINGS, MANIFEST, SUMMARY = "settings.json", "manifest.jsonl", "summary.json"

Rows = dict[tuple[int, int], dict[str, Any]]  # manifest lines by prompt index and sample


def evaluate(
    policy: Policy,
    prompts: Sequence[Prompt],
    reward: Reward,
    images_per_prompt: int,
    sampling: Sampling,
    seed: int,
    folder: Path,
    batch: int,
    model: str,
) -> Summary:
    """Generate, judge and summarise into `folder`, about `batch` images at a time.

    `reward` judges by GenEval's rules: `parts["strict"]` is the official verdict and `name` names the detector.
    `model` is what the policy is called in the settings. Raises UserError for a folder of another evaluation
    or with a lost image, RewardError for a prompt that is no GenEval record or an image that cannot be judged.
    """
    check_counts(images_per_prompt, batch)
    reward.check([prompt.text for prompt in prompts], [prompt.metadata for prompt in prompts])
    settings = {
        "model": model,
        "prompts": len(prompts),
        "prompts_sha256": hashlib.sha256(json.dumps([asdict(p) for p in prompts]).encode()).hexdigest(),
        "images_per_prompt": images_per_prompt,
        "sampling": asdict(sampling),
        "seed": seed,
        "reward": reward.name,
    }
    rows = resume(folder, settings)
    keys = [(index, sample) for index in range(len(prompts)) for sample in range(images_per_prompt)]
    missing = sorted({index for index, sample in keys if (index, sample) not in rows})
    texts = [prompt.text for prompt in prompts]
    images = generate(policy, texts, images_per_prompt, sampling, seed, batch, only=missing)
    fresh = (image for image in images if (image.prompt, image.sample) not in rows)
    with (folder / MANIFEST).open("a", encoding="utf-8") as manifest:
        for chunk in track(chunks(fresh, batch), "evaluating", total=-(-(len(keys) - len(rows)) // batch)):
            for image in chunk:
                save_image(folder / image_path(image.prompt, image.sample), image.image)
                save_metadata(folder, image.prompt, prompts[image.prompt])
            scores = score_generated(reward, prompts, chunk)
            verdicts = zip(chunk, scores.parts["strict"].tolist(), scores.total.tolist(), scores.reasons, strict=True)
            for image, correct, score, reason in verdicts:
                prompt = prompts[image.prompt]
                row = {
                    "index": image.prompt,
                    "sample": image.sample,
                    "prompt": prompt.text,
                    "tag": prompt.metadata["tag"],
                    "metadata": json.dumps(prompt.metadata, ensure_ascii=False),
                    "seed": seed,
                    "file": str(image_path(image.prompt, image.sample)),
                    "correct": correct == 1,
                    "score": score,
                    "reason": reason,
                }
                manifest.write(json.dumps(row, ensure_ascii=False) + "\n")
                manifest.flush()
                rows[image.prompt, image.sample] = row
    summary = summarise([rows[key] for key in keys])
    text = json.dumps(asdict(summary) | {"settings": settings}, indent=2)
    write_atomically(folder / SUMMARY, text + "\n")
    return summary


def resume(folder: Path, settings: Mapping[str, Any]) -> Rows:
    """Make the folder ready and return what it already holds, each image checked. Raises UserError."""
    path = folder / SETTINGS
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} holds something else than an evaluation: name another folder")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(settings, indent=2) + "\n")
        return {}
    try:
        held = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): name another folder") from error
    if different := [key for key in settings if held.get(key) != settings[key]]:
        key = different[0]
        raise UserError(
            f"{folder} holds an evaluation with another {key} ({held.get(key)}, now {settings[key]}): "
            "name another folder, or remove it"
        )
    rows = read_manifest(folder / MANIFEST)
    for row in rows.values():
        check_image(folder / row["file"])
    return rows


def read_manifest(path: Path) -> Rows:
    """The judged images. A last line without its end is what a killed run was writing: it is cut off.

    Raises UserError for any other line that cannot be read.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    whole, newline, torn = text.rpartition("\n")
    if torn:
        write_atomically(path, whole + newline)
    rows: Rows = {}
    for number, line in enumerate(whole.split("\n") if newline else [], start=1):
        try:
            row = json.loads(line)
            rows[row["index"], row["sample"]] = row
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}, line {number} is not a judged image: remove the line to judge it again"
            ) from error
    return rows


def check_image(path: Path) -> None:
    """The image of a manifest line is there and can be read. Raises UserError."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise UserError(
            f"{path} is in the manifest but cannot be read: remove its line from {MANIFEST} to generate it again"
        ) from error


def table(summary: Summary, title: str) -> Table:
    """The figures for the terminal, in per cent."""
    drawn = Table(title=title)
    drawn.add_column("tag")
    drawn.add_column("images", justify="right")
    drawn.add_column("correct", justify="right")
    for tag, share in summary.per_tag.items():
        drawn.add_row(tag, str(summary.images_per_tag[tag]), f"{share:.1%}")
    drawn.add_section()
    drawn.add_row("overall (mean of the tags)", "", f"{summary.overall:.1%}", style="bold")
    drawn.add_row("images", str(summary.images), f"{summary.image_accuracy:.1%}")
    drawn.add_row("prompts, any image correct", str(summary.prompts), f"{summary.prompt_accuracy:.1%}")
    return drawn
