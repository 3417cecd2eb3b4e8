"""PickScore v1 (arXiv 2305.01569): CLIP ViT-H/14, fine-tuned on what users of Pick-a-Pic picked; about 15..26.

The score is exp(logit scale), about 100, times the cosine between the image and its prompt. Flow-GRPO divides it by
26 and others by 100; here it is as the paper reports it. In float32, as released.

Difference from the released code: texts go through open_clip's tokenizer, which has the same vocabulary; it pads with
another token, behind the end of the text where the causal encoder never looks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor
from transformers import CLIPModel

from rewards.files.pretrained import CONFIG, WEIGHTS, load_whole
from rewards.files.weights import fetch_from_hub
from rewards.scorers.clip import cosine, evaluation_transform
from rewards.scorers.measure import Measure
from rewards.scorers.tokenizer import ClipTokenizer

REPOSITORY = "yuvalkirstain/PickScore_v1"


class PickScore(Measure):
    def __init__(self, model: CLIPModel, name: str, device: str = "cpu") -> None:
        self.model: Any = model.eval().requires_grad_(False)  # transformers types its parts as what they may be set to
        self.model.to(device)
        self.tokenizer = ClipTokenizer(self.model.config.text_config.max_position_embeddings)
        self.tokens = self.tokenizer.context_length
        self.transform = evaluation_transform(self.model.config.vision_config.image_size)
        self.name = name

    @classmethod
    def load(cls, source: str | Path | None = None, device: str = "cpu") -> Self:
        """From a folder that holds `config.json` and `model.safetensors`, or the published one. Raises RewardError."""
        if source:
            folder = Path(source)
        else:
            fetch_from_hub(REPOSITORY, CONFIG)
            folder = fetch_from_hub(REPOSITORY, WEIGHTS).parent
        return cls(
            load_whole(CLIPModel, folder, "CLIP"), f"pickscore ({folder.name if source else REPOSITORY})", device
        )

    def has_more(self, prompt: str) -> bool:
        return self.tokenizer.has_more(prompt)

    def measure(self, images: Sequence[UInt8[ndarray, "H W 3"]], prompts: Sequence[str]) -> Float[Tensor, " B"]:
        device = self.model.device
        pixels = torch.stack([self.transform(Image.fromarray(image)) for image in images])
        distinct = list(dict.fromkeys(prompts))
        texts = self.model.get_text_features(input_ids=self.tokenizer(distinct).to(device)).pooler_output
        features = self.model.get_image_features(pixel_values=pixels.to(device)).pooler_output
        rows = [distinct.index(prompt) for prompt in prompts]
        return self.model.logit_scale.exp() * cosine(features, texts[rows])
