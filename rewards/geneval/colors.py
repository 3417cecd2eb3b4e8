"""The colour of a detected object, as GenEval asks CLIP for it.

The object is cut out on a grey ground and compared with three sentences for each of ten colours ("a photo of a red
bench", ...); the nearest colour is the answer. The benchmark's CLIP is OpenAI's ViT-L/14, whose activation is
QuickGELU: under open_clip's plain `ViT-L-14` the same weights give other features.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from rewards.detectors.base import Detection, Subject
from rewards.geneval.rules import COLORS
from rewards.scorers.clip import Clip, load_clip

OPENAI = "timm/vit_large_patch14_clip_224.openai"  # OpenAI's weights in open_clip's format
ARCHITECTURE = "ViT-L-14-quickgelu"
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
GREY = (0x99, 0x99, 0x99)
SCALE = 100.0
CROPS_PER_PASS = 64


def cut_out(
    image: UInt8[ndarray, "H W 3"],
    detection: Detection,
    background: tuple[int, int, int] | None = GREY,
    crop: bool = True,
) -> UInt8[ndarray, "h w 3"]:
    """The object's box, what is outside its mask (where it has one) painted with `background`.

    Sides are rounded to whole pixels, halves to even; what lies outside the image is black. Without a `background`
    nothing is painted, and without `crop` the whole image is returned. Raises ValueError for a mask of another size.
    """
    if background is not None and detection.mask is not None:
        if detection.mask.shape != image.shape[:2]:
            raise ValueError(f"a mask of {detection.mask.shape} does not fit an image of {image.shape[:2]}")
        image = np.where(detection.mask[..., None], image, np.array(background, dtype=np.uint8))
    if not crop:
        return image
    left, top, right, bottom = (int(side) for side in np.rint(detection.box[:4]))
    return np.asarray(Image.fromarray(image).crop((left, top, right, bottom)))


def text_classifier(features: Float[Tensor, "C T D"]) -> Float[Tensor, "C D"]:
    """One direction per colour from the features of its T sentences: the mean of unit vectors, of unit length."""
    return F.normalize(F.normalize(features, dim=-1).mean(1), dim=-1)


def color_logits(images: Float[Tensor, "B D"], classifiers: Float[Tensor, "#B C D"]) -> Float[Tensor, "B C"]:
    """A hundred times the cosine between each image's features and each colour's direction."""
    return SCALE * torch.einsum("bd,bcd->bc", F.normalize(images, dim=-1), classifiers.expand(len(images), -1, -1))


class ClipColors:
    """Classifies all objects of a batch together. The sentences of each class are encoded once."""

    def __init__(
        self, clip: Clip, name: str, background: tuple[int, int, int] | None = GREY, crop: bool = True
    ) -> None:
        self.clip = clip
        self.name = name
        self.background = background
        self.crop = crop
        self._classifiers: dict[str, Float[Tensor, "C D"]] = {}

    @classmethod
    def load(cls, source: str | Path = OPENAI, device: str = "cpu") -> Self:
        """From a folder or hub repository in open_clip's format, or a file with ViT-L/14's weights.

        Raises RewardError.
        """
        return cls(load_clip(source, ARCHITECTURE, device), f"clip {Path(source).name}")

    def classify(self, subjects: Sequence[Subject]) -> list[str]:
        answers: list[str] = []
        for start in range(0, len(subjects), CROPS_PER_PASS):
            part = subjects[start : start + CROPS_PER_PASS]
            crops = [cut_out(one.image, one.detection, self.background, self.crop) for one in part]
            classifiers = torch.stack([self._classifier(one.class_name) for one in part])
            best = color_logits(self.clip.encode_images(crops), classifiers).argmax(-1)
            answers += [COLORS[index] for index in best.tolist()]
        return answers

    def _classifier(self, class_name: str) -> Float[Tensor, "C D"]:
        if class_name not in self._classifiers:
            texts = sentences(class_name)
            features = self.clip.encode_texts(texts).unflatten(0, (len(COLORS), len(TEMPLATES)))
            self._classifiers[class_name] = text_classifier(features)
        return self._classifiers[class_name]


def sentences(class_name: str) -> list[str]:
    """Every colour's sentences in turn."""
    return [template.format(color=color, name=class_name) for color in COLORS for template in TEMPLATES]
