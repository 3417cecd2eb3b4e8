"""Generated images do not depend on the batch; the folder is GenEval's, whole or absent."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.janus.policy import JanusPolicy
from t2i_rl.errors import UserError
from t2i_rl.pictures.image_files import contact_sheet, write_images
from t2i_rl.prompts import questions
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.generate import Generated, generate
from t2i_rl.rollout.sampling import Sampling
from tests.models.small_qwen_vl import picture, random_qwen

PROMPTS = ["a photo of a ring", "a photo of two crosses", "a photo of a ring"]
SAMPLING = Sampling(guidance_scale=3.0)


def by_key(images: list[Generated]) -> dict[tuple[int, int], np.ndarray]:
    return {(index, sample): image for index, sample, image in images}


def test_images_do_not_depend_on_the_batch(policy: JanusPolicy):
    alone = by_key(generate(policy, PROMPTS, 2, SAMPLING, seed=1, batch=1))
    together = by_key(generate(policy, PROMPTS, 2, SAMPLING, seed=1, batch=100))
    some = by_key(generate(policy, PROMPTS, 2, SAMPLING, seed=1, batch=4, only=[2]))
    assert list(alone) == list(together) == [(index, sample) for index in range(3) for sample in range(2)]
    assert list(some) == [(2, 0), (2, 1)]
    for key, image in together.items():
        assert image.dtype == np.uint8 and image.shape[-1] == 3
        np.testing.assert_array_equal(image, alone[key])
    for key, image in some.items():
        np.testing.assert_array_equal(image, alone[key])


def test_repeated_prompts_and_samples_differ(policy: JanusPolicy):
    images = by_key(generate(policy, PROMPTS, 2, SAMPLING, seed=1, batch=8))
    assert len({image.tobytes() for image in images.values()}) == len(images)


def test_the_pictures_of_questions_are_read_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, read = tmp_path / "a.png", list[Path]()
    Image.fromarray(picture(0, 16, 16)).save(path)
    prompts = [Prompt("<image>how many ?", pictures=(path,))] * 5
    reading = questions.read_picture
    monkeypatch.setattr(questions, "read_picture", lambda one, size: (read.append(one), reading(one, size))[1])
    answers = generate(random_qwen("qwen2_5_vl", tmp_path), prompts, 2, Sampling(1.0), 0, 4, max_tokens=3)
    next(answers)
    assert len(read) == 2  # of two questions with two answers each
    assert len(list(answers)) == 9 and len(read) == 5


def test_the_folder_is_the_one_geneval_reads(policy: JanusPolicy, tmp_path: Path):
    prompts = [Prompt(PROMPTS[0], {"tag": "single_object", "prompt": PROMPTS[0]}), Prompt(PROMPTS[1])]
    folder = tmp_path / "out"
    folder.mkdir()
    write_images(folder, policy, prompts, 2, SAMPLING, seed=1, batch=8, model="random")
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "00000/metadata.jsonl",
        "00000/samples/0000.png",
        "00000/samples/0001.png",
        "00001/metadata.jsonl",
        "00001/samples/0000.png",
        "00001/samples/0001.png",
        "contact_sheet.png",
        "generation.json",
    ]
    assert json.loads((folder / "00000/metadata.jsonl").read_text()) == prompts[0].metadata
    assert json.loads((folder / "00001/metadata.jsonl").read_text()) == {"prompt": PROMPTS[1]}
    record = json.loads((folder / "generation.json").read_text())
    assert (record["model"], record["seed"], record["sampling"]["guidance_scale"]) == ("random", 1, 3.0)
    images = by_key(generate(policy, PROMPTS[:2], 2, SAMPLING, seed=1, batch=8))
    for file, image in zip(record["files"], images.values(), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(folder / file["file"])), image)


def test_a_folder_in_use_is_left_alone(policy: JanusPolicy, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        write_images(tmp_path, policy, [Prompt(PROMPTS[0])], 1, SAMPLING, seed=1, batch=8, model="random")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(("images", "batch"), [(0, 4), (2, 0)])
def test_counts_below_one(policy: JanusPolicy, tmp_path: Path, images: int, batch: int):
    with pytest.raises(UserError, match="at least 1"):
        write_images(tmp_path / "out", policy, [Prompt(PROMPTS[0])], images, SAMPLING, 1, batch, model="random")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing(policy: JanusPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(policy, "decode", lambda tokens: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_images(tmp_path / "out", policy, [Prompt(PROMPTS[0])], 1, SAMPLING, seed=1, batch=8, model="random")
    assert not list(tmp_path.iterdir())


def test_a_long_caption_stays_on_the_sheet():
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    assert contact_sheet([("word " * 200, [image] * 2), ("", [image])]).size[0] == 280
