"""A model from a folder in transformers' format, by its own class; whole, or refused with one sentence."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import logging

from models.errors import ModelError

Model = TypeVar("Model", bound=PreTrainedModel)


def load_whole(kind: type[Model], folder: Path, what: str, dtype: torch.dtype, device: str) -> Model:
    """The model, frozen. Raises ModelError, also for weights that transformers would make up.

    what: what the error calls it.
    """
    logging.disable_progress_bar()
    said = logging.get_verbosity()
    logging.set_verbosity_error()  # its table of what is missing would stand above our sentence
    pretrained: Any = kind.from_pretrained  # typed for a call without a report
    try:
        model, report = pretrained(
            folder,
            dtype=dtype,
            attn_implementation="sdpa",  # a config may name a hub's kernel, which is code
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError, UnpicklingError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{what} in {folder} cannot be read ({reason}): copy it again") from error
    finally:
        logging.set_verbosity(said)
    wrong = sorted(report["missing_keys"]) + sorted(name for name, *_ in report["mismatched_keys"])
    # One behind the config's last: the model would lack its end in silence.
    wrong += sorted(name for name in report["unexpected_keys"] if {"layers", "blocks"} & {*name.split(".")})
    if wrong:
        raise ModelError(
            f"{what} in {folder} and its config.json do not fit: {wrong[0]} is missing, of another shape or of no "
            "layer of the config, so copy it again"
        )
    return model.to(device).eval().requires_grad_(False)
