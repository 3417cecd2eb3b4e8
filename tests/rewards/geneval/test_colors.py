"""Colours by a random CLIP through the real doors, and GenEval with a random detector on top of it."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from rewards.detectors.base import Detection, Subject
from rewards.detectors.mask2former import Mask2FormerDetector
from rewards.errors import RewardError
from rewards.geneval.colors import ARCHITECTURE, GREY, TEMPLATES, ClipColors, cut_out
from rewards.geneval.reward import GenEvalReward
from rewards.geneval.rules import COLORS, GenEvalOptions
from rewards.reward import score_images
from rewards.scorers.clip import load_clip
from tests.parity.golden import DEFAULT
from tests.rewards.tiny_clip import CONFIG, register_tiny_clip, save_tiny_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def colors(folder: Path) -> ClipColors:
    return ClipColors.load(folder)


def subject(seed: int, class_name: str = "bench") -> Subject:
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    left, top = generator.integers(0, 12, 2)
    box = np.array([left, top, left + 20.4, top + 15.6], dtype=np.float32)
    return Subject(image, Detection(box, 0.9, generator.random((30, 40)) < 0.7), class_name)


def test_the_answer_is_the_nearest_of_ten_sentences(folder: Path, colors: ClipColors) -> None:
    """Against open_clip itself, object by object."""
    model = open_clip.CLIP(**CONFIG).eval()
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    tokenizer = open_clip.get_tokenizer("ViT-L-14-quickgelu")
    transform = open_clip.image_transform(
        32, is_train=False, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
    )
    subjects = [subject(seed, name) for seed in range(20) for name in ("bench", "tv remote")]
    expected = []
    with torch.no_grad():
        for one in subjects:
            x1, y1, x2, y2 = (round(float(side)) for side in one.detection.box)
            painted = np.where(one.detection.mask[..., None], one.image, np.uint8(0x99))[y1:y2, x1:x2]
            feature = F.normalize(model.encode_image(transform(Image.fromarray(painted))[None]), dim=-1)
            similarities = []
            for color in COLORS:
                texts = [template.format(color=color, name=one.class_name) for template in TEMPLATES]
                mean = F.normalize(model.encode_text(tokenizer(texts)), dim=-1).mean(0)
                similarities.append(float(feature @ F.normalize(mean, dim=-1)))
            expected.append(COLORS[int(np.argmax(similarities))])
    assert len(set(expected)) > 2
    assert colors.classify(subjects) == expected


def test_answers_do_not_depend_on_the_batch(colors: ClipColors, monkeypatch: pytest.MonkeyPatch) -> None:
    subjects = [subject(seed, name) for seed in range(9) for name in ("dog", "cat")]
    together = colors.classify(subjects)
    assert [colors.classify([one])[0] for one in subjects] == together
    monkeypatch.setattr("rewards.geneval.colors.CROPS_PER_PASS", 4)
    assert colors.classify(subjects) == together
    assert colors.classify([]) == []


def test_a_crop_beyond_the_image_is_black_and_halves_go_to_even() -> None:
    image = np.full((4, 4, 3), 200, dtype=np.uint8)
    box = np.array([-1.5, 0.5, 2.5, 5.0], dtype=np.float32)
    crop = cut_out(image, Detection(box, 1.0, np.zeros((4, 4), dtype=bool)))
    assert crop.shape == (5, 4, 3)
    assert (crop[:4, 2:] == GREY).all() and not crop[4:].any() and not crop[:, :2].any()
    with pytest.raises(ValueError, match=r"a mask of \(3, 4\) does not fit an image of \(4, 4\)"):
        cut_out(image, Detection(box, 1.0, np.zeros((3, 4), dtype=bool)))


def test_openais_weights_meet_their_own_activation() -> None:
    assert open_clip.get_model_config(ARCHITECTURE)["quick_gelu"] is True


def test_weights_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "open_clip_model.safetensors")
    copied = save_tiny_clip(tmp_path / "copied")

    def complaint() -> str:
        with pytest.raises(RewardError) as caught:
            ClipColors.load(copied)
        return str(caught.value)

    save_file({key: weights[key] for key in weights if key != "visual.proj"}, copied / "open_clip_model.safetensors")
    assert "does not fit" in complaint() and 'Missing key(s) in state_dict: "visual.proj"' in complaint()
    save_file(weights | {"visual.proj": torch.zeros(2, 2)}, copied / "open_clip_model.safetensors")
    assert "size mismatch for visual.proj" in complaint()
    (copied / "open_clip_model.safetensors").write_bytes(b"no")
    assert "open_clip_model.safetensors is torn" in complaint()
    (copied / "open_clip_model.safetensors").unlink()
    assert "open_clip_model.safetensors does not exist" in complaint()
    for text in ("not json", "[]", '{"model_cfg": {"embed_dim": 3}}'):
        (copied / "open_clip_config.json").write_text(text)
        assert "open_clip_config.json describes no CLIP" in complaint()
    (copied / "open_clip_config.json").unlink()
    assert "open_clip_config.json describes no CLIP" in complaint()


def test_a_checkpoint_of_torch_loads_the_same(folder: Path, colors: ClipColors, tmp_path: Path) -> None:
    weights = load_file(folder / "open_clip_model.safetensors")
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in weights.items()}}, tmp_path / "clip.pt")
    name = register_tiny_clip(tmp_path)
    texts = ["a photo of a red bench", "two dogs"]
    assert load_clip(tmp_path / "clip.pt", name).encode_texts(texts).equal(colors.clip.encode_texts(texts))
    with pytest.raises(RewardError, match=r"absent\.bin does not exist"):
        load_clip(tmp_path / "absent.bin", name)


def test_geneval_with_a_random_detector_and_a_random_clip(colors: ClipColors) -> None:
    """The whole path, in a batch and image by image: the same scores, all of the rules' own making."""
    detector = Mask2FormerDetector.load(DEFAULT / "mask2former" / "weights.safetensors", min_score=0.01)
    reward = GenEvalReward(detector, colors, "partial", GenEvalOptions(threshold=0.01, counting_threshold=0.01))
    generator = np.random.default_rng(0)
    images = [np.kron(generator.integers(0, 256, (2, 12, 3)), np.ones((5, 10, 1))).astype(np.uint8) for _ in range(2)]
    found = [next(iter(each.items())) for each in detector.detect(images)]
    records: list[dict[str, Any]] = [
        {"tag": "colors", "include": [{"class": name, "count": min(len(objects), 16), "color": color}]}
        for (name, objects), color in zip(found, ("red", "green"), strict=True)
    ]
    texts = ["a photo"] * 2
    scores = score_images(reward, images, texts, records)
    assert any(" found " in reason and "; and " in reason for reason in scores.reasons), scores.reasons
    for row in range(2):
        alone = score_images(reward, images[row : row + 1], texts[:1], records[row : row + 1])
        assert alone.total.item() == scores.total[row].item()
        assert alone.reasons == (scores.reasons[row],)
    assert "unofficial weights" in reward.name
