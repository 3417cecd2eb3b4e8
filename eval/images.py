"""Where the images of a benchmark are from: a policy draws them, or they lie in a folder already."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from jaxtyping import UInt8
from numpy import ndarray

from eval.benchmark import Benchmark
from eval.records.layouts import PLAIN, Layout, metadata_path
from eval.records.manifest import MANIFEST, SCORES, SETTINGS, Block, Key, Ledger, Row, digest, read_object
from eval.records.progress import Stages
from models.policy import Policy
from rewards.cut import Cut
from rewards.files.pictures import PictureError, read_rgb
from rewards.files.pins import sha256
from rewards.reward import Sample
from t2i_rl.errors import UserError
from t2i_rl.pictures.image_files import save_image, save_metadata
from t2i_rl.prompts.cut import cut_by
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.generate import generate
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.rollout.words import check_prompts

SHOWN = 3  # missing images that an error names


class Source(Protocol):
    """Where the images of a benchmark are from."""

    def cut(self, benchmark: Benchmark) -> Sequence[Cut]:
        """How many prompts they show the beginning of only."""
        ...

    def settings(self, benchmark: Benchmark) -> Mapping[str, Any]:
        """What tells these images from others."""
        ...

    def provide(
        self, benchmark: Benchmark, folder: Path, blocks: Sequence[Block], settings: str, stages: Stages, ledger: Ledger
    ) -> None:
        """Enter every image of the blocks that the ledger lacks; those of a block are drawn together."""
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
    weights: Mapping[str, str] = field(default_factory=dict)
    dtype: str = "float32"
    official: bool = False

    def settings(self, benchmark: Benchmark) -> Mapping[str, Any]:
        """What was asked of the policy. Raises UserError for a prompt that it cannot be asked."""
        negative = Prompt(self.sampling.negative_prompt, origin="the negative prompt")
        check_prompts(self.policy, [*benchmark.prompts, negative])
        return {
            "model": self.model,
            "weights": dict(self.weights),
            "dtype": self.dtype,
            "sampling": asdict(self.sampling),
            "seed": self.seed,
            "layout": self.layout(benchmark).name,
        }

    def cut(self, benchmark: Benchmark) -> Sequence[Cut]:
        return cut_by(self.policy, self.model, [prompt.text for prompt in benchmark.prompts])

    def layout(self, benchmark: Benchmark) -> Layout:
        return benchmark.official if self.official and benchmark.official else benchmark.plain

    def provide(
        self, benchmark: Benchmark, folder: Path, blocks: Sequence[Block], settings: str, stages: Stages, ledger: Ledger
    ) -> None:
        """Draw what is missing. Raises UserError for an image that was entered and is lost or changed."""
        held = ledger.rows()
        for key in chain(*blocks):
            if key in held:
                _check_unchanged(folder / held[key]["file"], held[key]["sha256"])
        layout, texts = self.layout(benchmark), [prompt.text for prompt in benchmark.prompts]
        advance = stages("generating", sum(key not in held for key in chain(*blocks)))
        for block in blocks:
            left = {key for key in block if key not in held}
            if not left:
                continue
            rows = list(dict.fromkeys(index for index, _ in block))  # all, so that what is drawn beside an image is too
            for image in generate(
                self.policy, texts, benchmark.images_per_prompt, self.sampling, self.seed, len(block), only=rows
            ):
                key = image.prompt, image.sample
                if key not in left:
                    continue
                path = folder / layout.paths[key]
                assert not isinstance(image.image, str)  # of a model that draws
                save_image(path, image.image)
                if layout.name == PLAIN:
                    save_metadata(folder, image.prompt, benchmark.prompts[image.prompt])
                row = describe(benchmark, key, str(layout.paths[key]), sha256(path), self.seed, settings)
                ledger.append([row])
            advance(len(left))


@dataclass(frozen=True)
class Given:
    """Images that are there already, in our layout or that of the benchmark's official tools.

    missing_as_zero: an image that is missing or cannot be read scores 0, and is listed; else it ends the run.
    """

    folder: Path
    missing_as_zero: bool = False

    def cut(self, benchmark: Benchmark) -> Sequence[Cut]:
        """Nobody knows how much of a prompt was read."""
        return ()

    def settings(self, benchmark: Benchmark) -> Mapping[str, Any]:
        """Images are told by their bytes; those of an evaluation of ours bring its settings along.

        Raises UserError for images that are missing, too many, or of other prompts.
        """
        layout, found = self.find(benchmark)
        self._check_number(benchmark, layout, found)
        self._check_prompts(benchmark, layout, found)
        drawn = self.folder / SETTINGS
        return {
            "images_sha256": digest([[*key, sha256(path)] for key, path in sorted(found.items())]),
            "missing_as_zero": self.missing_as_zero,
            "generated_with": read_object(drawn) if drawn.is_file() else None,
        }

    def find(self, benchmark: Benchmark) -> tuple[Layout, dict[Key, Path]]:
        """The layout that has most of the images, and the images. Raises UserError for a folder without any."""
        if not self.folder.is_dir():
            raise UserError(f"{self.folder} is no folder: give that of the images to judge")
        layouts = [benchmark.plain, *([benchmark.official] if benchmark.official else [])]
        layout, found = max(((one, one.find(self.folder)) for one in layouts), key=lambda pair: len(pair[1]))
        if not found:
            expected = " or ".join(str(next(iter(one.paths.values()))) for one in layouts)
            raise UserError(f"{self.folder} holds no image of {benchmark.name}: it should hold {expected}, and so on")
        return layout, found

    def _check_number(self, benchmark: Benchmark, layout: Layout, found: Mapping[Key, Path]) -> None:
        number = f"{benchmark.name} takes {benchmark.images_per_prompt} of each of {len(benchmark.prompts)} prompts"
        further = layout.further(self.folder, found)
        if further:
            raise UserError(
                f"{self.folder} has images that are not asked for, such as {further.relative_to(self.folder)} "
                f"({number}): choose --images-per-prompt and --prompts as they were drawn, or remove them"
            )
        lost = [key for key in benchmark.keys if key not in found]
        if lost and not self.missing_as_zero:
            names = ", ".join(str(layout.paths[key]) for key in lost[:SHOWN])
            more = ", ..." * (len(lost) > SHOWN)
            raise UserError(
                f"{self.folder} lacks {len(lost)} of {len(benchmark.keys)} images ({names}{more}; {number}): add them, "
                "choose --images-per-prompt and --prompts as they were drawn, or let them score 0 with "
                "--missing-as-zero"
            )

    def _check_prompts(self, benchmark: Benchmark, layout: Layout, found: Mapping[Key, Path]) -> None:
        """Where a prompt is written beside its images, as GenEval does, it is the right one."""
        for index in {index for index, _ in found} if layout.name == PLAIN else ():
            written = self.folder / metadata_path(index)
            if written.is_file() and (told := read_object(written).get("prompt")) != benchmark.prompts[index].text:
                raise UserError(
                    f'{written} is about "{told}", not about "{benchmark.prompts[index].text}": choose --prompts as '
                    "they were drawn"
                )

    def provide(
        self, benchmark: Benchmark, folder: Path, blocks: Sequence[Block], settings: str, stages: Stages, ledger: Ledger
    ) -> None:
        (_, found), held = self.find(benchmark), ledger.rows()
        left = [key for key in chain(*blocks) if key not in held]
        advance = stages("reading", len(left))
        for key in left:
            path = found.get(key)
            try:
                if path is not None:
                    read_rgb(path)
            except PictureError as error:
                if not self.missing_as_zero:
                    raise UserError(
                        f"{path} cannot be read ({error}): replace it, or let it score 0 with --missing-as-zero"
                    ) from error
                path = None
            file, checksum = (str(path.resolve()), sha256(path)) if path is not None else (None, None)
            ledger.append([describe(benchmark, key, file, checksum, None, settings)])
            advance(1)


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


def is_missing(row: Row) -> bool:
    """Of a line of the manifest, whether it is of an image that is not there; an answer is in the line itself."""
    return "text" not in row and row["file"] is None


def read_sample(folder: Path, row: Row) -> Sample:
    """The answer, or the pixels of the image. Raises UserError."""
    return row["text"] if "text" in row else read_image(folder / row["file"])


def read_image(path: Path) -> UInt8[ndarray, "H W 3"]:
    """The pixels in RGB, upright. Raises UserError."""
    try:
        return read_rgb(path)
    except PictureError as error:
        raise UserError(f"{path} cannot be read ({error}): replace it, or remove its line from {MANIFEST}") from error


def _check_unchanged(path: Path, checksum: str) -> None:
    if not path.is_file() or sha256(path) != checksum:
        raise UserError(
            f"{path} is in the manifest but cannot be read as it was written: remove its line from {MANIFEST} (and "
            f"from the files in {SCORES}) to generate it again"
        )
