"""A tiny random checkpoint of every family, in a layout that is released."""

from pathlib import Path

from tests.conftest import random_janus
from tests.models.small_qwen_vl import KINDS, random_qwen
from tests.models.small_star import random_star
from tests.models.tiny_llamagen import save_release

FAMILIES = ("janus", "llamagen", "star")  # that draw
ALL_FAMILIES = (*FAMILIES, *KINDS)


def save_family(family: str, folder: Path) -> Path:
    if family == "llamagen":
        save_release(folder)
    elif family in KINDS:
        random_qwen(family, folder).save(folder)
    else:
        {"janus": random_janus, "star": random_star}[family]().save(folder)
    return folder
