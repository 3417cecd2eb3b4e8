"""OpenMMLab's checkpoint of GenEval's detector: where it is published, how it is known, the names of its weights."""

import re
from pathlib import Path

from rewards.files.pins import sha256
from rewards.files.weights import fetch

OFFICIAL = "official"
CONFIG = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco"
URL = f"https://download.openmmlab.com/mmdetection/v2.0/mask2former/{CONFIG}/{CONFIG}_20220504_001756-743b7d99.pth"
# A file's name ends in the start of its SHA-256: the same weights by the names of mmdetection 2.x and of 3.x.
DIGESTS = ("743b7d99", "c9d0c4f2")

# 2.x -> 3.x. In the decoder cross attention comes first.
RENAMED_IN_3X = (
    (r"(pixel_decoder\.encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
    (r"(transformer_decoder\.layers\.\d+)\.attentions\.0\.", r"\1.cross_attn."),
    (r"(transformer_decoder\.layers\.\d+)\.attentions\.1\.", r"\1.self_attn."),
    (r"(\.layers\.\d+)\.ffns\.0\.", r"\1.ffn."),
)


def official_weights() -> Path:
    """The checkpoint that the benchmark names, fetched on first use. Raises RewardError."""
    return fetch(URL, DIGESTS[0])


def weights_name(path: Path) -> str:
    """What reported figures say of a checkpoint file: the official one, or another, and the start of its SHA-256."""
    digest = sha256(path)[:8]
    return f"official {digest}" if digest in DIGESTS else f"{path.name} {digest}, unofficial weights"


def canonical(key: str) -> str:
    """A weight's name in mmdetection 3.x, without the prefix of a wrapped model."""
    key = key.removeprefix("module.")
    for old, new in RENAMED_IN_3X:
        key = re.sub(old, new, key)
    return key
