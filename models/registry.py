"""From a name to a policy: the models we know, and any local folder of a family we know.

Nothing here imports torch before a model is loaded, so that `--help` stays quick.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import ModelError

if TYPE_CHECKING:
    import torch

    from models.policy import Policy

TINY = Path(__file__).parent / "tiny"
HUB_ID = r"\w[\w.-]*/[\w.-]+"


@dataclass(frozen=True)
class ModelEntry:
    """One known model.

    source: a folder or a hub id in transformers' format.
    grid: height and width of the token map; None where only the checkpoint knows.
    """

    name: str
    family: str
    source: str
    licence: str
    grid: tuple[int, int] | None


MODELS = {
    entry.name: entry
    for entry in (
        ModelEntry("tiny", "janus", str(TINY), "Apache-2.0", (12, 12)),
        ModelEntry("janus-pro-1b", "janus", "deepseek-community/Janus-Pro-1B", "DeepSeek Model License", (24, 24)),
        ModelEntry("janus-pro-7b", "janus", "deepseek-community/Janus-Pro-7B", "DeepSeek Model License", (24, 24)),
    )
}


def find(name_or_path: str) -> ModelEntry:
    """The entry of a known name, or one for a local folder or an `owner/name` of the hub.

    Reads no files of the model. Raises ModelError.
    """
    if name_or_path in MODELS:
        return MODELS[name_or_path]
    if Path(name_or_path).is_dir() or re.fullmatch(HUB_ID, name_or_path):
        return ModelEntry(name_or_path, "janus", name_or_path, "unknown", None)
    raise ModelError(f"unknown model {name_or_path!r}: give a folder, a hub id or one of the names {', '.join(MODELS)}")


def load(name_or_path: str, dtype: "torch.dtype | None" = None, device: str = "cpu") -> "Policy":
    """The policy of a known name, a local folder or a hub id, in float32 unless told otherwise.

    Raises ModelError for an unknown name, and for a checkpoint that is not all there.
    """
    entry = find(name_or_path)
    import torch

    from models.janus import JanusPolicy

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ModelError(f"{device!r} is no device: choose cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"the device {device} is not there: torch sees no CUDA device, so choose cpu")
    policy = JanusPolicy.load(entry.source, dtype or torch.float32, device)
    if entry.grid not in (None, policy.layout.maps[0]):
        height, width = policy.layout.maps[0]
        raise ModelError(
            f"{entry.source} has a {height}x{width} grid, but {entry.name} has {entry.grid}: copy it again"
        )
    return policy
