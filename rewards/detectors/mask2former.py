"""GenEval's detector on transformers: Mask2Former with a Swin-S backbone, COCO instances.

Weights: `official`, the OpenMMLab checkpoint that the benchmark names, converted while it is read (2.x or 3.x names,
`.pth` or `.safetensors`); or any folder or hub repository in transformers' format, such as `FACEBOOK`, which is a
separate training: scores near the thresholds differ, so its figures are not the official ones and its name says so.

Before and after the network all is as in mmdetection 2.x, which the benchmark ran: images are resized to fit in
1333 x 800 with OpenCV's 8-bit bilinear rule, padded with grey, and masks are cut at their logits' zero in the
image's own size. transformers' own pre- and post-processing give other numbers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray
from torch import Tensor
from transformers import Mask2FormerForUniversalSegmentation

from rewards.detectors.base import Detection
from rewards.detectors.coco import CLASSES
from rewards.detectors.mask2former_keys import UNUSED, config_of, convert
from rewards.detectors.openmmlab import OFFICIAL, official_weights, weights_name
from rewards.errors import RewardError
from rewards.files.pretrained import load_whole
from rewards.files.weights import HUB_ID, fetch_from_hub, read_tensors

FACEBOOK = "facebook/mask2former-swin-small-coco-instance"
CHECKPOINT_SUFFIXES = (".pth", ".pt", ".safetensors")

LONG_SIDE, SHORT_SIDE, DIVISOR, GREY = 1333, 800, 32, 128
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
MAX_INSTANCES = 100
IMAGES_PER_PASS = 8


def fitted(height: int, width: int) -> tuple[int, int]:
    """The size in which an image enters the network: as large as fits, sides in proportion."""
    scale = min(LONG_SIDE / max(height, width), SHORT_SIDE / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def padded(height: int, width: int) -> tuple[int, int]:
    """The next size whose sides the network's strides divide."""
    return -(-height // DIVISOR) * DIVISOR, -(-width // DIVISOR) * DIVISOR


def resize(images: UInt8[Tensor, "B 3 H W"], height: int, width: int) -> Int[Tensor, "B 3 h w"]:
    """Bilinear by OpenCV's integer rule for bytes, bit for bit: weights in 1/2048, truncated between the passes."""

    def taps(source: int, target: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        place = (torch.arange(target, dtype=torch.float64) + 0.5) * (source / target) - 0.5
        left = place.float().floor()
        weight = ((place.float() - left) * 2048).round().int().to(images.device)
        index = left.long().to(images.device)
        return index.clamp(0, source - 1), (index + 1).clamp(0, source - 1), 2048 - weight, weight

    left, right, to_left, to_right = taps(images.shape[-1], width)
    wide = images.int()
    wide = (wide[..., left] * to_left + wide[..., right] * to_right) >> 4
    top, bottom, to_top, to_bottom = taps(images.shape[-2], height)
    upper, lower = wide[..., top, :] * to_top[:, None], wide[..., bottom, :] * to_bottom[:, None]
    return ((upper >> 16) + (lower >> 16) + 2) >> 2


def preprocess(images: UInt8[Tensor, "B 3 H W"], swap_red_blue: bool = False) -> Float[Tensor, "B 3 h w"]:
    """What the network sees of RGB images of one size: resized, padded right and below with grey, normalised.

    `swap_red_blue` gives it blue where it expects red and the reverse, as the training servers of Flow-GRPO do.
    """
    small = fitted(*images.shape[-2:])
    height, width = padded(*small)
    fit = resize(images.flip(1) if swap_red_blue else images, *small)
    grey = F.pad(fit, (0, width - small[1], 0, height - small[0]), value=GREY)
    mean, std = (torch.tensor(each, device=images.device)[:, None, None] for each in (MEAN, STD))
    return (grey - mean) / std


@dataclass(frozen=True)
class Instances:
    """The detections of one image, best first: a label indexes the classes, a box is `(x1, y1, x2, y2)`."""

    labels: Int[Tensor, " n"]
    scores: Float[Tensor, " n"]
    boxes: Float[Tensor, "n 4"]
    masks: Bool[Tensor, "n H W"]


def instances(
    class_logits: Float[Tensor, "Q C"],
    mask_logits: Float[Tensor, "Q h w"],
    resized: tuple[int, int],
    size: tuple[int, int],
    min_score: float,
) -> Instances:
    """mmdetection's instances from the network's logits, for an image of `size` (height, width) that entered `resized`.

    The 100 best pairs of query and class; a pair's score is its probability times the mean probability of its mask's
    pixels. Only scores over `min_score` are returned. The last class is "no object".
    """
    classes = class_logits.shape[-1] - 1
    best, flat = class_logits.float().softmax(-1)[:, :-1].flatten().sort(descending=True, stable=True)
    candidates = best[:MAX_INSTANCES] > min_score  # a score is at most its probability
    best, flat = best[:MAX_INSTANCES][candidates], flat[:MAX_INSTANCES][candidates]

    if len(best) == 0:  # torch refuses to resize nothing
        nothing = mask_logits.new_zeros((0, *size), dtype=torch.bool)
        return Instances(labels=flat, scores=best, boxes=_boxes(nothing), masks=nothing)

    queries, row = (flat // classes).unique(return_inverse=True)
    logits = F.interpolate(mask_logits.float()[None, queries], padded(*resized), mode="bilinear")
    logits = F.interpolate(logits[..., : resized[0], : resized[1]], size, mode="bilinear")[0]
    masks = logits > 0
    quality = (logits.sigmoid() * masks).sum((1, 2)) / (masks.sum((1, 2)) + 1e-6)
    scores, order = (best * quality[row]).sort(descending=True, stable=True)
    order = order[scores > min_score]
    return Instances(
        labels=flat[order] % classes,
        scores=scores[: len(order)],
        boxes=_boxes(masks)[row[order]],
        masks=masks[row[order]],
    )


def _boxes(masks: Bool[Tensor, "n H W"]) -> Float[Tensor, "n 4"]:
    """The smallest box around each mask, its last pixel included; zeros for an empty mask."""
    boxes = torch.zeros(len(masks), 4)
    for box, columns, rows in zip(boxes, masks.any(1), masks.any(2), strict=True):
        x, y = columns.nonzero().flatten(), rows.nonzero().flatten()
        if len(x):
            box[:] = torch.tensor([x[0], y[0], x[-1] + 1, y[-1] + 1])
    return boxes.to(masks.device)


class Mask2FormerDetector:
    """Detects COCO's classes by GenEval's names; images of one size share a pass."""

    classes = CLASSES

    def __init__(
        self,
        model: Mask2FormerForUniversalSegmentation,
        name: str,
        min_score: float = 0.3,
        swap_red_blue: bool = False,
    ) -> None:
        if model.config.num_labels != len(CLASSES):
            raise RewardError(f"{name} knows {model.config.num_labels} classes: GenEval needs COCO's {len(CLASSES)}")
        self.model = model.eval().requires_grad_(False)
        self.name = name + (", red and blue swapped" if swap_red_blue else "")
        self.min_score = min_score
        self.swap_red_blue = swap_red_blue

    @classmethod
    def load(
        cls, source: str | Path = OFFICIAL, device: str = "cpu", min_score: float = 0.3, swap_red_blue: bool = False
    ) -> Self:
        """From `official`, an OpenMMLab checkpoint, or a folder or hub repository in transformers' format.

        Raises RewardError for what is not a whole Mask2Former of COCO's classes, or cannot be fetched.
        """
        path = official_weights() if source == OFFICIAL else Path(source)
        model: Any  # transformers' `to` is typed for no device
        if path.is_dir():
            model, name = load_transformers(path), f"{path.name}, unofficial weights"
        elif path.suffix in CHECKPOINT_SUFFIXES:
            model, name = load_openmmlab(path), weights_name(path)
        elif re.fullmatch(HUB_ID, str(source)):
            fetch_from_hub(str(source), "config.json")
            folder = fetch_from_hub(str(source), "model.safetensors").parent
            model, name = load_transformers(folder), f"{source}, unofficial weights"
        else:
            raise RewardError(
                f"no detector {source!r}: give {OFFICIAL}, a folder, a hub repository or a file that ends in "
                f"{' or '.join(CHECKPOINT_SUFFIXES)}"
            )
        return cls(model.to(device), f"mask2former {name}", min_score, swap_red_blue)

    @torch.no_grad()
    def detect(self, images: Sequence[UInt8[ndarray, "H W 3"]]) -> list[dict[str, list[Detection]]]:
        """Per image the detections that score more than `min_score` by class name, best first."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            by_size.setdefault(image.shape, []).append(index)
        found: list[dict[str, list[Detection]]] = [{} for _ in images]
        for rows in by_size.values():
            for start in range(0, len(rows), IMAGES_PER_PASS):
                part = rows[start : start + IMAGES_PER_PASS]
                for index, one in zip(part, self._pass([images[index] for index in part]), strict=True):
                    found[index] = one
        return found

    def _pass(self, images: Sequence[UInt8[ndarray, "H W 3"]]) -> list[dict[str, list[Detection]]]:
        stacked = torch.from_numpy(np.stack(images)).to(self.model.device).permute(0, 3, 1, 2)
        output = self.model(pixel_values=preprocess(stacked, self.swap_red_blue))
        size = stacked.shape[-2], stacked.shape[-1]
        found = []
        for logits in zip(output.class_queries_logits, output.masks_queries_logits, strict=True):
            by_class: dict[str, list[Detection]] = {}
            kept = instances(*logits, fitted(*size), size, self.min_score)
            columns = (column.cpu().numpy() for column in (kept.labels, kept.scores, kept.boxes, kept.masks))
            for label, score, box, mask in zip(*columns, strict=True):
                by_class.setdefault(CLASSES[label], []).append(Detection(box, float(score), mask))
            found.append(by_class)
        return found


def load_openmmlab(path: Path) -> Mask2FormerForUniversalSegmentation:
    """The model of an OpenMMLab checkpoint, key by key. Raises RewardError that names the file and the key."""
    weights = read_tensors(path)
    converted = convert(weights, str(path))
    config = config_of(weights, str(path))
    try:
        model = Mask2FormerForUniversalSegmentation(config)
    except (ValueError, ArithmeticError, RuntimeError) as error:
        raise RewardError(f"the shapes in {path} make no Mask2Former ({error}): copy the checkpoint again") from error
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items() if key not in UNUSED}
    for key, shape in wanted.items():
        if key not in converted:
            raise RewardError(f"{path} holds nothing for {key}: copy the checkpoint again")
        if tuple(converted[key].shape) != shape:
            raise RewardError(
                f"{path}: what it holds for {key} has the shape {tuple(converted[key].shape)}, not {shape}: "
                "copy the checkpoint again"
            )
    if strange := sorted(converted.keys() - wanted.keys()):
        raise RewardError(f"{path} holds {strange[0]}, which has no place in the model: copy the checkpoint again")
    model.load_state_dict(converted, strict=False)
    return model


def load_transformers(folder: Path) -> Mask2FormerForUniversalSegmentation:
    """The model of a folder in transformers' format, from safetensors only. Raises RewardError."""
    return load_whole(Mask2FormerForUniversalSegmentation, folder, "Mask2Former", UNUSED)
