"""Which model with a name a checkpoint has the sizes of: by its own name or source, or by what lies in its folder.

Nothing here imports torch, and nothing is downloaded: of the hub's repositories, those in its cache are looked into.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.files.config import read_json
from models.registry import FAMILIES, HUB_ID, MODEL_TYPES, MODELS, find

JANUS = {(4, 128): "tiny", (24, 2048): "janus-pro-1b", (30, 4096): "janus-pro-7b"}  # by layers and width
LAYERS, WIDTH = 32, 4096  # of a Llama whose config leaves them out
LLAMAGEN_LAYERS = 36
FILES = {  # by the names of released files
    "t2i_XL_stage1_256.pt": "llamagen-256",
    "t2i_XL_stage2_512.pt": "llamagen-512",
    "star_*_256-*.pth": "star-256",
    "star_*_512-*.pth": "star-512",
    "star_*_1024_*.pth": "star-1024",
}


def kin(name_or_path: str) -> str | None:
    """The name of `MODELS` whose sizes a model has; None where nothing here says so.

    Raises ModelError for what is no model at all, and for a config.json that cannot be read.
    """
    entry = find(name_or_path)
    if entry.family in FAMILIES:
        return entry.like or entry.name
    path = _here(entry.source)
    if path is None or entry.family is not None:  # one of somebody's own
        return None
    folder = path if path.is_dir() else path.parent
    if (folder / "config.json").is_file() and (found := _by_config(read_json(folder / "config.json"))):
        return found
    files = [path] if path.is_file() else [*folder.iterdir()]
    return next((name for pattern, name in FILES.items() if any(file.match(pattern) for file in files)), None)


def _here(source: str) -> Path | None:
    """A path here, or where the hub's cache holds the config of a repository."""
    if Path(source).exists():
        return Path(source)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source, "config.json") if re.fullmatch(HUB_ID, source) else None
    return Path(found) if isinstance(found, str) else None


def _by_config(config: Mapping[str, Any]) -> str | None:
    family = MODEL_TYPES.get(str(config.get("model_type")))
    if family == "janus":
        text = config.get("text_config") or config.get("language_config")
        sizes = text if isinstance(text, dict) else {}
        return JANUS.get((sizes.get("num_hidden_layers", LAYERS), sizes.get("hidden_size", WIDTH)))
    if family == "star":
        scales = config.get("scales")
    elif family == "llamagen" and config.get("n_layer", LLAMAGEN_LAYERS) == LLAMAGEN_LAYERS:
        scales = [side for side in (16, 32) if side**2 == config.get("block_size")]
    else:
        return None
    same = (name for name, one in MODELS.items() if one.family == family and [*(one.scales or ())] == scales)
    return next(same, None)
