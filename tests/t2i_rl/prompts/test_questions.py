"""Prompts with pictures: read from prompt files, checked at the door, sized as the data says."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i_rl.errors import UserError
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.prompts.questions import PictureSize, check_questions, outline_of, question_of
from t2i_rl.prompts.reading import load_prompts

AS_IT_IS = PictureSize(1, 10**6)


def picture(path: Path, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 40_000 if mode == "I;16" else "red").save(path)
    return path


def written(path: Path, **record: object) -> str:
    path.write_text(json.dumps({"prompt": "<image>How many?", "answer": "3", **record}) + "\n")
    return str(path)


def test_pictures_lie_beside_the_file_or_anywhere(tmp_path: Path) -> None:
    beside, apart = picture(tmp_path / "data/images/a.png"), picture(tmp_path / "apart/b.png", (3, 2))
    source = written(tmp_path / "data/own.jsonl", prompt="<image><image>Which?", images=["images/a.png", str(apart)])
    [prompt] = load_prompts(source)
    assert prompt.pictures == (beside, apart) and prompt.metadata["answer"] == "3"
    check_questions([prompt])
    asked = question_of(prompt, AS_IT_IS)
    assert asked.text == prompt.text and [one.shape for one in asked.pictures] == [(4, 6, 3), (2, 3, 3)]


@pytest.mark.parametrize("images", [[{"bytes": 1}], "a.png", None, []])
def test_what_names_no_pictures_is_the_rewards_affair(tmp_path: Path, images: object) -> None:
    [prompt] = load_prompts(written(tmp_path / "own.jsonl", images=images))
    assert prompt.pictures == () and prompt.metadata["images"] == images


def test_marks_and_pictures_fit(tmp_path: Path) -> None:
    source = written(tmp_path / "own.jsonl", prompt="<image><image>?", images=[str(picture(tmp_path / "a.png"))])
    with pytest.raises(UserError, match=r"own\.jsonl, line 1 has 2 mark\(s\) <image> and 1 picture\(s\)"):
        check_questions(load_prompts(source))
    with pytest.raises(UserError, match=r"the prompt '<image>\?' has 1 mark\(s\) <image> and 0 picture\(s\)"):
        check_questions([Prompt("<image>?")])


def test_a_picture_that_is_not_there_or_torn_is_named(tmp_path: Path) -> None:
    prompts = load_prompts(written(tmp_path / "own.jsonl", images=["a.png"]))
    with pytest.raises(UserError, match=r"own\.jsonl, line 1 shows .*/a\.png, which is not there"):
        check_questions(prompts)
    path = picture(tmp_path / "a.png", (64, 64))
    path.write_bytes(path.read_bytes()[:-20])
    check_questions(prompts)
    with pytest.raises(UserError, match=r"own\.jsonl, line 1 shows .*/a\.png, which cannot be read \(.*\): copy"):
        question_of(prompts[0], AS_IT_IS)
    picture(tmp_path / "a.png", (401, 2))
    with pytest.raises(UserError, match="401 x 2 pixels, one side over 200 times the other"):
        question_of(prompts[0], AS_IT_IS)


def test_an_outline_has_the_sizes_and_not_the_pixels(tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"a.{suffix}", (300, 200)) for suffix in ("png", "jpg", "webp", "gif", "bmp", "tiff")]
    for size in (PictureSize(), PictureSize(1, 5000), AS_IT_IS):
        prompt = Prompt("<image>" * len(paths), pictures=tuple(paths))
        asked, outline = question_of(prompt, size), outline_of(prompt, size)
        assert [one.shape for one in outline.pictures] == [one.shape for one in asked.pictures]
        assert all(one.strides == (0, 0, 0) for one in outline.pictures) and outline.text == asked.text


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp"])
def test_an_outline_finds_a_lost_end_and_decodes_nothing_else(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(256, size=(60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    prompt, whole = Prompt("<image>", pictures=(path,)), path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        UserError, match=rf"the prompt '<image>' shows .*/a\.{suffix}, which cannot be read \(.*\): copy"
    ):
        outline_of(prompt, AS_IT_IS)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="which cannot be read"):
        outline_of(prompt, AS_IT_IS)
    if suffix == "png":  # what is wrong inside shows when the picture is read
        path.write_bytes(whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:])
        assert outline_of(prompt, AS_IT_IS).pictures[0].shape == noise.shape
        with pytest.raises(UserError, match="checksum"):
            question_of(prompt, AS_IT_IS)


def test_pictures_are_sized_but_pixels_stay(tmp_path: Path) -> None:
    pixels = np.zeros((5, 5, 3), dtype=np.uint8)
    prompt = Prompt("<image><image>", pictures=(picture(tmp_path / "a.png", (100, 50)), pixels))
    first, second = question_of(prompt, PictureSize(1, 1250)).pictures
    assert first.shape == (25, 50, 3) and second is pixels
    with pytest.raises(UserError, match=re.escape("pictures of 9 to 4 pixels: the first has to be above 0")):
        PictureSize(9, 4)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("P", "gif"), ("RGBA", "png"), ("1", "bmp"), ("I;16", "png")]
)
def test_every_kind_of_picture_has_three_colours(tmp_path: Path, mode: str, suffix: str) -> None:
    prompt = Prompt("<image>", pictures=(picture(tmp_path / f"a.{suffix}", mode=mode),))
    [pixels] = question_of(prompt, AS_IT_IS).pictures
    assert pixels.shape == (4, 6, 3) and pixels.dtype == np.uint8
    assert outline_of(prompt, AS_IT_IS).pictures[0].shape == (4, 6, 3)
    assert mode != "I;16" or (pixels == 40_000 >> 8).all()
