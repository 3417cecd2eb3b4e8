"""Tensors from files that others wrote: nothing in them is executed; each is used, ignored by name, or refused."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.errors import ModelError
from models.files.reading import note


def read_plain(path: Path) -> Any:
    """What a safetensors or torch file holds: tensors and plain containers of them, on the CPU.

    Raises ModelError for a file that is torn or holds more than plain data.
    """
    note(path)
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
    except Exception as error:  # what the readers raise of malformed bytes is no narrower
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
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        raise ModelError(f"{path} does not hold tensors by name: it is another kind of checkpoint")
    return found


class Shaped(Protocol):
    """A tensor, or one that is still on disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...


Found = TypeVar("Found", bound=Shaped)
FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Parts of a name that say what became of the weights after they were made.
ADAPTERS = {"base_layer", "base_model", "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "modules_to_save"}
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def plain_weights(source: Path, found: Mapping[str, Found], ignored: re.Pattern[str] | None = None) -> dict[str, Found]:
    """The tensors that a model is made of: all but those whose names match `ignored`, which it never reads.

    Raises ModelError for adapters that were not merged, for names that a wrapper has changed, and for codes of a
    quantised model, which stand under the names of the weights.
    """
    kept = {name: tensor for name, tensor in sorted(found.items()) if not (ignored and ignored.search(name))}
    parts = {name: set(name.split(".")) for name in kept}
    if adapted := [name for name in kept if parts[name] & ADAPTERS]:
        raise ModelError(
            f"{source} has {len(adapted)} weights that this model has no place for, such as {adapted[0]}: they are "
            "adapters beside their base, so merge them first (peft's merge_and_unload)"
        )
    if wrapped := [name for name in kept if parts[name] & WRAPPERS]:
        prefix = min(parts[wrapped[0]] & WRAPPERS)
        raise ModelError(
            f"{source} has {len(wrapped)} weights with {prefix!r} in their names, such as {wrapped[0]}: a wrapper put "
            f"it there, so save the model inside the wrapper, or take {prefix + '.'!r} out of the names"
        )
    check_floating(source, kept)
    return kept


def check_floating(source: Path, found: Mapping[str, Shaped]) -> None:
    """Every tensor is of floating-point numbers. Raises ModelError with the first that is not."""
    if codes := sorted(name for name, tensor in found.items() if tensor.dtype not in FLOATING):
        kind = str(found[codes[0]].dtype).removeprefix("torch.")
        raise ModelError(
            f"{source}: {codes[0]} is {kind} ({len(codes)} such), so the weights are quantised: give the unquantised "
            "checkpoint"
        )


def check_tensors(
    source: Path, found: Mapping[str, Shaped], wanted: Mapping[str, Tensor], names: Callable[[str], str] = str
) -> None:
    """Every wanted tensor is there in its shape, and nothing else is. Raises ModelError with the first that is wrong.

    names: what a wanted one is called in the files.
    """
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    strange = f"{len(unknown)} weights that this model has no place for, such as {names(unknown[0])}" if unknown else ""
    if missing:
        raise ModelError(
            f"{source} lacks {len(missing)} weights, such as {names(missing[0])}"
            + (f", and has {strange}: it is another variant" if unknown else ": copy the checkpoint again")
        )
    if unknown:
        raise ModelError(f"{source} has {strange}: it is another variant")
    if wrong := [name for name, tensor in wanted.items() if found[name].shape != tensor.shape]:
        name = wrong[0]
        raise ModelError(
            f"{source}: {names(name)} is {tuple(found[name].shape)}, but by config and other weights it should be "
            f"{tuple(wanted[name].shape)} ({len(wrong)} such): they do not fit, so copy config and weights again"
        )
