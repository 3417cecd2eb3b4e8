"""Names and folders become policies; a checkpoint that is not all there is refused with one sentence."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import registry
from models.errors import ModelError
from models.registry import MODELS
from tests.conftest import random_janus


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("janus")
    random_janus().save(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def edit_config(folder: Path, edit: Callable[[dict], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_a_saved_folder_comes_back_with_the_same_logits(saved: Path):
    policy, original = registry.load(str(saved)), random_janus()
    assert policy.layout == original.layout
    logits = [
        janus.next_logits(janus.prefill(janus.encode(["a photo of a ring"]), 1, 2)) for janus in (policy, original)
    ]
    torch.testing.assert_close(*logits)


def test_names():
    assert {"tiny", "janus-pro-1b", "janus-pro-7b"} <= MODELS.keys()
    assert all(registry.find(name).name == name for name in MODELS)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ModelError, match=r"unknown model 'janus-pro-2b'.*tiny, janus-pro-1b, janus-pro-7b"):
        registry.load("janus-pro-2b")


def test_a_hub_id_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="cannot load nobody/nothing, neither as a folder nor from the hub"):
        registry.load("nobody/nothing")


def test_a_name_whose_folder_has_another_grid(saved: Path, monkeypatch: pytest.MonkeyPatch):
    entry = registry.ModelEntry("tiny", "janus", str(saved), "Apache-2.0", (12, 12))
    monkeypatch.setitem(MODELS, "tiny", entry)
    with pytest.raises(ModelError, match="4x4 grid"):
        registry.load("tiny")


@pytest.mark.parametrize("device", ["gpu", "cuda"])
def test_a_device_that_is_not_there(saved: Path, device: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ModelError, match=f"{device}.*choose cpu"):
        registry.load(str(saved), device=device)


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        registry.load(str(folder))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_without_config(tmp_path: Path):
    assert "config.json does not exist" in refused(tmp_path)


def test_a_config_that_is_not_json(folder: Path):
    (folder / "config.json").write_text("{")
    assert "not JSON" in refused(folder)


def test_another_family(folder: Path):
    edit_config(folder, lambda config: config.update(model_type="llama"))
    assert "model_type 'llama'" in refused(folder)


def test_torn_weights(folder: Path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors is torn" in refused(folder)


def test_no_weights(folder: Path):
    (folder / "model.safetensors").unlink()
    assert "model.safetensors does not exist" in refused(folder)


def test_a_lost_shard(folder: Path):
    weights = load_file(folder / "model.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors does not exist" in refused(folder)


def test_missing_keys(folder: Path):
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["model.generation_head.proj_out.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    assert "lacks 1 weights, such as model.generation_head.proj_out.weight" in refused(folder)


def test_no_tokenizer(folder: Path):
    (folder / "tokenizer_config.json").unlink()
    assert "tokenizer_config.json does not exist" in refused(folder)


def test_a_grid_that_the_weights_do_not_have(folder: Path):
    def grow(config: dict) -> None:
        config["vision_config"]["image_size"] *= 2
        config["vq_config"]["num_patches"] *= 2

    edit_config(folder, grow)
    assert "do not fit" in refused(folder)


def test_a_config_that_contradicts_itself(folder: Path):
    edit_config(folder, lambda config: config["vq_config"].update(num_patches=6))
    assert "num_patches is 6" in refused(folder)


def test_naming_models_does_not_import_torch():
    check = "import sys; from models import registry; registry.find('tiny'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
