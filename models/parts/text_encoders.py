"""Text encoders and their tokenizers from folders in transformers' format; whole, or refused with one sentence."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from models.errors import ModelError

Encoder = TypeVar("Encoder", bound=PreTrainedModel)


def load_encoder(kind: type[Encoder], folder: Path, dtype: torch.dtype, device: str) -> Encoder:
    """The encoder, frozen. Raises ModelError, also for weights that transformers would make up."""
    logging.disable_progress_bar()
    said = logging.get_verbosity()
    logging.set_verbosity_error()  # its table of what is missing would stand above our sentence
    pretrained: Any = kind.from_pretrained  # typed for a call without a report
    try:
        encoder, report = pretrained(
            folder,
            dtype=dtype,
            attn_implementation="sdpa",  # a config may name a hub's kernel, which is code
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError, UnpicklingError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"the text encoder in {folder} cannot be read ({reason}): copy it again") from error
    finally:
        logging.set_verbosity(said)
    if wrong := sorted(report["missing_keys"]) + sorted(name for name, *_ in report["mismatched_keys"]):
        raise ModelError(
            f"the text encoder in {folder} and its config.json do not fit: {wrong[0]} is missing or of another shape, "
            "so copy it again"
        )
    return encoder.to(device).eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer; no code that comes with it is run. Raises ModelError."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"the tokenizer in {folder} cannot be read ({reason}): copy it again") from error
