"""ImageReward (arXiv 2304.05977): how well an image answers its prompt, about -2..2 and unbounded.

BLIP's ViT-L/16 looks at the image; a BERT reads the prompt, attending to what the ViT saw; a linear head makes a number
of its first token. The network is transformers' BLIP: the published checkpoint holds the same weights under the names
of BLIP's first release and is renamed while it is read, its sizes taken from the shapes. In float32, as released.
"""

import re
from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from rewards.errors import RewardError
from rewards.files.noted import note_file
from rewards.files.weights import fetch_from_hub, read_tensors
from rewards.scorers.clip import evaluation_transform
from rewards.scorers.linear_head import grade, linear_head
from rewards.scorers.measure import Measure

REPOSITORY, CHECKPOINT = "THUDM/ImageReward", "ImageReward.pt"
BERT, VOCABULARY = "google-bert/bert-base-uncased", "vocab.txt"
TOKENS = 35  # of a prompt; what is beyond is not read
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the head's numbers, by which the score is normalised
HEAD_WIDTH = 64  # of each attention head, in both networks

VISION, TEXT, HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp."
VISION_NAMES = (  # BLIP's first release -> transformers
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.attn\.", ".self_attn."),
)


class ImageReward(Measure):
    tokens = TOKENS

    def __init__(
        self,
        vision: Any,
        text: Any,
        head: nn.Sequential,
        tokenizer: BertWordPieceTokenizer,
        name: str,
    ) -> None:
        # Any: transformers types neither `to` nor its configurations for what they hold here.
        self.vision, self.text, self.head, self.tokenizer = vision, text, head, tokenizer
        self.transform = evaluation_transform(vision.config.image_size)
        self.name = name

    @classmethod
    def load(cls, source: str | Path | None = None, device: str = "cpu") -> Self:
        """From a folder with `ImageReward.pt` and BERT's `vocab.txt`, or the published ones. Raises RewardError."""
        if source:
            path, vocabulary = Path(source) / CHECKPOINT, Path(source) / VOCABULARY
            if not vocabulary.is_file():
                raise RewardError(
                    f"{vocabulary} does not exist: put {VOCABULARY} of {BERT} beside {CHECKPOINT} "
                    f"(`hf download {BERT} {VOCABULARY} --local-dir {source}`)"
                )
        else:
            path, vocabulary = fetch_from_hub(REPOSITORY, CHECKPOINT), fetch_from_hub(BERT, VOCABULARY)
        note_file(vocabulary)
        weights = read_tensors(path)
        vision, text = vision_model(weights, str(path)), text_model(weights, str(path))
        head = linear_head(_under(HEAD, weights), text.config.hidden_size, str(path))
        tokenizer = BertWordPieceTokenizer(str(vocabulary))
        tokenizer.enable_truncation(TOKENS)
        tokenizer.enable_padding(length=TOKENS)
        return cls(vision.to(device), text.to(device), head.to(device), tokenizer, f"imagereward ({path.name})")

    def has_more(self, prompt: str) -> bool:
        return bool(self.tokenizer.encode(prompt).overflowing)

    def measure(self, images: Sequence[UInt8[ndarray, "H W 3"]], prompts: Sequence[str]) -> Float[Tensor, " B"]:
        device = self.vision.device
        pixels = torch.stack([self.transform(Image.fromarray(image)) for image in images]).to(device)
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.tokenizer.encode_batch(list(prompts))
        found = self.text(
            input_ids=torch.tensor([one.ids for one in read], device=device),
            attention_mask=torch.tensor([one.attention_mask for one in read], device=device),
            encoder_hidden_states=seen,
        ).last_hidden_state[:, 0]
        return (grade(self.head, found) - MEAN) / STD


def _under(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights whose name begins so, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}


def _transformers_name(key: str) -> str:
    for old, new in VISION_NAMES:
        key = re.sub(old, new, key)
    return key


def _layers(weights: Mapping[str, Tensor], pattern: str) -> int:
    return len({found.group(1) for key in weights if (found := re.match(pattern, key))})


def vision_model(weights: Mapping[str, Tensor], source: str) -> Any:
    """The ViT, of the sizes that the checkpoint's tensors have. Raises RewardError for what is not whole."""
    named = {_transformers_name(key): tensor for key, tensor in _under(VISION, weights).items()}
    width, _, patch, _ = _shape(named, "embeddings.patch_embedding.weight", 4, source)
    positions = _shape(named, "embeddings.position_embedding", 3, source)[1]
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=_shape(named, "encoder.layers.0.mlp.fc1.weight", 2, source)[0],
        num_hidden_layers=_layers(named, r"encoder\.layers\.(\d+)\."),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=isqrt(positions - 1) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,  # of BLIP's first release; transformers' own default is another
    )
    return _filled(BlipVisionModel(config), named, source)


def text_model(weights: Mapping[str, Tensor], source: str) -> Any:
    """The BERT with cross-attention, of the sizes that the checkpoint's tensors have. Raises RewardError."""
    named = _under(TEXT, weights)
    words, width = _shape(named, "embeddings.word_embeddings.weight", 2, source)
    config = BlipTextConfig(
        vocab_size=words,
        hidden_size=width,
        encoder_hidden_size=_shape(named, "encoder.layer.0.crossattention.self.key.weight", 2, source)[1],
        intermediate_size=_shape(named, "encoder.layer.0.intermediate.dense.weight", 2, source)[0],
        num_hidden_layers=_layers(named, r"encoder\.layer\.(\d+)\."),
        num_attention_heads=width // HEAD_WIDTH,
        max_position_embeddings=_shape(named, "embeddings.position_embeddings.weight", 2, source)[0],
        is_decoder=True,  # gives it cross-attention; its own attention stays bidirectional when it is called
    )
    return _filled(BlipTextModel(config, add_pooling_layer=False), named, source)


def _shape(named: Mapping[str, Tensor], key: str, axes: int, source: str) -> torch.Size:
    if key not in named or named[key].ndim != axes:
        raise RewardError(f"{source} holds no weights of ImageReward's BLIP for {key}: give {CHECKPOINT}")
    return named[key].shape


def _filled(network: Any, named: Mapping[str, Tensor], source: str) -> Any:
    """The network with all its weights, to be run; the checkpoint may hold more (buffers of older releases)."""
    for key, tensor in network.state_dict().items():
        if key not in named or named[key].shape != tensor.shape:
            raise RewardError(f"{source} holds nothing for {key}, or in another shape: copy the checkpoint again")
    network.load_state_dict({key: named[key] for key in network.state_dict()})
    return network.eval().requires_grad_(False)
