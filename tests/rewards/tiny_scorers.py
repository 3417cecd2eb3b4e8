"""Random checkpoints of the scorers, in the formats of the published ones, that every test can afford."""

from pathlib import Path

import open_clip
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from rewards.scorers.imagereward import HEAD_WIDTH
from tests.parity.golden import DEFAULT
from tests.rewards.tiny_clip import CONFIG, save_tiny_clip

BERT_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "red", "dog", "cat", "two", "##s", ",")


def save_checkpoint(folder: Path) -> Path:
    """A CLIP as HPSv2's checkpoints hold it, for the architecture of `tiny_clip`."""
    weights = load_file(save_tiny_clip(folder / "clip") / "open_clip_model.safetensors")
    path = folder / "HPS_tiny.pt"
    torch.save({"epoch": 1, "state_dict": weights}, path)
    return path


def linear_layers(width: int, seed: int) -> dict[str, Tensor]:
    """A head's layers with the numbers that its dropout leaves free."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [width, 12, 8, 6, 4, 1]
    return {
        f"layers.{number}.{leaf}": torch.randn(shape, generator=generator) / sizes[row] ** 0.5
        for row, number in enumerate((0, 2, 4, 6, 7))
        for leaf, shape in (("weight", (sizes[row + 1], sizes[row])), ("bias", (sizes[row + 1],)))
    }


def save_head(path: Path) -> Path:
    torch.save(linear_layers(CONFIG["embed_dim"], 1), path)
    return path


def save_pickscore(folder: Path) -> Path:
    torch.manual_seed(2)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vocabulary = len(open_clip.SimpleTokenizer().encoder)
    ends = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1}
    model = CLIPModel(
        CLIPConfig(
            text_config=sizes | ends | {"vocab_size": vocabulary, "max_position_embeddings": 77},
            vision_config=sizes | {"image_size": 32, "patch_size": 8},
            projection_dim=12,
        )
    )
    _spread(model)
    model.save_pretrained(folder)
    return folder


def save_imagereward(folder: Path) -> Path:
    """A checkpoint under the names of BLIP's first release, with a buffer that older releases saved."""
    generator = torch.Generator().manual_seed(3)
    wide, deep, words = HEAD_WIDTH * 2, HEAD_WIDTH, len(BERT_WORDS)
    weights: dict[str, Tensor] = {"blip.text_encoder.embeddings.position_ids": torch.arange(40)[None]}

    def fill(stem: str, *shape: int, norm: bool = False) -> None:
        scale = 0.3 if norm else 2 / shape[-1] ** 0.5
        weights[f"{stem}.weight"] = scale * torch.randn(shape, generator=generator) + float(norm)
        weights[f"{stem}.bias"] = 0.3 * torch.randn(shape[0], generator=generator)

    vision = "blip.visual_encoder."
    weights[f"{vision}cls_token"] = torch.randn(1, 1, wide, generator=generator)
    weights[f"{vision}pos_embed"] = torch.randn(1, 17, wide, generator=generator)
    weights[f"{vision}patch_embed.proj.weight"] = torch.randn(wide, 3, 8, 8, generator=generator) / 8
    weights[f"{vision}patch_embed.proj.bias"] = torch.randn(wide, generator=generator)
    for layer in range(2):
        stem = f"{vision}blocks.{layer}."
        fill(stem + "norm1", wide, norm=True)
        fill(stem + "norm2", wide, norm=True)
        fill(stem + "attn.qkv", 3 * wide, wide)
        fill(stem + "attn.proj", wide, wide)
        fill(stem + "mlp.fc1", 96, wide)
        fill(stem + "mlp.fc2", wide, 96)
    fill(f"{vision}norm", wide, norm=True)

    text = "blip.text_encoder."
    weights[f"{text}embeddings.word_embeddings.weight"] = torch.randn(words, deep, generator=generator)
    weights[f"{text}embeddings.position_embeddings.weight"] = torch.randn(40, deep, generator=generator)
    fill(f"{text}embeddings.LayerNorm", deep, norm=True)
    for layer in range(2):
        stem = f"{text}encoder.layer.{layer}."
        for attention, seen in (("attention", deep), ("crossattention", wide)):
            fill(f"{stem}{attention}.self.query", deep, deep)
            fill(f"{stem}{attention}.self.key", deep, seen)
            fill(f"{stem}{attention}.self.value", deep, seen)
            fill(f"{stem}{attention}.output.dense", deep, deep)
            fill(f"{stem}{attention}.output.LayerNorm", deep, norm=True)
        fill(f"{stem}intermediate.dense", 80, deep)
        fill(f"{stem}output.dense", deep, 80)
        fill(f"{stem}output.LayerNorm", deep, norm=True)
    weights |= {f"mlp.{key}": tensor for key, tensor in linear_layers(deep, 4).items()}
    folder.mkdir()
    torch.save(weights, folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(BERT_WORDS))
    return folder


def _spread(model: nn.Module) -> None:
    """Away from an initialisation under which every picture looks alike."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(20)


def save_detector(path: Path) -> Path:
    """GenEval's detector in little, by OpenMMLab's names: surer of classes and masks than random weights are.

    So something passes GenEval's thresholds: in most pictures bottles, in some a baseball bat or a computer mouse.
    """
    surer = {".cls_embed.": 12, ".mask_embed.4.": 20}
    weights = load_file(DEFAULT / "mask2former" / "weights.safetensors")
    scales = {name: next((scale for part, scale in surer.items() if part in name), 1) for name in weights}
    save_file({name: scales[name] * value for name, value in weights.items()}, path)
    return path
