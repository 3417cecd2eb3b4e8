"""How far two detectors agree about the same images, tag by tag.

    python -m rewards.calibrate geneval-official geneval-facebook-official --images FOLDER

judges the images of a GenEval folder (`00000/metadata.jsonl` beside `00000/samples/0000.png`, as `t2i-rl eval` writes
and as the benchmark reads) by the official rules with each of two rewards, and prints how often the verdicts are the
same. So a user can judge a detector against the official one before he trains or reports with it. A reward may be
served: `geneval-mmdet@http://HOST:PORT`.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from rewards.errors import RewardError, printable
from rewards.files.pictures import PictureError, read_rgb
from rewards.registry import build, parse

if TYPE_CHECKING:
    from rewards.reward import Reward

BATCH = 16


@dataclass(frozen=True)
class Agreement:
    """The official verdicts of two rewards on the same images, all shares in 0..1.

    same: share of equal verdicts; first, second: share of images that each calls correct;
    only_first, only_second: share that only this one calls correct.
    """

    images: int
    same: float
    first: float
    second: float
    only_first: float
    only_second: float


def agreement(tags: Sequence[str], first: Sequence[bool], second: Sequence[bool]) -> dict[str, Agreement]:
    """By tag, in order of appearance, and over `all` images. Raises ValueError without images."""
    if not tags:
        raise ValueError("there are no images to compare")
    rows = list(zip(tags, first, second, strict=True))
    pairs = {tag: [(a, b) for other, a, b in rows if other == tag] for tag in dict.fromkeys(tags)}
    return {tag: _compare(of_tag) for tag, of_tag in pairs.items()} | {"all": _compare([row[1:] for row in rows])}


def _compare(pairs: Sequence[tuple[bool, bool]]) -> Agreement:
    return Agreement(
        images=len(pairs),
        same=fmean(a == b for a, b in pairs),
        first=fmean(a for a, _ in pairs),
        second=fmean(b for _, b in pairs),
        only_first=fmean(a and not b for a, b in pairs),
        only_second=fmean(b and not a for a, b in pairs),
    )


def find_images(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The images of a GenEval folder, each with its prompt's record. Raises RewardError that names what is missing."""
    found = []
    for path in sorted(folder.glob("*/metadata.jsonl")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            record["tag"], record["prompt"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RewardError(
                f"{path} is no GenEval record ({error!r}): write one JSON object with tag and prompt"
            ) from error
        images = sorted((path.parent / "samples").glob("[0-9]*.png"))
        if not images:
            raise RewardError(f"{path.parent / 'samples'} holds no images: generate them, or remove the folder")
        found += [(image, record) for image in images]
    if not found:
        raise RewardError(f"{folder} holds no metadata.jsonl in numbered folders: point to the output of `t2i-rl eval`")
    return found


def verdicts(reward: "Reward", images: Sequence[tuple[Path, Mapping[str, Any]]]) -> list[bool]:
    """The official verdict on each image. Raises RewardError."""
    from rewards.reward import score_images

    correct: list[bool] = []
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        records = [record for _, record in part]
        texts = [record["prompt"] for record in records]
        scores = score_images(reward, [_read(path) for path, _ in part], texts, records)
        if "strict" not in scores.parts:
            raise RewardError(f"{reward.name} gives no official verdict: name rewards that judge by GenEval's rules")
        correct += (scores.parts["strict"] == 1).tolist()
    return correct


def _read(path: Path) -> np.ndarray:
    try:
        return read_rgb(path)
    except PictureError as error:
        raise RewardError(f"{path} cannot be read ({error}): generate it again") from error


def render(first: str, second: str, table: Mapping[str, Agreement]) -> str:
    """The figures in per cent, as plain text."""
    lines = [f"A: {first}", f"B: {second}", f"{'tag':14} images    same       A       B  only A  only B"]
    for tag, row in table.items():
        shares = (row.same, row.first, row.second, row.only_first, row.only_second)
        lines.append(f"{tag:14} {row.images:6d} " + " ".join(f"{100 * share:6.1f}%" for share in shares))
    return "\n".join(lines)


@dataclass(frozen=True)
class Calibration:
    """Compare the official verdicts of two rewards on the same images.

    Attributes:
        first: a reward that judges by GenEval's rules.
        second: another.
        images: a folder in GenEval's layout.
        device: where rewards of this process run, such as cpu or cuda.
    """

    first: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REWARD")]
    second: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REWARD")]
    images: Path
    device: str = "cpu"

    def __post_init__(self) -> None:
        for specification in (self.first, self.second):
            parse(specification)


def calibrate(asked: Calibration) -> str:
    """The table, as text. Raises RewardError."""
    found = find_images(asked.images)
    first, second = build(asked.first, asked.device), build(asked.second, asked.device)
    tags = [record["tag"] for _, record in found]
    return render(first.name, second.name, agreement(tags, verdicts(first, found), verdicts(second, found)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    try:
        print(printable(calibrate(tyro.cli(Calibration, args=arguments, prog="python -m rewards.calibrate"))))
    except RewardError as error:
        print(printable(f"rewards.calibrate: {error}"), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
