"""The punishment of long answers against the released function."""

import json

import torch

from t2i_rl.methods.overlong import overlong
from tests.parity.golden import golden_folder


def test_every_length() -> None:
    for row in json.loads((golden_folder("reasoning") / "overlong.json").read_text()):
        found = overlong(torch.tensor(row["length"]), row["max_length"], row["buffer"])
        assert found.item() == row["penalty"], row
