"""VAR's multi-scale image tokenizer (arXiv:2404.02905), which STAR decodes with; float32 throughout.

An image is a sum over scales: the codes of a scale, enlarged and smoothed by a convolution, are added to a
feature map of the last scale's size. The convolutional networks are transformers' own (Janus's are the
same); this file has the quantiser and the names that VAR's checkpoint `vae_ch160v4096z32.pth` uses.

Legend: `R` images, `p` side of a scale, `M` side of the last one, `E` code dimension.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEDecoder, JanusVQVAEEncoder

from models.errors import ModelError
from models.files.tensors import check_tensors, plain_weights

CONVOLUTIONS = 4  # shared by all scales
UNUSED = re.compile(r"^quantize\.ema_vocab_hit_SV$")  # a training counter


class StarVae(nn.Module):
    """Encoder, decoder and multi-scale codes.

    scales: sides of the token maps, the last one that of the feature map.
    sizes: of the networks; `embed_dim` and `latent_channels` are the code dimension.
    """

    def __init__(self, scales: Sequence[int], sizes: JanusVQVAEConfig) -> None:
        super().__init__()
        width = sizes.embed_dim
        self.scales = tuple(scales)
        self.encoder = JanusVQVAEEncoder(sizes)
        self.decoder = JanusVQVAEDecoder(sizes)
        self.quant_conv = nn.Conv2d(width, width, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(width, width, 3, padding=1)
        self.codebook = nn.Embedding(sizes.num_embeddings, width)
        self.smoothing = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(CONVOLUTIONS))
        self.shares = smoothing_of_scale(len(self.scales))
        self.image_side = self.scales[-1] * 2 ** (len(sizes.channel_multiplier) - 1)

    @classmethod
    def from_tensors(cls, path: Path, weights: Mapping[str, Tensor], scales: Sequence[int]) -> "StarVae":
        """From a state dict in VAR's names, by whose shapes the networks are sized. Raises ModelError."""
        weights = {name: tensor.float() for name, tensor in plain_weights(path, weights, UNUSED).items()}
        try:
            with torch.device("meta"):
                vae = cls(scales, sizes_of(path, weights))
        except ModelError:
            raise
        except Exception as error:  # what transformers raises of sizes is no narrower
            reason = " ".join(str(error).split())
            raise ModelError(f"the shapes in {path} make no image tokenizer ({reason}): copy it again") from error
        pieces = vae.names()
        wanted = {name: torch.cat([vae.get_parameter(part) for part in parts]) for name, parts in pieces.items()}
        check_tensors(path, weights, wanted)
        split = {
            part: tensor
            for name, parts in pieces.items()
            for part, tensor in zip(parts, weights[name].chunk(len(parts)), strict=True)
        }
        vae.load_state_dict(split, assign=True)
        return vae.eval().requires_grad_(False)

    def to_tensors(self) -> dict[str, Tensor]:
        """The state dict in VAR's names."""
        own = self.state_dict()
        return {name: torch.cat([own[part] for part in parts]) for name, parts in self.names().items()}

    def names(self) -> dict[str, list[str]]:
        """VAR's name of each tensor, and ours of its parts: VAR's attention has q, k and v in one."""
        finest = len(self.decoder.up) - 1
        names: dict[str, list[str]] = {}
        for part in self.state_dict():
            # VAR numbers levels from the finest, transformers' decoder in the order in which they run.
            name = re.sub(r"^decoder\.up\.(\d+)", lambda level: f"decoder.up.{finest - int(level[1])}", part)
            name = re.sub(r"(attn_1|attn\.\d+)\.[qkv]\.", r"\1.qkv.", name)
            name = name.replace("codebook.", "quantize.embedding.")
            name = name.replace("smoothing.", "quantize.quant_resi.qresi_ls.")
            names.setdefault(name, []).append(part)
        return names

    def enlarge(self, codes: Float[Tensor, "R E p p"], scale: int) -> Float[Tensor, "R E M M"]:
        """What a scale's codes add to the feature map: bicubic enlargement, then half of it smoothed."""
        side = self.scales[-1]
        if codes.shape[-1] != side:
            codes = F.interpolate(codes, size=(side, side), mode="bicubic")
        return codes / 2 + self.smoothing[self.shares[scale]](codes) / 2

    def contribution(self, tokens: Int[Tensor, "R n"], scale: int) -> Float[Tensor, "R E M M"]:
        """What the tokens of a scale add to the feature map."""
        side = self.scales[scale]
        return self.enlarge(self.codebook(tokens).mT.unflatten(-1, (side, side)), scale)

    def reduced(self, features: Float[Tensor, "R E M M"], scale: int) -> Float[Tensor, "R E p p"]:
        """The feature map at a scale's size: means over areas."""
        side = self.scales[scale]
        return F.interpolate(features, size=(side, side), mode="area")

    def features(self, tokens: Int[Tensor, "R N"]) -> Float[Tensor, "S R E M M"]:
        """The feature map after each scale."""
        parts = tokens.split([side**2 for side in self.scales], dim=1)
        return torch.stack([self.contribution(part, scale) for scale, part in enumerate(parts)]).cumsum(0)

    def inputs(self, tokens: Int[Tensor, "R N"]) -> Float[Tensor, "R N-1 E"]:
        """What the transformer reads at every scale but the first: the feature map so far, at that scale's size."""
        grown = self.features(tokens)[:-1]
        read = [self.reduced(features, scale).flatten(2).mT for scale, features in enumerate(grown, start=1)]
        return torch.cat(read, 1)

    def pixels(self, features: Float[Tensor, "R E M M"]) -> Float[Tensor, "R 3 H W"]:
        """The image of a feature map, in [0, 1]."""
        return (self.decoder(self.post_quant_conv(features)).clamp(-1, 1) + 1) / 2

    def encode(self, images: Float[Tensor, "R 3 H W"]) -> Int[Tensor, "R N"]:
        """Tokens of images in [-1, 1]: at each scale the nearest codes of what the earlier ones left over."""
        rest, tokens = self.quant_conv(self.encoder(images)), []
        for scale in range(len(self.scales)):
            vectors = self.reduced(rest, scale).flatten(2).mT
            distance = vectors.square().sum(-1, keepdim=True) + self.codebook.weight.square().sum(-1)
            tokens.append((distance - 2 * vectors @ self.codebook.weight.T).argmin(-1))
            rest = rest - self.contribution(tokens[-1], scale)
        return torch.cat(tokens, 1)


def smoothing_of_scale(scales: int) -> list[int]:
    """Which convolution each scale uses: the one whose tick is nearest to s / (S - 1).

    Ten scales have exact ties (2/9 and 7/9), which rounding decides: the expression is VAR's, to the letter.
    """
    ticks = np.linspace(1 / 3 / CONVOLUTIONS, 1 - 1 / 3 / CONVOLUTIONS, CONVOLUTIONS)
    return [int(np.abs(ticks - scale / max(scales - 1, 1)).argmin()) for scale in range(scales)]


def sizes_of(path: Path, weights: Mapping[str, Tensor]) -> JanusVQVAEConfig:
    """The sizes of the networks, from the shapes of VAR's tensors. Raises ModelError where those to read are absent."""

    def channels(name: str) -> int:
        if name not in weights or not weights[name].ndim:
            raise ModelError(f"{path} lacks {name}: it is not VAR's image tokenizer")
        return weights[name].shape[0]

    def count(pattern: str) -> int:
        return len({found[1] for name in weights if (found := re.match(pattern, name))})

    base, width = channels("decoder.norm_out.weight"), channels("quant_conv.weight")
    levels = range(count(r"decoder\.up\.(\d+)\."))
    return JanusVQVAEConfig(
        embed_dim=width,
        latent_channels=width,
        num_embeddings=channels("quantize.embedding.weight"),
        base_channels=base,
        channel_multiplier=[channels(f"decoder.up.{level}.block.0.conv1.weight") // base for level in levels],
        num_res_blocks=count(r"decoder\.up\.0\.block\.(\d+)\.") - 1,
        double_latent=False,
    )
