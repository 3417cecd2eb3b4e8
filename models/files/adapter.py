"""The folder of an adapter (`models.lora`): what it holds, as peft names it, and which model it belongs to."""

from pathlib import Path

from models.errors import ModelError
from models.files.config import read_json

ADAPTER_CONFIG = "adapter_config.json"  # of a folder that holds adapters, and names their base
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def base_of(folder: Path) -> str:
    """The model that an adapter's folder names. Raises ModelError."""
    name = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError(f"{folder / ADAPTER_CONFIG} names no base_model_name_or_path: write the base model's there")
    return name


def is_adapter(source: str) -> bool:
    """Whether a folder holds adapters (`models.lora`) instead of a whole model."""
    return (Path(source) / ADAPTER_CONFIG).is_file()
