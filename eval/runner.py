"""Running a benchmark: get its images, let the scorers judge them, report. Interrupted, it continues where it was.

Several processes share the work as torchrun starts them (RANK and WORLD_SIZE): each generates and judges the prompts
that are its own, without talking to the others. Whoever finds everything done writes the summary, so no number
depends on how many they were.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, ImageOps
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from eval.benchmark import Benchmark, Scorer, counts, figures
from eval.layouts import Layout
from eval.manifest import (
    MANIFEST,
    SCORES,
    SETTINGS,
    SUMMARY,
    Key,
    Ledger,
    Row,
    Shard,
    as_json,
    begin,
    digest,
    read_object,
    write_whole,
)
from eval.provenance import prompts_digest, scorer_weights, versions
from models.policy import Policy
from rewards.pins import sha256
from t2i_rl.config import Sampling
from t2i_rl.errors import UserError
from t2i_rl.evaluation import chunks
from t2i_rl.generate import check_counts, generate, save_image, save_metadata

SHOWN = 3  # missing images that an error names


class Source(Protocol):
    """Where the images of a benchmark are from."""

    def settings(self, benchmark: Benchmark) -> Mapping[str, Any]:
        """What tells these images from others."""
        ...

    def provide(
        self, benchmark: Benchmark, folder: Path, keys: Sequence[Key], settings: str, progress: Progress, ledger: Ledger
    ) -> None:
        """Enter every image of `keys` that the ledger lacks."""
        ...


@dataclass(frozen=True)
class Generation:
    """Images that a policy draws.

    model: what the policy is called in the settings; weights: its checksums.
    official: lay them out as the official tools do.
    """

    policy: Policy
    sampling: Sampling
    seed: int
    model: str
    batch: int = 64
    weights: Mapping[str, str] = field(default_factory=dict)
    dtype: str = "float32"
    official: bool = False

    def settings(self, benchmark: Benchmark) -> Mapping[str, Any]:
        return {
            "model": self.model,
            "weights": dict(self.weights),
            "dtype": self.dtype,
            "sampling": asdict(self.sampling),
            "seed": self.seed,
            "layout": self.layout(benchmark).name,
        }

    def layout(self, benchmark: Benchmark) -> Layout:
        return benchmark.official if self.official and benchmark.official else benchmark.plain

    def provide(
        self, benchmark: Benchmark, folder: Path, keys: Sequence[Key], settings: str, progress: Progress, ledger: Ledger
    ) -> None:
        """Draw what is missing. Raises UserError for an image that was entered and is lost or changed."""
        check_counts(benchmark.images_per_prompt, self.batch)
        held = ledger.rows()
        for key in keys:
            if key in held:
                _check_unchanged(folder / held[key]["file"], held[key]["sha256"])
        left = [key for key in keys if key not in held]
        layout, missing = self.layout(benchmark), sorted({index for index, _ in left})
        wanted, texts = set(left), [prompt.text for prompt in benchmark.prompts]
        task = progress.add_task("generating", total=len(left))
        images = generate(
            self.policy, texts, benchmark.images_per_prompt, self.sampling, self.seed, self.batch, only=missing
        )
        for image in images:
            key = image.prompt, image.sample
            if key not in wanted:
                continue
            path = folder / layout.paths[key]
            save_image(path, image.image)
            if layout.name == "plain":
                save_metadata(folder, image.prompt, benchmark.prompts[image.prompt])
            row = describe(benchmark, key, str(layout.paths[key]), sha256(path), self.seed, settings)
            ledger.append([row])
            progress.advance(task)


@dataclass(frozen=True)
class Given:
    """Images that are there already, in our layout or that of the benchmark's official tools.

    missing_as_zero: an image that is missing or cannot be read scores 0, and is listed; else it ends the run.
    """

    folder: Path
    missing_as_zero: bool = False

    def settings(self, benchmark: Benchmark) -> Mapping[str, Any]:
        """Images are told by their bytes; those of an evaluation of ours bring its settings along."""
        found = self.find(benchmark)
        lost = [key for key in benchmark.keys if key not in found]
        if lost and not self.missing_as_zero:
            names = ", ".join(str(benchmark.plain.paths[key]) for key in lost[:SHOWN])
            more = ", ..." * (len(lost) > SHOWN)
            raise UserError(
                f"{self.folder} lacks {len(lost)} of {len(benchmark.keys)} images ({names}{more}): "
                "add them, or let them score 0 with --missing-as-zero"
            )
        drawn = self.folder / SETTINGS
        return {
            "images_sha256": digest([[*key, sha256(path)] for key, path in sorted(found.items())]),
            "missing_as_zero": self.missing_as_zero,
            "generated_with": read_object(drawn) if drawn.is_file() else None,
        }

    def find(self, benchmark: Benchmark) -> dict[Key, Path]:
        """The images in the layout that has most of them. Raises UserError for a folder without any."""
        layouts = [benchmark.plain, *([benchmark.official] if benchmark.official else [])]
        found = max((layout.find(self.folder) for layout in layouts), key=len)
        if not found:
            expected = " or ".join(str(next(iter(layout.paths.values()))) for layout in layouts)
            raise UserError(f"{self.folder} holds no image of {benchmark.name}: it should hold {expected}, and so on")
        return found

    def provide(
        self, benchmark: Benchmark, folder: Path, keys: Sequence[Key], settings: str, progress: Progress, ledger: Ledger
    ) -> None:
        found, held = self.find(benchmark), ledger.rows()
        left = [key for key in keys if key not in held]
        for key in progress.track(left, description="reading"):
            path = found.get(key)
            readable = path is not None and _readable(path)
            if path is not None and not readable and not self.missing_as_zero:
                raise UserError(f"{path} cannot be read: replace it, or let it score 0 with --missing-as-zero")
            file = str(path.resolve()) if path is not None and readable else None
            checksum = sha256(path) if path is not None and readable else None
            ledger.append([describe(benchmark, key, file, checksum, None, settings)])


def describe(
    benchmark: Benchmark, key: Key, file: str | None, checksum: str | None, seed: int | None, settings: str
) -> Row:
    """A line of the manifest. file: relative to the folder of the evaluation, or absolute; none: it is missing."""
    prompt = benchmark.prompts[key[0]]
    return {
        "index": key[0],
        "sample": key[1],
        "category": benchmark.category(key[0]),
        "prompt": prompt.text,
        "metadata": dict(prompt.metadata),
        "seed": seed,
        "file": file,
        "sha256": checksum,
        "settings": settings,
    }


def run(
    benchmark: Benchmark,
    source: Source,
    scorers: Mapping[str, Scorer],
    folder: Path,
    shard: Shard | None = None,
    batch: int = 64,
) -> dict[str, Any] | None:
    """Get the images, judge them and write the summary, which is returned.

    None while other processes are still at work, and without scorers, which only gets the images. Raises UserError
    for a folder of another evaluation or an image that is missing, RewardError for what cannot be judged.
    """
    shard = shard or Shard()
    check_counts(benchmark.images_per_prompt, batch)
    for scorer in scorers.values():
        scorer.check(benchmark.prompts)
    settings = {
        "benchmark": benchmark.name,
        "prompts": len(benchmark.prompts),
        "prompts_sha256": prompts_digest(benchmark.prompts),
        "images_per_prompt": benchmark.images_per_prompt,
        **source.settings(benchmark),
    }
    begin(folder, settings)
    keys = [key for key in benchmark.keys if shard.owns(key)]
    manifest = Ledger(folder / MANIFEST, shard)
    ledgers = {name: Ledger(folder / SCORES / f"{name}.jsonl", shard) for name in scorers}
    for ledger in (manifest, *ledgers.values()):
        ledger.mend()
    with display(shard) as progress:
        source.provide(benchmark, folder, keys, digest(settings)[:12], progress, manifest)
        images = _checked(manifest, digest(settings)[:12])
        for name, scorer in scorers.items():
            label = f"judging ({name})"
            judge(benchmark, scorer, folder, keys, images, ledgers[name], batch, progress, label)
    return finish(benchmark, folder, manifest, ledgers, scorers, settings)


def judge(
    benchmark: Benchmark,
    scorer: Scorer,
    folder: Path,
    keys: Sequence[Key],
    images: Mapping[Key, Row],
    ledger: Ledger,
    batch: int,
    progress: Progress,
    label: str,
) -> None:
    """Enter the judgement of every image that the ledger lacks. Raises UserError for another scorer's lines."""
    held = ledger.rows()
    settings = digest(dict(benchmark.settings))[:12]
    for key in keys:
        if key in held and (held[key]["scorer"], held[key]["rules"]) != (scorer.name, settings):
            raise UserError(
                f"{ledger.path} holds scores by {held[key]['scorer']}, now it is {scorer.name}"
                f"{' by other rules' * (held[key]['scorer'] == scorer.name)}: remove the file, or name another folder"
            )
    left = [key for key in keys if key not in held]
    task = progress.add_task(label, total=len(left))
    for chunk in chunks(left, batch):
        present = [key for key in chunk if images[key]["file"] is not None]
        pictures = [read_image(folder / images[key]["file"]) for key in present]
        judged = scorer.score(pictures, [benchmark.prompts[index] for index, _ in present]) if present else []
        found = dict(zip(present, judged, strict=True))
        rows = []
        for key in chunk:
            row: Row = {"index": key[0], "sample": key[1], "scorer": scorer.name, "rules": settings}
            if key in found:
                row |= {"values": dict(found[key].values), "reason": found[key].reason}
                row |= {"details": dict(found[key].details)} if found[key].details else {}
            else:
                named = {value: 0.0 for metric in benchmark.metrics for value in metric.values}
                row |= {"values": named, "reason": "the image is missing"}
            rows.append(row)
        ledger.append(rows)
        progress.advance(task, len(chunk))


def finish(
    benchmark: Benchmark,
    folder: Path,
    manifest: Ledger,
    ledgers: Mapping[str, Ledger],
    scorers: Mapping[str, Scorer],
    settings: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Join what all processes wrote and write the summary; None while something is missing, or there are no scorers."""
    rows = manifest.join(benchmark.keys)
    joined = {name: ledger.join(benchmark.keys) for name, ledger in ledgers.items()}
    scores = {name: lines for name, lines in joined.items() if lines is not None}
    if rows is None or not scores or len(scores) < len(joined):
        return None
    missing = [[row["index"], row["sample"]] for row in rows if row["file"] is None]
    summary = {
        "benchmark": benchmark.name,
        **(benchmark.more(rows, scores) if benchmark.more else {}),
        "metrics": figures(benchmark, rows, scores),
        "counts": counts(rows) | {"missing": missing},
        "notes": list(benchmark.notes),
        "settings": dict(settings) | {"rules": dict(benchmark.settings)},
        "scorers": {name: scorer.name for name, scorer in scorers.items()},
        "versions": versions(),
        "scorer_weights": scorer_weights(),
    }
    if benchmark.publish:
        benchmark.publish(folder, rows, scores)
    write_whole(folder / SUMMARY, as_json(summary))
    return summary


def read_image(path: Path) -> UInt8[ndarray, "H W 3"]:
    """The pixels in RGB, upright. Raises UserError."""
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path} cannot be read: replace it, or remove its line from {MANIFEST}") from error


def _readable(path: Path) -> bool:
    try:
        read_image(path)
    except UserError:
        return False
    return True


def _check_unchanged(path: Path, checksum: str) -> None:
    if not path.is_file() or sha256(path) != checksum:
        raise UserError(
            f"{path} is in the manifest but cannot be read as it was written: remove its line from {MANIFEST} (and "
            f"from the files in {SCORES}) to generate it again"
        )


def _checked(manifest: Ledger, settings: str) -> dict[Key, Row]:
    """The images, all of one evaluation. Raises UserError for a line of another."""
    rows = manifest.rows()
    for (index, sample), row in rows.items():
        if row["settings"] != settings:
            raise UserError(
                f"{manifest.path} mixes two settings: image {sample} of prompt {index} is of another evaluation, so "
                "remove its line, or name another folder"
            )
    return rows


class _Speed(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} images/s")


@contextmanager
def display(shard: Shard) -> Iterator[Progress]:
    """One line for each stage: how far, how fast, how long still. The first process shows its own share."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn()
    with Progress(*columns, disable=shard.rank != 0) as progress:
        yield progress
