"""What figures were made with: versions of what computed them, checksums of weights and prompts."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from eval.manifest import digest
from models.registry import find
from rewards.pins import pins, sha256
from t2i_rl.prompts import Prompt

PACKAGES = ("t2i-rl", "torch", "torchvision", "transformers", "open-clip-torch", "numpy", "pillow")
OPTIONAL = ("spacy", "en-core-web-sm")  # they change T2I-CompBench's questions
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


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """The SHA-256 of prompts with their metadata, in their order."""
    return digest([[prompt.text, dict(prompt.metadata)] for prompt in prompts])


def model_weights(model: str) -> dict[str, str]:
    """The SHA-256 of every weights file of a model's folder, or the revision of the hub that lies here.

    Nothing where neither is known. To be asked after the model was loaded.
    """
    source = Path(find(model).source)
    if source.is_file():
        return {source.name: sha256(source)}
    if source.is_dir():
        return {path.name: sha256(path) for path in sorted(source.iterdir()) if path.suffix in WEIGHTS}
    from huggingface_hub import try_to_load_from_cache

    repository = "/".join(source.parts[:2])
    name = "/".join(source.parts[2:]) or "config.json"
    cached = try_to_load_from_cache(repository, name)
    return {"revision": Path(cached).parents[len(Path(name).parts) - 1].name} if isinstance(cached, str) else {}


def scorer_weights() -> dict[str, str]:
    """The SHA-256 of every file of weights that this machine's cache of rewards has recorded, by where it is from."""
    return {key: seen["sha256"] for key, seen in sorted(pins().items()) if not key.startswith("prompts:")}
