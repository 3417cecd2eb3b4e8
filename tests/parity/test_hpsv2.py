"""HPSv2 against the numbers of the original implementation: what it sees, its network, its score."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from rewards.scorers.clip import cosine, load_clip
from rewards.scorers.hpsv2 import preprocess
from tests.parity.golden import golden_folder


@pytest.fixture(scope="module")
def folder() -> Path:
    return golden_folder("hpsv2")


@pytest.mark.parametrize("antialias", [True, False])
def test_the_pictures_that_it_sees(folder: Path, antialias: bool) -> None:
    kind = "antialias" if antialias else "noantialias"
    with np.load(folder / "preprocess.npz") as held:
        cases = json.loads(str(held["index_json"]))
        assert cases
        for case in cases:
            k, stride = case["index"], case["stride"]
            size = case["tensor_shape"][-1]
            ours = preprocess(Image.fromarray(held[f"image_{k}"]), size, antialias)
            assert list(ours.shape) == case["tensor_shape"]
            theirs = held[f"tensor_{kind}_{k}"].astype(np.float32)
            np.testing.assert_allclose(ours[:, ::stride, ::stride], theirs, rtol=0, atol=2e-3)
            statistics = (case[f"mean_{kind}"], case[f"std_{kind}"])
            assert (ours.mean().item(), ours.std(correction=0).item()) == pytest.approx(statistics, abs=1e-4)


def test_the_score_of_features(folder: Path) -> None:
    with np.load(folder / "feature_score.npz") as held:
        ours = cosine(*(torch.from_numpy(held[f"{kind}_features"]) for kind in ("image", "text")))
        np.testing.assert_allclose(ours, held["score"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(100 * ours, held["score_x100"], rtol=0, atol=1e-3)


def test_the_network_of_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    """The official class's weights, loaded as the published checkpoint is; its scale is not used."""
    with np.load(folder / "tiny_clip.npz") as stored:
        held = {name: stored[name] for name in stored.files}
    prefix = "state_dict/"
    names = [name for name in held if name.startswith(prefix)]
    weights = {name.removeprefix(prefix): torch.from_numpy(held[name]).float() for name in names}
    torch.save({"epoch": 1, "state_dict": weights}, tmp_path / "hps.pt")
    (tmp_path / "t2i-rl-golden-hps.json").write_text(str(held["cfg_json"]))
    open_clip.add_model_config(tmp_path / "t2i-rl-golden-hps.json")
    model = load_clip(tmp_path / "hps.pt", "t2i-rl-golden-hps").model
    with torch.no_grad():
        image, text, _ = model(torch.from_numpy(held["image"]).float(), torch.from_numpy(held["tokens"]).long())
    for ours, theirs in ((image, "image_features"), (text, "text_features")):
        np.testing.assert_allclose(ours, held[theirs], rtol=0, atol=1e-5, err_msg=theirs)
    np.testing.assert_allclose(cosine(image, text), held["score"], rtol=0, atol=1e-5)
