"""A tiny random checkpoint of every family, in a layout that is released."""

from pathlib import Path

from tests.conftest import random_janus
from tests.models.small_star import random_star
from tests.models.tiny_llamagen import save_release

FAMILIES = ("janus", "llamagen", "star")


def save_family(family: str, folder: Path) -> Path:
    if family == "llamagen":
        save_release(folder)
    else:
        {"janus": random_janus, "star": random_star}[family]().save(folder)
    return folder
