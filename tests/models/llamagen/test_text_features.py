"""Caption features: what is asked of the encoder, and what is kept of it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5EncoderModel

from models.errors import ModelError
from models.llamagen.text_features import TextFeatures
from tests.models.tiny_llamagen import save_text_encoder

CAPTIONS = ("a photo of a red circle", "two blue rings")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    save_text_encoder(folder)
    return folder


@pytest.fixture
def features(folder: Path, tmp_path: Path) -> TextFeatures:
    return TextFeatures(folder, max_tokens=8, cache=tmp_path)


def test_they_are_the_original_ones_without_their_padding(folder: Path, features: TextFeatures) -> None:
    """The original pads every caption to the full length, and hides the padding by the mask."""
    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), T5EncoderModel.from_pretrained(folder).eval()
    asked = tokenizer(list(CAPTIONS), padding="max_length", truncation=True, max_length=8, return_tensors="pt")
    with torch.no_grad():
        padded = encoder(asked["input_ids"], attention_mask=asked["attention_mask"]).last_hidden_state
    for row, found in enumerate(features(CAPTIONS)):
        real = asked["attention_mask"][row].bool()
        assert len(found) < 8
        torch.testing.assert_close(found, padded[row][real], atol=1e-6, rtol=1e-5)


def test_a_long_caption_keeps_its_end_of_sentence(folder: Path, features: TextFeatures) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    long = "a photo of two red rings and three blue circles"
    assert len(tokenizer(long)["input_ids"]) > 8
    ids = features.tokenizer(long, truncation=True, max_length=8)["input_ids"]
    assert len(features([long])[0]) == len(ids) == 8
    assert ids[-1] == tokenizer.eos_token_id
    assert features.longer([long, *CAPTIONS, long]) == 2


def test_a_caption_is_encoded_once(folder: Path, features: TextFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    first = features(CAPTIONS)
    monkeypatch.setattr(TextFeatures, "_encode", lambda *_: pytest.fail("encoded again"))
    again = TextFeatures(folder, max_tokens=8, cache=features.cache.parent)(CAPTIONS)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert len(list(features.cache.iterdir())) == len(CAPTIONS)


def test_a_torn_file_is_computed_again(features: TextFeatures) -> None:
    (first,) = features(CAPTIONS[:1])
    (path,) = features.cache.iterdir()
    for torn in (path.read_bytes()[:50], b""):
        path.write_bytes(torn)
        assert torch.equal(features(CAPTIONS[:1])[0], first)


def test_other_encoders_share_nothing(folder: Path, tmp_path: Path, features: TextFeatures) -> None:
    save_text_encoder(tmp_path / "other", seed=1)
    others = (
        TextFeatures(tmp_path / "other", max_tokens=8, cache=tmp_path),
        TextFeatures(folder, max_tokens=4, cache=tmp_path),
        TextFeatures(folder, max_tokens=8, dtype=torch.bfloat16, cache=tmp_path),
    )
    assert len({features.cache, *(other.cache for other in others)}) == 4
    assert not torch.equal(others[0](CAPTIONS)[0], features(CAPTIONS)[0])
    assert others[2](CAPTIONS)[0].dtype == torch.bfloat16


def test_captions_are_cleaned_unless_told_otherwise(folder: Path, tmp_path: Path, features: TextFeatures) -> None:
    asked = "A photo of a RED circle (free download)"
    assert torch.equal(features([asked])[0], features(["a photo of a red circle"])[0])
    raw = TextFeatures(folder, max_tokens=8, cache=tmp_path, clean=False)
    assert len(raw([asked])[0]) > len(features([asked])[0])


def test_the_empty_caption_is_the_end_of_a_sentence(features: TextFeatures) -> None:
    assert len(features([""])[0]) == 1


def test_a_cache_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match=r"cannot keep text features in .*XDG_CACHE_HOME"):
        TextFeatures(folder, max_tokens=8, cache=tmp_path / "file")(CAPTIONS)


def test_an_encoder_that_lacks_weights(folder: Path, tmp_path: Path) -> None:
    """transformers would fill them with random numbers."""
    save_text_encoder(tmp_path / "t5")
    weights = load_file(tmp_path / "t5" / "model.safetensors")
    del weights["encoder.block.1.layer.0.SelfAttention.q.weight"]
    save_file(weights, tmp_path / "t5" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"do not fit: encoder.block.1.layer.0.SelfAttention.q.weight is missing"):
        TextFeatures(tmp_path / "t5", max_tokens=8, cache=tmp_path)(CAPTIONS)


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
def test_a_kernel_that_a_config_names_is_not_fetched(tmp_path: Path, name: str) -> None:
    save_text_encoder(tmp_path / "t5")
    path = tmp_path / "t5" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: "owner/kernel"}))
    features = TextFeatures(tmp_path / "t5", max_tokens=8, cache=tmp_path)
    assert features.encoder.config._attn_implementation == "sdpa"


def test_a_torn_encoder(folder: Path, tmp_path: Path) -> None:
    save_text_encoder(tmp_path / "t5")
    weights = tmp_path / "t5" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"t5/model.safetensors is torn .*copy it again"):
        TextFeatures(tmp_path / "t5", max_tokens=8, cache=tmp_path)(CAPTIONS)
