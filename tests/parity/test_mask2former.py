"""OpenMMLab's Mask2Former, converted while it is loaded, against the numbers of mmdetection's own model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Mask2FormerForUniversalSegmentation

from rewards.detectors.mask2former import load_openmmlab
from tests.parity.golden import golden_folder

FEATURES = CLASSES = {"rtol": 0, "atol": 2e-4}
MASKS = {"rtol": 0, "atol": 5e-4}


@pytest.fixture(scope="module")
def folder() -> Path:
    return golden_folder("mask2former")


@pytest.fixture(scope="module")
def golden(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "io.safetensors")


@pytest.fixture(scope="module")
def model(folder: Path) -> Mask2FormerForUniversalSegmentation:
    return load_openmmlab(folder / "weights.safetensors").eval()


@torch.no_grad()
def test_every_stage_of_the_network(model: Mask2FormerForUniversalSegmentation, golden: dict[str, Tensor]) -> None:
    """In the order of the network: the first that differs names the wrong keys."""
    cases = sorted(key.removeprefix("input_") for key in golden if key.startswith("input_"))
    assert cases
    compared = 0
    for case in cases:
        output = model(golden[f"input_{case}"], output_hidden_states=True, output_auxiliary_logits=True)
        ours = {f"backbone_{case}_{i}": feature for i, feature in enumerate(output.encoder_hidden_states)}
        ours |= {f"memory_{case}_{i}": feature for i, feature in enumerate(output.pixel_decoder_hidden_states)}
        ours[f"mask_features_{case}"] = output.pixel_decoder_last_hidden_state
        layers = [*output.auxiliary_logits, output]
        ours[f"class_logits_layers_{case}"] = torch.stack([layer["class_queries_logits"] for layer in layers])
        ours[f"mask_logits_layers_{case}"] = torch.stack([layer["masks_queries_logits"] for layer in layers])
        ours[f"class_queries_logits_{case}"] = output.class_queries_logits
        ours[f"masks_queries_logits_{case}"] = output.masks_queries_logits
        for name in (name for name in ours if name in golden):
            tolerance = MASKS if name.startswith(("mask_logits", "masks_")) else FEATURES
            torch.testing.assert_close(
                ours[name], golden[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}"
            )
            compared += 1
    assert compared == len(golden) - len(cases)
