"""OWLv2 through transformers: finds the words that a prompt asks for. A substitute for UniDet, not its equal.

UniDet has no maintained port, so this is what runs without its environment. Its confidences and what it takes for one
object are others: scores are not comparable with published ones, and are labelled so wherever they stand.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray
from transformers import AutoProcessor, Owlv2ForObjectDetection

from eval.compbench.boxes import Labelled
from eval.compbench.pretrained import pretrained
from eval.records.provenance import labelled

SOURCE = "google/owlv2-base-patch16-ensemble"
LOWEST = 0.2  # of a confidence; our choice


class Owlv2:
    vocabulary = None

    def __init__(self, model: Any, processor: Any, name: str, lowest: float = LOWEST) -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.name = f"OWLv2 ({name}), a substitute for UniDet: not comparable with published scores"
        self.lowest = lowest

    @classmethod
    def load(cls, source: str | Path = SOURCE, device: str = "cpu") -> Self:
        """From a folder or hub repository in transformers' format. Raises RewardError."""
        model, processor = pretrained("OWLv2", source, Owlv2ForObjectDetection, AutoProcessor)
        return cls(model.to(device), processor, labelled(source))

    def detect(self, images: Sequence[UInt8[ndarray, "H W 3"]], words: Sequence[Sequence[str]]) -> list[list[Labelled]]:
        """Per image its objects, best first, labelled with the word that found them."""
        return [self._detect(image, list(dict.fromkeys(asked))) for image, asked in zip(images, words, strict=True)]

    @torch.no_grad()
    def _detect(self, image: UInt8[ndarray, "H W 3"], words: Sequence[str]) -> list[Labelled]:
        if not words:
            return []
        texts = [[f"a photo of a {word}" for word in words]]
        inputs = self.processor(
            text=texts, images=image, padding="max_length", truncation=True, return_tensors="pt"
        ).to(self.model.device)
        # The picture is padded to a square below and on the right: boxes are parts of that square.
        side = max(image.shape[:2])
        found = self.processor.image_processor.post_process_object_detection(
            self.model(**inputs), threshold=self.lowest, target_sizes=torch.tensor([[side, side]])
        )[0]
        order = torch.argsort(found["scores"], descending=True, stable=True).tolist()
        height, width = image.shape[:2]
        boxes = found["boxes"].cpu().numpy().clip(0, np.array([width, height, width, height]))
        return [Labelled(words[int(found["labels"][row])], boxes[row], float(found["scores"][row])) for row in order]
