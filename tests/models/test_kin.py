"""Whose sizes a checkpoint has, by its name, its source and what its config says."""

import json
from pathlib import Path

import pytest

from models.architectures import JANUS_1B, JANUS_7B, LLAMAGEN_XL
from models.errors import ModelError
from models.kin import JANUS, LLAMAGEN_LAYERS, kin
from models.registry import MODELS, TINY


@pytest.mark.parametrize(
    ("model", "same"),
    [
        *((name, entry.like or name) for name, entry in MODELS.items()),
        *((entry.source, entry.like or name) for name, entry in MODELS.items()),
        ("deepseek-ai/Janus-Pro-1B", "janus-pro-1b"),
        ("deepseek-ai/Janus-Pro-7B", "janus-pro-7b"),
        ("zghhui/Janus-Pro-7B-GCPO-HPS", "janus-pro-7b"),
        ("some/model", None),
    ],
    ids=str,
)
def test_names_and_sources(model: str, same: str | None):
    assert kin(model) == same


@pytest.mark.parametrize(
    ("config", "same"),
    [
        ({"model_type": "janus", "text_config": {"num_hidden_layers": 30}}, "janus-pro-7b"),
        ({"model_type": "janus", "text_config": {"num_hidden_layers": 24, "hidden_size": 2048}}, "janus-pro-1b"),
        ({"model_type": "multi_modality", "language_config": {"num_hidden_layers": 30}}, "janus-pro-7b"),
        ({"model_type": "janus", "text_config": {"num_hidden_layers": 2, "hidden_size": 32}}, None),
        ({"model_type": "janus"}, None),
        ({"model_type": "star", "scales": [*(MODELS["star-512"].scales or ())]}, "star-512"),
        ({"model_type": "star", "scales": [1, 2]}, None),
        ({"model_type": "llamagen", "n_layer": 36, "block_size": 1024}, "llamagen-512"),
        ({"model_type": "llamagen", "n_layer": 12, "block_size": 256}, None),
        ({"model_type": "gpt"}, None),
    ],
)
def test_a_folder_by_its_config(tmp_path: Path, config: dict, same: str | None):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert kin(str(tmp_path)) == same


def test_a_checkpoint_of_the_shipped_model(tmp_path: Path):
    (tmp_path / "config.json").write_bytes((TINY / "config.json").read_bytes())
    assert kin(str(tmp_path)) == "tiny"


@pytest.mark.parametrize(
    ("file", "same"), [("t2i_XL_stage2_512.pt", "llamagen-512"), (Path(MODELS["star-1024"].source).name, "star-1024")]
)
def test_files_by_their_names(tmp_path: Path, file: str, same: str):
    (tmp_path / file).touch()
    assert kin(str(tmp_path)) == kin(str(tmp_path / file)) == same


def test_a_repository_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "multi_modality", "language_config": {"num_hidden_layers": 30}}')
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, file: str(config))
    assert kin("somebody/finetuned") == "janus-pro-7b"


def test_what_is_no_model():
    with pytest.raises(ModelError, match="unknown model 'janus-pro-2b'"):
        kin("janus-pro-2b")


def test_the_sizes_are_the_architectures():
    of = {
        name: (sizes["num_hidden_layers"], sizes["hidden_size"]) for sizes, name in ((JANUS_1B, "1b"), (JANUS_7B, "7b"))
    }
    assert {name.removeprefix("janus-pro-"): sizes for sizes, name in JANUS.items() if name != "tiny"} == of
    assert LLAMAGEN_XL["num_hidden_layers"] == LLAMAGEN_LAYERS
