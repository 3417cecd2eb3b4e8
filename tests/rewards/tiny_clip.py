"""A random CLIP that every test can afford, in open_clip's folder format."""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
NAME = "t2i-rl-tiny"


def register_tiny_clip(folder: Path) -> str:
    """Make open_clip know the architecture by name; returns the name."""
    path = folder / f"{NAME}.json"
    path.write_text(json.dumps(CONFIG))
    open_clip.add_model_config(path)
    return NAME


def save_tiny_clip(folder: Path) -> Path:
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG)
    with torch.no_grad():  # open_clip's initialisation is nearly flat: every picture would look alike
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(8)
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder
