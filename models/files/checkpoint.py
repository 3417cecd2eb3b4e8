"""A checkpoint folder: found, opened and read tensor by tensor, and written.

A folder as transformers lays it out has `config.json`, its tokenizer, and weights in `model.safetensors` or
`pytorch_model.bin`, or in shards of either with an index beside them. Tensors stay on disk until they are asked
for. Nothing in a folder is executed, and what is torn or missing is refused with one sentence, never filled in.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.errors import ModelError
from models.files.config import read_json
from models.files.hub import fetch
from models.files.reading import note
from models.files.tensors import read_tensors

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")  # in the order in which they are looked for
DTYPES = {  # by safetensors' names
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SHARD_BYTES = 5 * 10**9  # of the files we write


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is read when it is asked for.

    where: its file and the name it has there, for errors.
    """

    where: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


Weights = Mapping[str, StoredTensor]


def in_memory(tensors: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    """Tensors that are at hand, as weights."""
    return {
        name: StoredTensor(name, tuple(tensor.shape), tensor.dtype, partial(Tensor.detach, tensor))
        for name, tensor in tensors.items()
    }


def locate(source: str | Path) -> Path:
    """The folder itself, or the hub's on this machine, downloaded if need be. Raises ModelError."""
    folder = fetch(source, ("*.json", "*.safetensors"))
    if not any(folder.glob("*.safetensors")):
        folder = fetch(source, ("*.json", "*.bin"))
    return folder


def open_weights(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder by the name it has there. Raises ModelError for files that are missing or torn."""
    for name in SINGLE_FILES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _open_shards(index)
        if (folder / name).is_file():
            return _open_file(folder / name)
    raise ModelError(
        f"{folder} has no weights: {' or '.join(SINGLE_FILES)}, or the index of their shards, does not exist there"
    )


def _open_shards(index: Path) -> dict[str, StoredTensor]:
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise ModelError(f"{index} is not an index of weights: copy the checkpoint again")
    weights: dict[str, StoredTensor] = {}
    for file in sorted(set(named.values())):
        if PurePath(file).is_absolute() or ".." in PurePath(file).parts:
            raise ModelError(f"{index} names {file}, which is not beside it: copy the checkpoint again")
        path = index.parent / file
        if not path.is_file():
            raise ModelError(f"{path} does not exist, but {index.name} names it: copy the checkpoint again")
        weights |= _open_file(path)
    if lost := sorted(named.keys() - weights.keys()):
        raise ModelError(
            f"{index} and its shards do not fit: {lost[0]} is not in {named[lost[0]]}: copy the checkpoint again"
        )
    return weights


def _open_file(path: Path) -> dict[str, StoredTensor]:
    if path.suffix != ".safetensors":
        tensors = in_memory(read_tensors(path))
        return {name: replace(tensor, where=f"{path}: {name}") for name, tensor in tensors.items()}
    note(path)
    try:
        # Opening reads the header and compares it with the file's length.
        file = safe_open(path, framework="pt")
        return {name: _stored(path, file, name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is torn or no safetensors file ({error}): copy it again") from error


def _stored(path: Path, file: Any, name: str) -> StoredTensor:
    """A tensor of an opened file. Raises ModelError for numbers that torch does not have, or not whole bytes of."""
    header = file.get_slice(name)
    if header.get_dtype() not in DTYPES:
        raise ModelError(
            f"{path}: {name} is {header.get_dtype()}, so the weights are quantised: give the unquantised checkpoint"
        )
    shape, dtype = tuple(header.get_shape()), DTYPES[header.get_dtype()]
    return StoredTensor(f"{path}: {name}", shape, dtype, partial(file.get_tensor, name))


def write_weights(folder: Path, weights: Weights) -> None:
    """One `model.safetensors`, or shards of at most `SHARD_BYTES` and their index; one shard in memory at a time."""
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    total = 0

    def write() -> None:
        shards.append(list(held))
        save_file(held, folder / f"{len(shards)}.part", metadata={"format": "pt"})
        held.clear()

    for name, stored in weights.items():
        tensor = stored.read().cpu().contiguous()
        if held and sum(other.nbytes for other in held.values()) + tensor.nbytes > SHARD_BYTES:
            write()
        held[name] = tensor
        total += tensor.nbytes
    write()
    if len(shards) == 1:
        (folder / "1.part").rename(folder / "model.safetensors")
        return
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for number, file in enumerate(files, start=1):
        (folder / f"{number}.part").rename(folder / file)
    weight_map = {name: file for names, file in zip(shards, files, strict=True) for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
