"""Bytes of pixels."""

import math
from operator import attrgetter
from pathlib import Path

import pytest
import torch

from models.errors import ModelError
from models.parts.pixels import to_bytes
from models.registry import load
from tests.models.families import FAMILIES, save_family


def test_bytes_are_truncated_and_stay_in_range():
    values = torch.tensor([-3.0, 0.0, 0.99, 254.999, 255.0, 300.0, math.inf, -math.inf])
    assert to_bytes(values).tolist() == [0, 0, 0, 254, 255, 255, 255, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_pixel_is_made_of_what_is_no_number(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    policy = load(str(save_family(family, tmp_path / "model")))
    coder = {"janus": "model.model.vqmodel", "llamagen": "vq", "star": "vae"}[family]
    next(attrgetter(f"{coder}.decoder")(policy).parameters()).data.fill_(math.nan)
    with pytest.raises(ModelError, match="pixels that are no numbers"):
        policy.decode(torch.zeros(1, policy.layout.tokens, dtype=torch.long))
