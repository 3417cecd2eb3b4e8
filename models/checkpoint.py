"""What must hold of a checkpoint in transformers' format before it is used.

A folder that is torn, incomplete or of another shape than its config says is refused with one sentence,
where transformers would fill the gap with random weights.
"""

import json
from pathlib import Path
from typing import Any

from models.errors import ModelError


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a checkpoint folder that has its tokenizer and weights that can be opened. Raises ModelError."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{path} does not exist: point to a folder in transformers' format, with config and weights")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error}): copy the checkpoint again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not an object: copy the checkpoint again")
    if not (folder / "tokenizer_config.json").is_file():
        raise ModelError(f"{folder / 'tokenizer_config.json'} does not exist: copy the tokenizer beside the weights")
    _check_weights(folder)
    return config


def _check_weights(folder: Path) -> None:
    """Every safetensors file can be opened; opening reads the header and compares it with the file's length."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} is not an index of weights ({error!r}): copy the checkpoint again") from error
    for name in names:
        path = folder / name
        if not path.is_file():
            raise ModelError(f"{path} does not exist: copy the checkpoint again, or convert its weights to safetensors")
        try:
            with safe_open(path, framework="numpy"):
                pass
        except SafetensorError as error:
            raise ModelError(f"{path} is torn or no safetensors file ({error}): copy it again") from error


def check_report(source: str, report: dict[str, Any]) -> None:
    """No tensor is absent or of another shape than the config wants."""
    if wrong := sorted(report["mismatched_keys"]):
        name, found, wanted = wrong[0]
        raise ModelError(
            f"{source}: config.json and the weights do not fit: {name} is {tuple(found)} in the checkpoint and "
            f"{tuple(wanted)} by the config ({len(wrong)} such): set the config's sizes and grid to the checkpoint's"
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{source} lacks {len(missing)} weights, such as {missing[0]}: copy the checkpoint again")
