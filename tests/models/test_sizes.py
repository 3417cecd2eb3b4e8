"""Sizes in a config that no tensor has are refused before anything of that size is built."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.errors import ModelError
from models.janus.checkpoint import JanusCheckpoint
from models.janus.policy import JanusPolicy
from models.llamagen.policy import LlamaGenPolicy
from models.llamagen.transformer import grid_side
from models.registry import load
from models.star.policy import StarConfig
from tests.models.families import save_family

MUCH = 10**9


def put(path: Path, keys: str, value: object) -> None:
    """Write a value under dotted keys into a JSON file."""
    config: Any = json.loads(path.read_text())
    *sections, last = keys.split(".")
    place = config
    for section in sections:
        place = place[section]
    place[last] = value
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("text_config.num_hidden_layers", f"weights of 2 layers, but its config.json says {MUCH}"),
        ("text_config.hidden_size", "should be"),
        ("text_config.vocab_size", "should be"),
        ("text_config.pad_token_id", "does not describe a Janus"),
        ("vision_config.num_hidden_layers", f"asks for {MUCH} layers in the understanding tower, but there are"),
        ("vision_config.depth", f"asks for {MUCH} layers in the understanding tower's aligner"),
        ("vq_config.num_hidden_layers", f"asks for {MUCH} layers in the image aligner"),
        ("vq_config.num_res_blocks", f"asks for {MUCH} residual blocks"),
        ("vq_config.base_channels", "does not describe a Janus"),
    ],
)
def test_janus(keys: str, says: str, tmp_path: Path):
    save_family("janus", tmp_path)
    put(tmp_path / "config.json", keys, MUCH)
    with pytest.raises(ModelError) as refused:
        JanusPolicy.load(tmp_path)
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "keys", ["language_config.num_hidden_layers", "gen_aligner_config.params.depth", "aligner_config.params.depth"]
)
def test_janus_in_deepseek_s_format(keys: str, tmp_path: Path):
    save_family("janus", tmp_path / "native")
    (tmp_path / "ours").mkdir()
    JanusCheckpoint.open(tmp_path / "native").export("deepseek", tmp_path / "ours")
    put(tmp_path / "ours" / "config.json", keys, MUCH)
    with pytest.raises(ModelError, match=str(MUCH)):
        JanusPolicy.load(tmp_path / "ours")


def test_the_layers_of_llamagen(tmp_path: Path):
    save_family("llamagen", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"n_layer": MUCH, "block_size": 16}))
    with pytest.raises(ModelError, match=f"has 2 layers, but its config.json says {MUCH}"):
        LlamaGenPolicy.load(tmp_path)


def test_grids_beyond_every_model():
    with pytest.raises(ModelError, match=r"square number, of 1024 tokens a side at most"):
        grid_side({"block_size": MUCH**2}, Path("model"), 16)
    for scales in ((1, 2, MUCH), (1, 2.5), (True, 2)):
        with pytest.raises(ValueError, match=r"must start with 1 and rise, to 1024 at most"):
            StarConfig(scales)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("family", "config", "keys"),
    [
        ("llamagen", "t5/config.json", ("num_layers", "d_model", "vocab_size", "d_ff")),
        (
            "qwen2_5_vl",
            "config.json",
            (
                "text_config.num_hidden_layers",
                "text_config.hidden_size",
                "text_config.max_position_embeddings",
                "vision_config.depth",
            ),
        ),
        ("star", "text_encoder/config.json", ("num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size")),
    ],
)
def test_what_transformers_builds(family: str, config: str, keys: tuple[str, ...], tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_family(family, tmp_path / "model")
    path = tmp_path / "model" / config
    whole = path.read_text()
    use: Callable[[], object] = lambda: load(str(tmp_path / "model")).encode(["a circle"])  # noqa: E731
    for key in keys:
        path.write_text(whole)
        put(path, key, MUCH)
        with pytest.raises(ModelError, match=r"do not fit|does not describe|cannot be read|beyond every model"):
            use()
