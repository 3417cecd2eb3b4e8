"""The VQ-16 image tokenizer of LlamaGen and Janus in its original key names, on transformers' `JanusVQVAE`.

Sizes are read from the tensors. Decoding looks up unit-length codebook rows; `JanusVQVAE.encode`, which does
not normalise, is not the original's encoder and is not used here.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from models.errors import ModelError
from models.files.tensors import check_tensors

# Original part of a key, transformers' part.
RENAMED = (
    ("encoder.conv_blocks.", "encoder.down."),
    ("decoder.conv_blocks.", "decoder.up."),
    (".res.", ".block."),
    (".mid.0.", ".mid.block_1."),
    (".mid.1.", ".mid.attn_1."),
    (".mid.2.", ".mid.block_2."),
)
TRAINING_COUNTER = re.compile(r"^quantize\.codebook_used$")


def load_vq(weights: Mapping[str, Tensor], side: int, where: Path) -> JanusVQVAE:
    """The tokenizer of a `side` x `side` grid, frozen, in float32. Raises ModelError, naming the file and the key."""
    weights = {name: tensor.float() for name, tensor in weights.items()}
    try:
        config = infer_config(weights, side)
        with torch.device("meta"):
            vq = JanusVQVAE(config)
    except KeyError as error:
        raise ModelError(f"{where} lacks the weight {error.args[0]}: copy the image tokenizer again") from error
    except Exception as error:  # what transformers raises of sizes is no narrower
        reason = " ".join(str(error).split())
        raise ModelError(f"the shapes in {where} make no image tokenizer ({reason}): copy it again") from error
    expected = original_weights(vq)
    check_tensors(where, weights, expected)
    vq.load_state_dict({_to_transformers(name): weights[name] for name in expected}, assign=True)
    return vq.eval().requires_grad_(False)


def original_weights(vq: JanusVQVAE) -> dict[str, Tensor]:
    """The tensors in the original key names."""
    named = {}
    for name, tensor in vq.state_dict().items():
        for original, ours in RENAMED:
            name = name.replace(ours, original)
        named[name] = tensor
    return named


def _to_transformers(name: str) -> str:
    for original, ours in RENAMED:
        name = name.replace(original, ours)
    return name


def infer_config(weights: Mapping[str, Tensor], side: int) -> JanusVQVAEConfig:
    """From the shapes. Raises KeyError with the name of a weight that is needed for it and missing."""
    base, image = weights["encoder.conv_in.weight"].shape[:2]
    codes, code_width = weights["quantize.embedding.weight"].shape
    levels = count_numbered(weights, "encoder.conv_blocks.")
    return JanusVQVAEConfig(
        embed_dim=code_width,
        num_embeddings=codes,
        latent_channels=weights["quant_conv.weight"].shape[1],
        in_channels=image,
        out_channels=weights["decoder.conv_out.weight"].shape[0],
        base_channels=base,
        channel_multiplier=[
            weights[f"encoder.conv_blocks.{level}.res.0.conv2.weight"].shape[0] // base for level in range(levels)
        ],
        num_res_blocks=count_numbered(weights, "encoder.conv_blocks.0.res."),
        num_patches=side,
    )


def count_numbered(weights: Iterable[str], prefix: str) -> int:
    """How many list items the keys name after the prefix; a gap between their numbers is found by who asks for all."""
    return len({match[1] for name in weights if (match := re.match(rf"{re.escape(prefix)}(\d+)\.", name))})


def pixels_per_token(weights: Mapping[str, Tensor]) -> int:
    """The side of the image patch that one token stands for."""
    return 2 ** (count_numbered(weights, "encoder.conv_blocks.") - 1)
