"""How near each pixel of a picture is, by DPT-hybrid MiDaS through transformers."""

from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from transformers import AutoImageProcessor, DPTForDepthEstimation

from eval.compbench.pretrained import pretrained
from eval.compbench.spatial import quantised
from eval.records.provenance import labelled

SOURCE = "Intel/dpt-hybrid-midas"


class Dpt:
    def __init__(self, model: Any, processor: Any, name: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.name = name

    @classmethod
    def load(cls, source: str | Path = SOURCE, device: str = "cpu") -> Self:
        """From a folder or hub repository in transformers' format. Raises RewardError."""
        model, processor = pretrained("a depth model", source, DPTForDepthEstimation, AutoImageProcessor)
        return cls(model.to(device), processor, f"DPT ({labelled(source)})")

    @torch.no_grad()
    def map(self, image: UInt8[ndarray, "H W 3"]) -> Float[ndarray, "H W"]:
        """In 0..1, large where near, in steps of 1/255."""
        pixels = self.processor(images=image, return_tensors="pt").pixel_values.to(self.model.device)
        depth = self.model(pixel_values=pixels).predicted_depth
        size = image.shape[:2]
        scaled = torch.nn.functional.interpolate(depth[:, None].float(), size, mode="bicubic", align_corners=False)
        return quantised(scaled[0, 0].cpu().numpy())
