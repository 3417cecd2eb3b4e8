"""GenEval's detector as real mmdetection 3.x code, to be run in an environment of its own.

mmdetection needs an mmcv that must be compiled and does not share an environment with current packages, so this file
is imported only where `mmdet-requirements.txt` (beside it) is installed and the reward is served from there:
`python -m rewards.server geneval-mmdet`. Weights are read without running what they hold, by 2.x or 3.x names.

Differences from `mask2former`: mmdetection 3.x resizes in floating point and pads with zeros after normalising, where
the benchmark's 2.x resized bytes and padded with grey before.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray

from rewards.detectors.base import Detection
from rewards.detectors.coco import CLASSES
from rewards.detectors.openmmlab import OFFICIAL, canonical, official_weights, weights_name
from rewards.errors import RewardError
from rewards.files.weights import read_tensors

try:
    import mmdet
    from mmdet.apis import inference_detector, init_detector
except ImportError as error:
    raise RewardError(
        f"mmdetection cannot be used here ({error}): make its own environment as rewards/detectors/"
        "mmdet-requirements.txt says, and serve the reward from there"
    ) from error

CONFIG = ".mim/configs/mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py"


class MmdetDetector:
    """Detects COCO's classes by GenEval's names, image by image."""

    classes = CLASSES

    def __init__(self, model: Any, name: str, min_score: float = 0.3, swap_red_blue: bool = False) -> None:
        self.model = model
        self.name = name + (", red and blue swapped" if swap_red_blue else "")
        self.min_score = min_score
        self.swap_red_blue = swap_red_blue

    @classmethod
    def load(
        cls, source: str | Path = OFFICIAL, device: str = "cpu", min_score: float = 0.3, swap_red_blue: bool = False
    ) -> Self:
        """From `official` or an OpenMMLab checkpoint of the Swin-S model. Raises RewardError."""
        path = official_weights() if source == OFFICIAL else Path(source)
        weights = {canonical(key): tensor for key, tensor in read_tensors(path).items()}
        model = init_detector(str(Path(mmdet.__file__).parent / CONFIG), device=device, palette="coco")
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[1].strip()
            raise RewardError(f"{path} does not fit mmdetection's Mask2Former Swin-S: {reason}") from error
        return cls(model, f"mmdet {mmdet.__version__} {weights_name(path)}", min_score, swap_red_blue)

    @torch.no_grad()
    def detect(self, images: Sequence[UInt8[ndarray, "H W 3"]]) -> list[dict[str, list[Detection]]]:
        """Per image the detections that score more than `min_score` by class name, best first."""
        return [self._detect(image) for image in images]

    def _detect(self, image: UInt8[ndarray, "H W 3"]) -> dict[str, list[Detection]]:
        # mmdetection takes arrays as BGR; whoever passes RGB has swapped red and blue.
        pixels = image if self.swap_red_blue else np.ascontiguousarray(image[..., ::-1])
        found = inference_detector(self.model, pixels).pred_instances.cpu().numpy()
        by_class: dict[str, list[Detection]] = {}
        for row in np.argsort(-found.scores, kind="stable"):
            if found.scores[row] > np.float32(self.min_score):
                one = Detection(found.bboxes[row], float(found.scores[row]), found.masks[row])
                by_class.setdefault(CLASSES[found.labels[row]], []).append(one)
        return by_class
