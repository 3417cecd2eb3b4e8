"""The released sizes: shapes and counts as published, and the tiny model's as loaded."""

import pytest

from models.architectures import architecture, count
from models.errors import ModelError
from models.registry import MODELS, load

JANUS_7B = {
    "model.language_model.embed_tokens.weight": (102400, 4096),
    "model.language_model.layers.29.self_attn.q_proj.weight": (4096, 4096),
    "model.language_model.layers.29.mlp.gate_proj.weight": (11008, 4096),
    "model.language_model.layers.29.mlp.down_proj.weight": (4096, 11008),
    "model.generation_embeddings.weight": (16384, 8),
    "model.generation_aligner.fc1.weight": (4096, 8),
    "model.generation_aligner.hidden_layers.0.weight": (4096, 4096),
    "model.generation_head.proj_out.weight": (4096, 4096),
    "model.generation_head.vision_head.weight": (16384, 4096),
    "model.vqmodel.quantize.embedding.weight": (16384, 8),
    "model.aligner.fc1.weight": (4096, 1024),
    "lm_head.weight": (102400, 4096),
}
JANUS_1B = {
    "model.language_model.layers.23.self_attn.v_proj.weight": (2048, 2048),
    "model.language_model.layers.23.mlp.up_proj.weight": (5632, 2048),
    "model.generation_head.proj_out.weight": (2048, 2048),
    "model.generation_head.vision_head.weight": (16384, 2048),
    "lm_head.weight": (102400, 2048),
}
LLAMAGEN = {
    "model.embed_tokens.weight": (16384, 1280),
    "model.cls_embedding.uncond_embedding": (120, 2048),
    "model.cls_embedding.cap_proj.fc1.weight": (1280, 2048),
    "model.layers.35.mlp.gate_proj.weight": (3584, 1280),
    "lm_head.weight": (16384, 1280),
}
STAR = {
    "word_embed.weight": (1920, 32),
    "class_emb.weight": (1001, 1920),
    "pos_start": (1, 1, 1920),
    "lvl_embed.weight": (10, 1920),
    "encoder_proj.weight": (1920, 1024),
    "head_logits.weight": (4096, 1920),
    "blocks.29.attn.mat_qkv.weight": (5760, 1920),
    "blocks.29.attn.scale_mul_1H11": (1, 30, 1, 1),
    "blocks.29.cross_attn.mat_kv.weight": (3840, 1024),
    "blocks.29.ffn.fc1.weight": (7680, 1920),
}


@pytest.mark.parametrize(
    ("name", "shapes"),
    [("janus-pro-7b", JANUS_7B), ("janus-pro-1b", JANUS_1B), ("llamagen-512", LLAMAGEN), ("star-256", STAR)],
)
def test_the_official_shapes(name: str, shapes: dict[str, tuple[int, ...]]):
    found = architecture(name).shapes()
    assert {key: found.get(key) for key in shapes} == shapes


@pytest.mark.parametrize(
    ("name", "part", "millions"),
    [
        ("janus-pro-1b", "image tokenizer", 71.9),
        ("llamagen-256", "transformer", 777.9),
        ("llamagen-256", "image tokenizer", 71.9),
        ("star-256", "transformer", 1678.8),
        ("star-512", "image tokenizer", 108.9),
    ],
)
def test_the_published_counts(name: str, part: str, millions: float):
    assert count(architecture(name).parts[part]) / 1e6 == pytest.approx(millions, abs=0.06)


def test_the_language_model_by_hand():
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    assert architecture("janus-pro-7b").trained == 102400 * 4096 + 30 * layer + 4096


def test_the_tiny_model_is_as_loaded():
    policy, model = load("tiny"), architecture("tiny")
    loaded = {name: tuple(tensor.shape) for name, tensor in policy.module.state_dict().items()}
    assert loaded.items() <= model.shapes().items()
    assert model.trained == sum(parameter.numel() for parameter in policy.trainable_parameters())
    assert model.blocks == policy.layout.blocks


@pytest.mark.parametrize("name", MODELS)
def test_every_named_model_has_an_architecture(name: str):
    model = architecture(name)
    answers = {"qwen2.5-vl-7b": 2048, "qwen3-vl-8b": 8192, "tiny-vlm": 40}
    assert model.tokens == answers.get(name, sum(side**2 for side in MODELS[name].scales or ()))
    assert sum(count(part) for part in model.parts.values()) >= count([model.module])


def test_a_folder_has_none(tmp_path):
    with pytest.raises(ModelError, match="is not written down: give the name of a model"):
        architecture(str(tmp_path))


def test_the_sizes_of_qwen():
    """As the hub counts the released weights."""
    for name, entries in (("qwen2.5-vl-7b", 8_292_166_656), ("qwen3-vl-8b", 8_767_123_696)):
        assert count([architecture(name).module]) == entries
