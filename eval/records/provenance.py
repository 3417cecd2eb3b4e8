"""What figures were made with: versions of what computed them, checksums of weights and prompts."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from eval.records.manifest import digest
from models.files.adapter import base_of, is_adapter
from models.registry import find
from rewards.catalogue import REWARDS
from rewards.files.pins import pins, sha256

PACKAGES = ("t2i-rl", "torch", "torchvision", "transformers", "open-clip-torch", "numpy", "pillow", "mathruler")
OPTIONAL = ("spacy", "en-core-web-sm", "math-verify")  # the first two change T2I-CompBench's questions
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def versions() -> dict[str, str]:
    """Of Python and the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for package in (*PACKAGES, *OPTIONAL):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def weights_of(source: str | Path) -> dict[str, str]:
    """The SHA-256 of a file, or of every weights file of a folder; of a hub repository the revision that lies here.

    Nothing where neither is known. To be asked after the weights were loaded.
    """
    source = Path(source)
    if source.is_file():
        return {source.name: sha256(source)}
    if source.is_dir():
        held = (path for path in sorted(source.iterdir()) if not path.name.startswith("."))
        return {path.name: sha256(path) for path in held if path.suffix in WEIGHTS}
    from huggingface_hub import try_to_load_from_cache

    repository = "/".join(source.parts[:2])
    name = "/".join(source.parts[2:]) or "config.json"
    cached = try_to_load_from_cache(repository, name)
    return {"revision": Path(cached).parents[len(Path(name).parts) - 1].name} if isinstance(cached, str) else {}


def model_weights(model: str) -> dict[str, str]:
    """`weights_of` a registered name, a checkpoint folder or a hub repository; of adapters, their base's too."""
    source = find(model).source
    below = model_weights(base_of(Path(source))) if is_adapter(source) else {}
    return weights_of(source) | {f"base/{name}": checksum for name, checksum in below.items()}


def labelled(source: str | Path) -> str:
    """The name of a file, folder or repository, and the first digits of what tells its weights from others."""
    known = weights_of(source)
    return f"{Path(source).name} {digest(known)[:8]}" if known else Path(source).name


def copies() -> list[str]:
    """The environment variables that name weights of rewards, and the forms of judges (docs/rewards.md)."""
    found = {one.variable: None for entry in REWARDS.values() for one in entry.weights}
    return [*found, *(f"{entry.endpoint}_FORM" for entry in REWARDS.values() if entry.endpoint)]


def scorer_weights() -> dict[str, Any]:
    """What this machine's scorers are made of, whether this evaluation used them or not.

    `fetched`: the SHA-256 of every file that the cache of rewards has recorded, by where it is from; `given`: those of
    the copies that the environment names.
    """
    fetched = {key: seen["sha256"] for key, seen in sorted(pins().items()) if not key.startswith("prompts:")}
    given = {name: weights_of(os.environ[name]) for name in copies() if os.environ.get(name)}
    return {"fetched": fetched, "given": given}
