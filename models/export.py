"""Whole checkpoints out of others: adapters merged into their base, Janus in its other format."""

import tempfile
from pathlib import Path

import torch

from models.errors import ModelError
from models.janus.checkpoint import Format, JanusCheckpoint
from models.janus.policy import JanusPolicy
from models.lora import LoraPolicy
from models.registry import family_of, load


def merge(source: str, folder: Path, dtype: torch.dtype, format: Format | None = None) -> None:
    """Write the base of an adapter's folder with the adapters added to its weights, all of it in `dtype`.

    format: of a Janus; if not given, its base's. Raises ModelError.
    """
    policy = load(source, dtype)
    if not isinstance(policy, LoraPolicy):
        raise ModelError(f"{source} holds no adapters: there is nothing to merge")
    if format is not None and not isinstance(policy.base, JanusPolicy):
        raise ModelError(f"{source} adapts no Janus, and only Janus has two formats: leave out --format")
    if format is None:
        policy.merged().save(folder)
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix=".merged-") as aside:
        policy.merged().save(Path(aside))
        convert(aside, folder, format)


def convert(source: str, folder: Path, format: Format) -> None:
    """Write a Janus in a format, every tensor bit for bit. Raises ModelError for another family."""
    family = family_of(source)
    if family != "janus":
        raise ModelError(f"{source} is a {family} model: only Janus has two formats")
    JanusCheckpoint.open(source).export(format, folder)
