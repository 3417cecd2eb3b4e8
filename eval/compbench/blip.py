"""BLIP's answer to yes-or-no questions about a picture, as probabilities: what attribute binding is scored by.

The benchmark runs the authors' own code at 480 pixels. transformers' copy of the weights was saved for 384, so its
position embeddings are interpolated: expect differences of about 1e-3.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import open_clip
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, BlipForQuestionAnswering

from eval.compbench.attributes import as_asked, probability_of_yes
from eval.compbench.pretrained import pretrained
from eval.records.provenance import labelled

SOURCE = "Salesforce/blip-vqa-capfilt-large"
SIDE = 480  # pixels
TOKENS = 35  # of a question, at most


class Blip:
    def __init__(self, model: Any, tokenizer: Any, name: str, side: int = SIDE) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.side = side
        self.yes, self.no = tokenizer.convert_tokens_to_ids(["yes", "no"])

    @classmethod
    def load(cls, source: str | Path = SOURCE, device: str = "cpu") -> Self:
        """From a folder or hub repository in transformers' format. Raises RewardError."""
        model, tokenizer = pretrained("BLIP", source, BlipForQuestionAnswering, AutoTokenizer)
        return cls(model.to(device), tokenizer, f"BLIP VQA ({labelled(source)}, {SIDE} pixels)")

    def pixels(self, image: UInt8[ndarray, "H W 3"]) -> Float[Tensor, "3 side side"]:
        """The picture as a square (bicubic), by CLIP's mean and deviation."""
        square = Image.fromarray(image).resize((self.side, self.side), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255
        mean, std = (
            torch.tensor(each)[:, None, None] for each in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        )
        return (values - mean) / std

    @torch.no_grad()
    def answers(self, image: UInt8[ndarray, "H W 3"], questions: Sequence[str]) -> list[float]:
        """P(yes) of every question: what the decoder says first, if it can say yes and no only."""
        if not questions:
            return []
        device = self.model.device
        seen = self.model.vision_model(
            pixel_values=self.pixels(image)[None].to(device), interpolate_pos_encoding=True
        ).last_hidden_state.expand(len(questions), -1, -1)
        asked = self.tokenizer(
            [as_asked(question) for question in questions],
            padding=True,
            truncation=True,
            max_length=TOKENS,
            return_tensors="pt",
        ).to(device)
        read = self.model.text_encoder(
            input_ids=asked.input_ids, attention_mask=asked.attention_mask, encoder_hidden_states=seen, return_dict=True
        ).last_hidden_state
        first = torch.full((len(questions), 1), self.model.decoder_start_token_id, device=device)
        logits = self.model.text_decoder(
            input_ids=first,
            encoder_hidden_states=read,
            encoder_attention_mask=asked.attention_mask,
            return_dict=True,
        ).logits[:, -1]
        return [probability_of_yes(float(row[self.yes]), float(row[self.no])) for row in logits.float()]
