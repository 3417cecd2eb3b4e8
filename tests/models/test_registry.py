"""Names and folders become policies; a checkpoint that is not all there is refused with one sentence."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import registry
from models.device import device_of
from models.errors import ModelError
from models.registry import MODELS
from t2i_rl.cli import main
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
    with pytest.raises(
        ModelError, match=r"nobody/nothing is neither a path here, nor in .*`hf download nobody/nothing`"
    ):
        registry.load("nobody/nothing")
    with pytest.raises(ModelError, match="`hf download deepseek-community/Janus-Pro-7B`"):
        registry.load("janus-pro-7b")


def test_a_name_whose_folder_has_another_grid(saved: Path, monkeypatch: pytest.MonkeyPatch):
    entry = registry.ModelEntry("tiny", "janus", str(saved), "Apache-2.0", (12,), 1.5)
    monkeypatch.setitem(MODELS, "tiny", entry)
    with pytest.raises(ModelError, match=r"maps of \[\(4, 4\)\], but tiny has 12x12"):
        registry.load("tiny")


@pytest.mark.parametrize("device", ["gpu", "cuda", "cuda:0", "mps", "xla", "meta", "npu", "hpu", "cpu:1", ""])
def test_a_device_that_is_not_there(saved: Path, device: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(ModelError, match=f"{device}.*choose"):
        registry.load(str(saved), device=device)


def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    for device in ("cpu", "cpu:0", "cuda", "cuda:1", "mps"):
        assert device_of(device) == device
    with pytest.raises(ModelError, match="cuda:2 is not there: torch sees cuda:0 to cuda:1: choose one"):
        device_of("cuda:2")


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
    assert "has no weights: model.safetensors or pytorch_model.bin" in refused(folder)


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


def test_every_name_has_a_family_that_can_be_imported():
    for entry in MODELS.values():
        module, name = registry.FAMILIES[entry.family]
        assert callable(getattr(importlib.import_module(module), name).load)


def test_what_the_table_says_of_the_shipped_model():
    entry, policy = MODELS["tiny"], registry.load("tiny")
    assert (entry.scales, entry.guidance) == ((policy.layout.maps[0][0],), policy.default_guidance)


@pytest.mark.parametrize(
    ("files", "family"),
    [
        ({"config.json": '{"model_type": "janus"}'}, "janus"),
        ({"config.json": '{"model_type": "multi_modality"}'}, "janus"),
        ({"config.json": '{"model_type": "star"}'}, "star"),
        ({"config.json": '{"model_type": "llamagen"}', "vae_ch160v4096z32.pth": ""}, "llamagen"),
        ({"t2i_XL_stage1_256.pt": ""}, "llamagen"),
        ({"config.json": '{"model_type": "gpt"}', "vq_ds16_t2i.pt": ""}, "llamagen"),
        ({"vae_ch160v4096z32.pth": ""}, "star"),
    ],
)
def test_the_family_of_a_folder(tmp_path: Path, files: dict[str, str], family: str):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        assert registry.find(str(tmp_path / name)).source == str(tmp_path / name)
    assert registry.family_of(str(tmp_path)) == family
    assert registry.family_of(str(tmp_path / name)) == family
    entry = registry.find(str(tmp_path))
    assert (entry.name, entry.family, entry.scales) == (str(tmp_path), None, None)


def test_a_hub_id_of_a_known_model_has_its_family():
    for name, entry in MODELS.items():
        assert registry.find(entry.source).family == entry.family, name


def test_the_table_of_models(capsys: pytest.CaptureFixture[str]):
    assert main(["models"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "family", "grid", "or", "scales", "guidance", "licence", "from"]
    assert [row.split()[0] for row in rows] == list(MODELS)
    assert rows[0].split() == ["tiny", "janus", "12x12", "1.5", "Apache-2.0", "shipped"]
    assert "1 2 3 4 5 6 8 10 13 16" in next(row for row in rows if row.startswith("star-256"))
    of_paper = {row.split()[0] for row in rows if row.endswith("(of arXiv:2509.22485)")}
    assert of_paper == {f"janus-pro-{size}-gcpo-{of}" for size in ("1b", "7b") for of in ("hps", "geneval")} | {
        "llamagen-256-gcpo"
    }
    assert main(["models", "tiny"]) == 2


def test_only_janus_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", "--model", "star-256", "--format", "deepseek", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "t2i-rl: star-256 is a star model: only Janus has two formats\n"


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
    check = (
        "import sys; from t2i_rl.cli import main; main(['models']); from models import registry;"
        "registry.find('star-256'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
