"""The detector through its real doors: loading what is published, refusing what is not whole, detecting in batches."""

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rewards.detectors.coco import CLASSES
from rewards.detectors.mask2former import Mask2FormerDetector, fitted, instances, padded, resize
from rewards.detectors.mask2former_keys import reorder_merging
from rewards.detectors.openmmlab import DIGESTS, canonical
from rewards.errors import RewardError
from rewards.files.pins import cache_folder, pin
from rewards.files.weights import fetch, fetch_from_hub
from tests.parity.golden import DEFAULT

TINY = DEFAULT / "mask2former" / "weights.safetensors"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return load_file(TINY)


@pytest.fixture(scope="module")
def detector() -> Mask2FormerDetector:
    return Mask2FormerDetector.load(TINY, min_score=0.01)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("T2I_RL_CACHE", str(tmp_path / "cache"))
    return cache_folder()


def pictures(*sizes: tuple[int, int]) -> list[np.ndarray]:
    """Smooth random pictures of the given heights and widths."""
    generator = torch.Generator().manual_seed(0)
    coarse = [torch.randint(0, 256, (1, 3, 4, 4), generator=generator).float() for _ in sizes]
    grown = [torch.nn.functional.interpolate(each, size) for each, size in zip(coarse, sizes, strict=True)]
    return [each[0].byte().permute(1, 2, 0).numpy() for each in grown]


def as_2x(key: str) -> str:
    """The name that mmdetection 2.x gives to a weight of 3.x."""
    layer = r"(pixel_decoder\.encoder\.layers\.\d+|transformer_decoder\.layers\.\d+)"
    key = re.sub(r"(pixel_decoder\.encoder\.layers\.\d+)\.self_attn\.", r"\1.attentions.0.", key)
    key = re.sub(r"(transformer_decoder\.layers\.\d+)\.cross_attn\.", r"\1.attentions.0.", key)
    key = re.sub(r"(transformer_decoder\.layers\.\d+)\.self_attn\.", r"\1.attentions.1.", key)
    return re.sub(rf"{layer}\.ffn\.", r"\1.ffns.0.", key)


def same(first: list[dict], second: list[dict]) -> bool:
    """Whether two answers hold the same detections, bit for bit."""
    rows: list[list[Any]] = []
    for answer in (first, second):
        flat = [(name, one) for image in answer for name, found in image.items() for one in found]
        rows.append([(name, one.score, one.box.tolist(), one.mask.tobytes()) for name, one in flat])
    return bool(rows[0]) and rows[0] == rows[1]


def test_the_names_of_both_releases_and_all_formats_load_the_same_model(
    weights: dict[str, Tensor], detector: Mask2FormerDetector, tmp_path: Path
) -> None:
    renamed = {f"module.{as_2x(key)}": tensor for key, tensor in weights.items()}
    assert sum(key.removeprefix("module.") not in weights for key in renamed) > 50
    assert {canonical(key) for key in renamed} == weights.keys()
    torch.save({"meta": {"CLASSES": CLASSES, "epoch": 50}, "state_dict": renamed}, tmp_path / "two.pth")
    detector.model.save_pretrained(tmp_path / "transformers")
    image = pictures((10, 120))
    expected = detector.detect(image)
    for name in ("two.pth", "transformers"):
        other = Mask2FormerDetector.load(tmp_path / name, min_score=0.01)
        assert same(other.detect(image), expected)
        assert other.name.startswith(f"mask2former {name}") and other.name.endswith("unofficial weights")


def test_only_the_published_bytes_are_called_official(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "unofficial weights" in Mask2FormerDetector.load(TINY).name
    monkeypatch.setattr("rewards.detectors.openmmlab.sha256", lambda path: DIGESTS[0] + "0" * 56)
    assert Mask2FormerDetector.load(TINY).name == f"mask2former official {DIGESTS[0]}"


def test_an_image_is_detected_alone_as_in_a_batch(detector: Mask2FormerDetector) -> None:
    images = pictures((10, 120), (80, 8), (10, 120))
    together = detector.detect(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = detector.detect([image])
        assert alone.keys() == found.keys() <= set(CLASSES)
        for name, detections in alone.items():
            for one, other in zip(detections, found[name], strict=True):
                assert one.score == pytest.approx(other.score, abs=1e-5) and one.score > detector.min_score
                assert one.mask is not None and one.mask.shape == image.shape[:2]
                rows, columns = one.mask.nonzero()
                assert one.box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            scores = [one.score for one in detections]
            assert scores == sorted(scores, reverse=True)
    assert detector.detect([]) == []


def test_the_swap_is_the_same_as_a_picture_with_red_for_blue(detector: Mask2FormerDetector) -> None:
    swapped = Mask2FormerDetector(detector.model, detector.name, detector.min_score, swap_red_blue=True)
    assert swapped.name.endswith("red and blue swapped")
    (image,) = pictures((10, 120))
    assert same(swapped.detect([image]), detector.detect([image[..., ::-1].copy()]))
    assert not same(swapped.detect([image]), detector.detect([image]))


def test_detections_up_to_the_lowest_score_are_dropped_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(1)
    classes = torch.randn(20, 81, generator=generator) * 4
    masks = torch.randn(20, 8, 8, generator=generator) * 4
    everything = instances(classes, masks, (32, 32), (20, 20), 0.0)
    kept = instances(classes, masks, (32, 32), (20, 20), 0.3)
    assert 0 < len(kept.scores) < len(everything.scores)
    assert (everything.scores > 0.3).sum() == len(kept.scores)
    for name in ("labels", "scores", "boxes", "masks"):
        assert getattr(kept, name).equal(getattr(everything, name)[: len(kept.scores)])
    empty = instances(classes, torch.full((20, 8, 8), -1.0), (32, 32), (20, 20), 0.0)
    unsure = instances(torch.zeros(20, 81), masks, (32, 32), (20, 20), 0.3)
    for none in (empty, unsure):
        assert len(none.scores) == len(none.labels) == 0
        assert none.masks.shape == (0, 20, 20) and none.boxes.shape == (0, 4)


def test_sizes_fit_the_network() -> None:
    assert fitted(384, 384) == (800, 800) and fitted(100, 1000) == (133, 1333)
    assert padded(800, 1333) == (800, 1344) and padded(33, 64) == (64, 64)


def test_a_flat_picture_stays_flat_when_resized() -> None:
    for level in (0, 1, 127, 255):
        flat = torch.full((1, 3, 7, 5), level, dtype=torch.uint8)
        assert (resize(flat, 7, 5) == flat).all()
        assert ((resize(flat, 31, 23) - level).abs() <= 1).all()


def test_the_downsampling_order_is_a_permutation() -> None:
    """Channel c of the pixel at (row, column) moves from 4c + 2 row + column to its block."""
    order = reorder_merging(torch.arange(12))
    assert order.tolist() == [0, 4, 8, 2, 6, 10, 1, 5, 9, 3, 7, 11]


class Executes:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("executed"),))


def test_a_checkpoint_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"meta": Executes(), "state_dict": {}}, "bad.pth")
    with pytest.raises(RewardError, match=r"bad\.pth holds more than weights, or is torn, and is not opened"):
        Mask2FormerDetector.load("bad.pth")
    assert not Path("executed").exists()


HEAD = "panoptic_head.cls_embed.weight"
MASK = "panoptic_head.transformer_decoder.layers.2.self_attn.attn.in_proj_weight"
NORM = "backbone.stages.1.downsample.norm.weight"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({HEAD: None}, rf"lacks {re.escape(HEAD)}"),
        (
            {MASK: None},
            r"holds nothing for model\.transformer_module\.decoder\.layers\.2\.self_attn\.[qkv]_proj\.weight",
        ),
        ({MASK: torch.zeros(7, 64)}, rf"{re.escape(MASK)} has the shape \(7, 64\)"),
        ({NORM: torch.zeros(3)}, rf"{re.escape(NORM)} has the shape \(3,\)"),
        ({HEAD: torch.zeros(3)}, rf"{re.escape(HEAD)} has the shape \(3,\)"),
        ({HEAD: torch.zeros(81, 60)}, r"class_predictor\.weight has the shape \(81, 60\), not \(81, 64\)"),
        ({HEAD: torch.zeros(5, 64), "panoptic_head.cls_embed.bias": torch.zeros(5)}, "knows 4 classes: GenEval needs"),
        ({HEAD: torch.zeros(0, 64)}, rf"{re.escape(HEAD)} is empty"),
        ({"roi_head.weight": torch.zeros(1)}, r"roi_head\.weight is no weight of OpenMMLab's Mask2Former"),
        (
            {"backbone.norm0.bias": torch.zeros(2)},
            r"hidden_states_norms\.stage1\.bias has the shape \(2,\), not \(16,\)",
        ),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused(
    weights: dict[str, Tensor], tmp_path: Path, change: dict[str, Tensor | None], complaint: str
) -> None:
    changed = {key: tensor for key, tensor in (weights | change).items() if tensor is not None}
    save_file(changed, tmp_path / "w.safetensors")
    with pytest.raises(RewardError, match=complaint):
        Mask2FormerDetector.load(tmp_path / "w.safetensors")


def test_a_torn_or_absent_file_is_refused(detector: Mask2FormerDetector, tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(TINY.read_bytes()[:100_000])
    torch.save({"a": torch.zeros(1000)}, tmp_path / "torn.pth")
    (tmp_path / "torn.pth").write_bytes((tmp_path / "torn.pth").read_bytes()[:2000])
    torch.save({"state_dict": {"a": 1}}, tmp_path / "numbers.pth")
    for name, complaint in (
        ("torn.safetensors", "is torn"),
        ("torn.pth", "torn"),
        ("absent.pth", "does not exist"),
        ("numbers.pth", "holds no state_dict of tensors"),
    ):
        with pytest.raises(RewardError, match=f"{name} .*{complaint}"):
            Mask2FormerDetector.load(tmp_path / name)
    with pytest.raises(RewardError, match=r"no detector 'oficial': give official, a folder"):
        Mask2FormerDetector.load("oficial")
    folder = tmp_path / "saved"
    detector.model.save_pretrained(folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100_000])
    with pytest.raises(RewardError, match=r"cannot load .*saved"):
        Mask2FormerDetector.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(RewardError, match=r"model\.safetensors does not exist"):
        Mask2FormerDetector.load(folder)


def test_mmdetection_is_asked_for_with_the_way_to_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmdet", None)
    monkeypatch.delitem(sys.modules, "rewards.detectors.mmdet", raising=False)
    with pytest.raises(
        RewardError, match=r"make its own environment as rewards/detectors/mmdet-requirements\.txt says"
    ):
        importlib.import_module("rewards.detectors.mmdet")


def test_a_file_is_pinned_when_first_seen(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    digest = pin("key", path, revision="abc")
    assert json.loads((cache / "pins.json").read_text()) == {"key": {"revision": "abc", "sha256": digest}}
    assert pin("key", path) == digest
    path.write_bytes(b"two")
    with pytest.raises(RewardError, match="is not the file that was first used"):
        pin("key", path)
    assert pin("other", path) != digest


def test_a_file_of_the_hub_is_pinned_to_its_first_revision(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def download(repository: str, name: str, revision: str | None) -> str:
        asked.append(revision)
        path = tmp_path / "snapshots" / (revision or "abc123") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        return str(path)

    monkeypatch.setattr("rewards.files.weights.hf_hub_download", download)
    assert fetch_from_hub("owner/name", "sub/config.json") == fetch_from_hub("owner/name", "sub/config.json")
    assert asked == [None, "abc123"]
    assert json.loads((cache / "pins.json").read_text())["hub:owner/name/sub/config.json"]["revision"] == "abc123"

    def offline(repository: str, name: str, revision: str | None) -> str:
        raise LocalEntryNotFoundError("no connection\nand more")

    monkeypatch.setattr("rewards.files.weights.hf_hub_download", offline)
    with pytest.raises(RewardError, match=r"of owner/name from the hub \(no connection\): run `hf download"):
        Mask2FormerDetector.load("owner/name")


def test_a_file_that_is_there_needs_no_proxy(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "snapshots" / "abc123" / "config.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}", encoding="utf-8")

    def behind_a_proxy(repository: str, name: str, revision: str | None, local_files_only: bool = False) -> str:
        if not local_files_only:
            raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed.")
        return str(path)

    monkeypatch.setattr("rewards.files.weights.hf_hub_download", behind_a_proxy)
    assert fetch_from_hub("owner/name", "config.json") == path


def test_a_download_has_the_publishers_checksum_and_is_made_once(cache: Path, tmp_path: Path) -> None:
    source = tmp_path / "w.pth"
    source.write_bytes(b"weights")
    digest = pin("x", source)
    with pytest.raises(RewardError, match=r"cannot fetch file:.*invalid hash value.*curl -L -o"):
        fetch(source.as_uri(), "00000000")
    assert not (cache / "w.pth").exists()
    path = fetch(source.as_uri(), digest[:8])
    assert path.read_bytes() == b"weights"
    source.unlink()
    assert fetch(source.as_uri(), digest[:8]) == path
    path.write_bytes(b"changed")
    with pytest.raises(RewardError, match="is not the file that was first used"):
        fetch(source.as_uri(), digest[:8])
    with pytest.raises(RewardError, match=r"cannot fetch file:.*gone\.pth"):
        fetch((tmp_path / "gone.pth").as_uri(), digest[:8])
