"""Pictures that are given: whole ones of every kind are judged, damaged ones are named or score 0."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from eval.benchmark import Benchmark, Metric, RewardScorer
from eval.images import Given
from eval.runner import run
from rewards import calibrate
from rewards.registry import build
from t2i_rl.errors import UserError
from t2i_rl.pictures.image_files import save_metadata
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.prompts.shapes_world import Shape, render

SQUARE = {"tag": "single_object", "prompt": "a photo of a square", "include": [{"class": "square", "count": 1}]}
PROMPTS = (Prompt("a photo of a square", SQUARE),) * 2
BENCHMARK = Benchmark("small", PROMPTS, 1, (Metric("score", "shapes"),), category_key="tag")
PICTURE = Image.fromarray(render([Shape("square", "red", 4, 4, 20)]))
LAST = "00001/samples/0000.png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures that show what they should."""
    for index, prompt in enumerate(PROMPTS):
        save_metadata(tmp_path / "given", index, prompt)
        (tmp_path / f"given/{index:05d}/samples").mkdir()
        PICTURE.save(tmp_path / f"given/{index:05d}/samples/0000.png")
    return tmp_path / "given"


def judged(folder: Path, **how: bool) -> list[float | None]:
    """The score of both, None for one that is missing."""
    summary = run(BENCHMARK, Given(folder, **how), {"shapes": RewardScorer(build("shapes"))}, folder.parent / "out")
    assert summary is not None
    missing = [index for index, _ in summary["counts"]["missing"]]
    overall = 2 * summary["metrics"]["score"]["overall"]
    return [1.0, None if missing else overall - 1.0]


def with_text(path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 2_000_000, zip=True)
    PICTURE.save(path, pnginfo=text)


def with_profile(path: Path) -> None:
    PICTURE.save(path, icc_profile=bytes(2_000_000))


def beside_its_double(path: Path) -> None:
    (path.parent / "._0000.png").write_bytes(b"Mac OS X")
    (path.parent / ".0007.png").write_bytes(b"")


def grey_ramp(path: Path) -> None:
    """Clipped to 8 bits it is white but for its first column, which passes for a square."""
    Image.fromarray((np.linspace(0, 65535, 48)[None] * np.ones((48, 1))).astype(np.uint16)).save(path)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def another_format(path: Path) -> None:
    PICTURE.save(path, "TIFF")


@pytest.mark.parametrize(
    ("change", "score"), [(with_text, 1.0), (with_profile, 1.0), (beside_its_double, 1.0), (grey_ramp, 0.0)]
)
def test_whole_pictures_are_judged(folder: Path, change: Callable[[Path], None], score: float) -> None:
    change(folder / LAST)
    assert judged(folder) == [1.0, score]


@pytest.mark.parametrize("damage", [flipped, cut, another_format])
def test_a_damaged_picture_is_named_or_scores_nothing(
    folder: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(folder / LAST)
    with pytest.raises(UserError, match=rf"{LAST} cannot be read \(.*\): replace it, or let it score 0 with --missing"):
        judged(folder)
    shutil.rmtree(folder.parent / "out")
    assert judged(folder, missing_as_zero=True) == [1.0, None]
    assert calibrate.main(["shapes", "shapes-official", "--images", str(folder)]) == 2
    assert f"{LAST} cannot be read (" in capsys.readouterr().err
