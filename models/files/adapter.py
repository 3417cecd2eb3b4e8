"""The folder of an adapter (`models.lora`): what it holds, as peft names it, and which model it belongs to.

peft's config names the base; a file of ours beside it holds the SHA-256 of what that was read from
(`models.files.reading`), for by name alone other weights would be taken for it.
"""

import json
from pathlib import Path

from models.errors import ModelError
from models.files.config import read_json

ADAPTER_CONFIG = "adapter_config.json"  # of a folder that holds adapters, and names their base
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE = "base.json"


def base_of(folder: Path) -> str:
    """The model that an adapter's folder names. Raises ModelError."""
    name = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError(f"{folder / ADAPTER_CONFIG} names no base_model_name_or_path: write the base model's there")
    return name


def write_base(folder: Path, digest: str) -> None:
    (folder / BASE).write_text(json.dumps({"sha256": digest}) + "\n", encoding="utf-8")


def check_base(folder: Path, digest: str) -> None:
    """Raise ModelError unless the base is the one that the adapters were trained on, as far as the folder says."""
    path = folder / BASE
    before = read_json(path).get("sha256") if path.is_file() else digest
    if before != digest:
        raise ModelError(
            f"{folder} was trained on other weights than its base {base_of(folder)} holds now (SHA-256 "
            f"{str(before)[:8]}..., not {digest[:8]}...): put them back"
        )


def is_adapter(source: str) -> bool:
    """Whether a folder holds adapters (`models.lora`) instead of a whole model."""
    return (Path(source) / ADAPTER_CONFIG).is_file()
