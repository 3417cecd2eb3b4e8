"""A Qwen-VL that is not all there, or not of one mind, is refused with one sentence that says what to mend."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from models.errors import ModelError
from models.registry import MODELS, family_of, load
from t2i_rl.cli import main
from tests.models.small_qwen_vl import random_qwen


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    random_qwen("qwen2_5_vl", folder / "processor").save(folder / "model")
    return folder / "model"


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def edit_json(path: Path, edit: Callable[[dict], object]) -> None:
    found = json.loads(path.read_text())
    edit(found)
    path.write_text(json.dumps(found))


def edit_weights(folder: Path, edit: Callable[[dict], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_lost_weight(folder: Path):
    edit_weights(folder, lambda weights: weights.pop("visual.merger.ln_q.weight"))
    assert "the model in" in refused(folder) and "visual.merger.ln_q.weight is missing" in refused(folder)


def test_more_layers_than_the_config_says(folder: Path):
    edit_json(
        folder / "config.json", lambda config: config["text_config"].update(num_hidden_layers=2, layer_types=None)
    )
    assert "layers.2" in refused(folder) and "there is no place for" in refused(folder)


def test_torn_weights(folder: Path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors is torn" in refused(folder)


def test_sliding_attention(folder: Path):
    layers = ["full_attention", "full_attention", "sliding_attention"]
    edit_json(folder / "config.json", lambda config: config["text_config"].update(layer_types=layers))
    assert "layers of sliding attention, which are not built here" in refused(folder)


def test_no_chat_template(folder: Path):
    (folder / "chat_template.jinja").unlink()
    assert "has no chat template: copy chat_template.jinja" in refused(folder)


def test_no_image_processor(folder: Path):
    (folder / "processor_config.json").unlink()
    assert "processor" in refused(folder)


def test_no_tokenizer(folder: Path):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert "<|image_pad|> is None in the tokenizer" in refused(folder)


def test_a_tokenizer_of_another_model(folder: Path):
    edit_json(folder / "config.json", lambda config: config.update(image_token_id=3))
    assert "in the tokenizer and 3 in config.json: copy the checkpoint's own tokenizer" in refused(folder)


def test_no_stop_token(folder: Path):
    (folder / "generation_config.json").unlink()
    edit_json(folder / "config.json", lambda config: config["text_config"].update(eos_token_id=None))
    tokenizer = folder / "tokenizer_config.json"
    assert load(str(folder)).stop_tokens == (load(str(folder)).processor.tokenizer.eos_token_id,)
    edit_json(tokenizer, lambda config: config.update(eos_token=None))
    assert "names a token that ends an answer" in refused(folder)


def test_names():
    assert MODELS["qwen2.5-vl-7b"].grid == MODELS["qwen3-vl-8b"].grid == "text"


def test_the_family_is_told_by_the_config(saved: Path):
    assert family_of(str(saved)) == "qwen_vl"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("eval geneval --prompts {records}", "answers in text, and this draws pictures: choose another"),
        ("train --preset tiny-shapes-cfg", "reward is shapes, which scores pictures, and the model"),
    ],
)
def test_what_draws_pictures_refuses_it_before_its_weights_are_read(
    folder: Path, tmp_path: Path, words: str, says: str, capsys: pytest.CaptureFixture[str]
):
    (folder / "model.safetensors").write_bytes(b"")
    records = tmp_path / "records.jsonl"
    records.write_text('{"prompt": "a ring", "tag": "single_object", "include": [{"class": "circle", "count": 1}]}')
    asked = words.format(records=records).split()
    assert main([*asked, "--out", str(tmp_path / "out"), "--model", str(folder)]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
