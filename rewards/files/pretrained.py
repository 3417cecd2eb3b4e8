"""Models in transformers' own format, read whole or not at all."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import logging

from rewards.errors import RewardError
from rewards.files.noted import note_file
from rewards.files.weights import check_plain

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def load_whole(kind: Any, folder: Path, what: str, unused: Collection[str] = ()) -> Any:
    """The float32 model of a folder, from safetensors only, every weight of it but those unused. Raises RewardError.

    kind: its class in transformers; what: a word for it, in errors.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise RewardError(f"{folder / name} does not exist: give a folder with {CONFIG} and {WEIGHTS}")
    logging.disable_progress_bar()
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            check_plain(folder / WEIGHTS, {name: file.get_slice(name).get_dtype() for name in file.keys()})  # noqa: SIM118
        model, report = kind.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32
        )
    except RewardError:
        raise
    except Exception as error:  # what transformers raises of a folder is no narrower
        raise RewardError(f"cannot load {folder} as a {what}: {' '.join(str(error).split())}") from error
    note_file(folder / CONFIG)
    note_file(folder / WEIGHTS)
    missing = set(report["missing_keys"]) - set(unused)
    if wrong := sorted(key for key, *_ in report["mismatched_keys"]) + sorted(missing):
        raise RewardError(f"{folder}: the weights lack {wrong[0]}, or hold it in another shape: copy the model again")
    return model
