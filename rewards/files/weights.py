"""Weights on disk: fetched on first use, pinned from then on (`rewards.files.pins`), and read without running what they
hold.

Files are fetched to the cache; those of the Hugging Face hub stay in the hub's own cache.
"""

import pickle
from collections.abc import Mapping
from functools import partial
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import Tensor

from rewards.errors import RewardError
from rewards.files.noted import note_file
from rewards.files.pins import cache_folder, pin, pins

HUB_ID = r"\w[\w.-]*/[\w.-]+"  # owner/name


def fetch(url: str, digest_start: str = "") -> Path:
    """The file at `url`, downloaded once; its SHA-256 begins with `digest_start`, where its publisher says one.

    Raises RewardError without a connection, and for other bytes than were expected or seen before.
    """
    path = cache_folder() / url.rpartition("/")[2]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest_start, progress=False)
        except (URLError, OSError, RuntimeError, ValueError, HTTPException) as error:
            reason = str(error).strip().partition("\n")[0]
            raise RewardError(
                f"cannot fetch {url} ({reason}): run `curl -L -o {path} {url}` where there is a connection"
            ) from error
    digest = pin(url, path)
    if not digest.startswith(digest_start):
        raise RewardError(
            f"{path} does not have the publisher's checksum {digest_start}...: remove it and fetch it again"
        )
    return path


def fetch_from_hub(repository: str, name: str) -> Path:
    """One file of a repository of the Hugging Face hub, at the revision first seen. Raises RewardError."""
    key = f"hub:{repository}/{name}"
    get = partial(hf_hub_download, repository, name, revision=pins().get(key, {}).get("revision"))
    try:
        path = Path(get())
    except Exception as error:  # the hub's client, the network and every kind of proxy raise their own
        try:
            path = Path(get(local_files_only=True))  # what lies here needs none of them
        except Exception:
            reason = str(error).strip().partition("\n")[0]
            raise RewardError(
                f"cannot fetch {name} of {repository} from the hub ({reason}): run `hf download {repository} {name}` "
                "where there is a connection, or give a local path"
            ) from error
    pin(key, path, revision=path.parents[len(Path(name).parts) - 1].name)
    return path


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a torch checkpoint (its `state_dict`, if it has one), on the CPU.

    A checkpoint that would have to run code is refused. Raises RewardError that names the file.
    """
    try:
        if path.suffix == ".safetensors":
            held = load_file(path)
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RewardError(f"{path} does not exist: give the path of the weights") from error
    except pickle.UnpicklingError as error:
        raise RewardError(
            f"{path} holds more than weights, or is torn, and is not opened: copy it again, or save its state_dict "
            "as safetensors where you trust it"
        ) from error
    except Exception as error:  # what the readers raise of malformed bytes is no narrower
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise RewardError(f"{path} is torn or holds no weights ({reason}): copy it again") from error
    note_file(path)
    weights = held.get("state_dict", held) if isinstance(held, dict) else held
    if (
        not isinstance(weights, dict)
        or not weights
        or not all(isinstance(name, str) and isinstance(one, Tensor) for name, one in weights.items())
    ):
        raise RewardError(f"{path} holds no state_dict of tensors: give the checkpoint of the model")
    if empty := [name for name, tensor in weights.items() if tensor.numel() == 0]:
        raise RewardError(f"{path}: {empty[0]} is empty: copy the checkpoint again")
    check_plain(path, {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in weights.items()})
    return weights


ADAPTERS = {"base_layer", "base_model", "lora_A", "lora_B", "modules_to_save"}  # parts of a name
CODES = {"int8", "uint8", "float8_e4m3fn", "float8_e5m2", "I8", "U8", "F8_E4M3", "F8_E5M2"}  # torch's and safetensors'


def check_plain(path: Path, kinds: Mapping[str, str]) -> None:
    """No tensor holds the codes of a quantised model, or an adapter beside its base. Raises RewardError.

    kinds: the number type of each.
    """
    for name, kind in sorted(kinds.items()):
        if kind in CODES:
            raise RewardError(f"{path}: {name} is {kind}, so the weights are quantised: give the unquantised ones")
        if ADAPTERS & set(name.split(".")):
            raise RewardError(f"{path}: {name} is an adapter beside its base: merge it first (peft's merge_and_unload)")
