"""CLIP models of open_clip: built from a name or a folder, their weights read without running what they hold."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from rewards.errors import RewardError
from rewards.files.noted import note_file
from rewards.files.weights import HUB_ID, fetch_from_hub, read_tensors
from rewards.scorers.tokenizer import ClipTokenizer

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


@dataclass(frozen=True)
class Clip:
    """A model in evaluation mode with its tokenizer and CLIP's evaluation transform of pictures."""

    model: Any
    tokenizer: ClipTokenizer
    transform: Any
    device: torch.device

    @torch.no_grad()
    def encode_images(self, images: Sequence[UInt8[ndarray, "H W 3"]]) -> Float[Tensor, "B D"]:
        """The features of RGB images of any sizes, not normalised, in float32. On CUDA in half precision."""
        pixels = torch.stack([self.transform(Image.fromarray(image)) for image in images])
        with self._half():
            return self.model.encode_image(pixels.to(self.device)).float()

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "B D"]:
        """The features of texts, not normalised, in float32. On CUDA in half precision."""
        with self._half():
            return self.model.encode_text(self.tokenizer(list(texts)).to(self.device)).float()

    @property
    def tokens(self) -> int:
        """That are read of a text."""
        return self.tokenizer.context_length

    def has_more(self, text: str) -> bool:
        return self.tokenizer.has_more(text)

    def similarity(self, images: Sequence[UInt8[ndarray, "H W 3"]], texts: Sequence[str]) -> Float[Tensor, " B"]:
        """The cosine between each image and its text; a text that comes several times is encoded once."""
        distinct = list(dict.fromkeys(texts))
        rows = [distinct.index(text) for text in texts]
        return cosine(self.encode_images(images), self.encode_texts(distinct)[rows])

    def _half(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda")


def cosine(images: Float[Tensor, "B D"], texts: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    return (F.normalize(images, dim=-1) * F.normalize(texts, dim=-1)).sum(-1)


def load_clip(source: str | Path, architecture: str, device: str = "cpu") -> Clip:
    """The weights at `source` in open_clip's `architecture`.

    source: a hub repository or a file (`.safetensors`, `.pt`, `.bin`) that holds the weights; or a folder that holds
        `open_clip_model.safetensors` and its own architecture, `open_clip_config.json`.

    Raises RewardError that names the file, unless the weights fit every tensor.
    """
    path, model = Path(source), None
    if path.is_dir():
        model = _described(path / CONFIG)
        note_file(path / CONFIG)
        architecture, path = str(path / CONFIG), path / WEIGHTS
    elif not path.is_file() and re.fullmatch(HUB_ID, str(source)):
        path = fetch_from_hub(str(source), WEIGHTS)
    tensors = {key.removeprefix("module."): tensor for key, tensor in read_tensors(path).items()}
    if model is None:  # not before there is a file: a random model of such a size takes many seconds
        model = open_clip.CLIP(**open_clip.get_model_config(architecture))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[1].strip()
        raise RewardError(f"{path} does not fit {architecture} ({reason}): give the weights of that model") from error
    return Clip(
        model=model.eval().requires_grad_(False).to(device),
        tokenizer=ClipTokenizer(model.context_length),
        transform=evaluation_transform(model.visual.image_size),
        device=torch.device(device),
    )


def _described(path: Path) -> Any:
    """A random model of the sizes in a folder's config. Raises RewardError."""
    try:
        return open_clip.CLIP(**json.loads(path.read_text(encoding="utf-8"))["model_cfg"])
    except Exception as error:  # what open_clip raises of a config is no narrower
        raise RewardError(f"{path} describes no CLIP ({error!r}): copy it again from where the weights are") from error


def evaluation_transform(size: int | tuple[int, int]) -> Any:
    """CLIP's: the shorter side to `size` (bicubic, antialiased), the centre cut out, OpenAI's mean and deviation."""
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    return open_clip.image_transform(size, is_train=False, mean=mean, std=std)
