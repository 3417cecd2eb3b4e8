"""A model from a folder in transformers' format, by its own class; whole, or refused with one sentence."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from models.errors import ModelError
from models.files.checkpoint import Weights, open_weights
from models.files.config import check_not_quantized, read_json
from models.files.tensors import plain_weights

Model = TypeVar("Model", bound=PreTrainedModel)

ATTENTION = "sdpa"  # a config may name a hub's kernel, which is code
REPEATED = ("num_layers", "num_hidden_layers", "depth")  # how often a config's section repeats a part


def load_whole(
    kind: type[Model], folder: Path, what: str, never_read: re.Pattern[str], dtype: torch.dtype, device: str
) -> Model:
    """The model, frozen. Raises ModelError, also for weights that transformers would make up or pass over.

    what: what the error calls it.
    never_read: matches the names of tensors that the model has no place for and does without.
    """
    weights = plain_weights(folder, open_weights(folder), never_read)
    check_sizes(kind, folder, what, weights)
    logging.disable_progress_bar()
    said = logging.get_verbosity()
    logging.set_verbosity_error()  # its table of what is missing would stand above our sentence
    pretrained: Any = kind.from_pretrained  # typed for a call without a report
    try:
        model, report = pretrained(
            folder,
            dtype=dtype,
            attn_implementation=ATTENTION,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            local_files_only=True,
        )
    except Exception as error:  # what transformers raises of a folder is no narrower
        reason = " ".join(str(error).split())
        raise ModelError(f"{what} in {folder} cannot be read ({reason}): copy it again") from error
    finally:
        logging.set_verbosity(said)
    if wrong := sorted(report["missing_keys"]) + sorted(name for name, *_ in report["mismatched_keys"]):
        raise misfit(folder, what, f"{wrong[0]} is missing or of another shape")
    # One behind the config's last layer, too: the model would lack its end in silence.
    if strange := sorted(name for name in report["unexpected_keys"] if not never_read.search(name)):
        raise misfit(folder, what, f"there is no place for {strange[0]}")
    return model.to(device).eval().requires_grad_(False)


def check_sizes(kind: type[PreTrainedModel], folder: Path, what: str, weights: Weights) -> None:
    """The config's sizes are those of some weights, before anything of those sizes is made. Raises ModelError."""
    path = folder / "config.json"
    said = read_json(path)
    check_not_quantized(path, said)
    if any(type(times) is int and times > len(weights) for times in repeated(said)):
        raise misfit(folder, what, "it asks for more layers than there are weights")
    try:
        made: Any = kind.config_class
        config = made.from_pretrained(folder, local_files_only=True)
        config._attn_implementation = ATTENTION
        with torch.device("meta"):
            wanted = kind(config).state_dict()
    except Exception as error:  # what transformers raises of a config is no narrower
        reason = " ".join(str(error).split())
        raise ModelError(f"{path} does not describe {what} ({reason}): copy it again") from error
    shapes = {stored.shape for stored in weights.values()}
    if strange := [name for name, tensor in wanted.items() if tuple(tensor.shape) not in shapes]:
        raise misfit(folder, what, f"{strange[0]} is missing or of another shape")


def repeated(config: Mapping[str, Any]) -> Iterator[Any]:
    """How often a config and its sections say that a part is repeated."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from repeated(value)
        elif name in REPEATED:
            yield value


def misfit(folder: Path, what: str, reason: str) -> ModelError:
    return ModelError(f"{what} in {folder} and its config.json do not fit: {reason}, so copy it again")
