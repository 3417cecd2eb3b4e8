"""Tensors from files that others wrote: nothing in them is executed, and what is missing or misshapen is named."""

import argparse
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.errors import ModelError


def read_plain(path: Path) -> Any:
    """What a safetensors or torch file holds: tensors and plain containers of them, on the CPU.

    Raises ModelError for a file that is torn or holds more than plain data.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Training scripts store their arguments beside the weights; a Namespace only holds attributes.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} is torn, or holds code, which is never run: copy it again, or save its tensors alone"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ModelError(f"{path} is torn or no file of weights ({reason}): copy it again") from error


def read_tensors(path: Path, *keys: str) -> dict[str, Tensor]:
    """The tensors by name of a safetensors file, or of a torch file's state dict under the nested `keys`.

    Raises ModelError for a file that `read_plain` refuses or that has no such state dict.
    """
    found = read_plain(path)
    for depth, key in enumerate(keys):
        if not isinstance(found, dict) or key not in found:
            raise ModelError(
                f"{path} has nothing under {'.'.join(keys[: depth + 1])}: it is another kind of checkpoint"
            )
        found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"{path} does not hold tensors by name: it is another kind of checkpoint")
    return found


class Shaped(Protocol):
    """A tensor, or one that is still on disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def check_tensors(
    source: Path, found: Mapping[str, Shaped], wanted: Mapping[str, Tensor], names: Callable[[str], str] = str
) -> None:
    """Every wanted tensor is there in its shape. Raises ModelError with the first that is not.

    names: what a wanted one is called in the files.
    """
    if missing := sorted(wanted.keys() - found.keys()):
        raise ModelError(
            f"{source} lacks {len(missing)} weights, such as {names(missing[0])}: copy the checkpoint again"
        )
    if wrong := [name for name, tensor in wanted.items() if found[name].shape != tensor.shape]:
        name = wrong[0]
        raise ModelError(
            f"{source}: {names(name)} is {tuple(found[name].shape)}, but by config and other weights it should be "
            f"{tuple(wanted[name].shape)} ({len(wrong)} such): they do not fit, so copy config and weights again"
        )


def check_no_others(source: Path, found: Mapping[str, Shaped], wanted: Mapping[str, Tensor]) -> None:
    """Nothing else is there. Raises ModelError with the first that is."""
    if unknown := sorted(found.keys() - wanted.keys()):
        raise ModelError(
            f"{source} has {len(unknown)} weights that this model has no place for, such as {unknown[0]}: "
            "it is another variant"
        )
