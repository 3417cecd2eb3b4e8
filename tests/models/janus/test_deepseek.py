"""DeepSeek's names, shapes and config, against the published sizes of Janus-Pro."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from models.errors import ModelError
from models.files.checkpoint import StoredTensor, in_memory
from models.janus import deepseek
from models.janus.checkpoint import on_meta

Shapes = dict[str, tuple[int, ...]]

# What the published configs say; the 7B leaves the language model's widths to Llama's defaults.
LANGUAGE = {"max_position_embeddings": 16384, "model_type": "llama", "torch_dtype": "bfloat16", "vocab_size": 102400}
SIZES = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
    "7b": {"num_hidden_layers": 30},
}
WIDTHS = {"1b": (2048, 5632, 24), "7b": (4096, 11008, 30)}  # hidden, MLP, layers


def official_config(size: str) -> dict:
    width = WIDTHS[size][0]
    aligner = {"depth": 2, "n_embed": width, "projector_type": "mlp_gelu"}
    return {
        "model_type": "multi_modality",
        "language_config": LANGUAGE | SIZES[size],
        "vision_config": {"cls": "CLIPVisionTower", "params": {"image_size": 384}},
        "aligner_config": {"cls": "MlpProjector", "params": aligner | {"input_dim": 1024}},
        "gen_vision_config": {"cls": "VQ-16", "params": {"image_token_size": 16384, "n_embed": 8}},
        "gen_aligner_config": {"cls": "MlpProjector", "params": aligner | {"input_dim": 8}},
        "gen_head_config": {
            "cls": "vision_head",
            "params": {"image_token_embed": width, "image_token_size": 16384, "n_embed": width},
        },
    }


def layer(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def residual(name: str, before: int, after: int) -> Shapes:
    shapes = layer(f"{name}.norm1", before) | layer(f"{name}.conv1", after, before, 3, 3)
    shapes |= layer(f"{name}.norm2", after) | layer(f"{name}.conv2", after, after, 3, 3)
    return shapes | (layer(f"{name}.nin_shortcut", after, before, 1, 1) if before != after else {})


def attention(name: str, width: int) -> Shapes:
    parts = [layer(f"{name}.{part}", width, width, 1, 1) for part in ("q", "k", "v", "proj_out")]
    return {key: shape for part in [layer(f"{name}.norm", width), *parts] for key, shape in part.items()}


def vq16() -> Shapes:
    """Base 128, multipliers 1, 1, 2, 2, 4; decoder level 0 is the coarsest."""
    widths = [128, 128, 256, 256, 512]
    shapes: Shapes = {}

    def network(name: str, levels: list[int], blocks: int, before: int, resample: str) -> None:
        for index, after in enumerate(levels):
            for block in range(blocks):
                shapes.update(residual(f"{name}.conv_blocks.{index}.res.{block}", before, after))
                before = after
                if after == 512:
                    shapes.update(attention(f"{name}.conv_blocks.{index}.attn.{block}", after))
            if index < 4:
                shapes.update(layer(f"{name}.conv_blocks.{index}.{resample}.conv", after, after, 3, 3))
        shapes.update(residual(f"{name}.mid.0", 512, 512) | residual(f"{name}.mid.2", 512, 512))
        shapes.update(attention(f"{name}.mid.1", 512))
        shapes.update(layer(f"{name}.norm_out", before))

    network("encoder", widths, 2, 128, "downsample")
    network("decoder", widths[::-1], 3, 512, "upsample")
    shapes |= layer("encoder.conv_in", 128, 3, 3, 3) | layer("encoder.conv_out", 256, 512, 3, 3)
    shapes |= layer("decoder.conv_in", 512, 256, 3, 3) | layer("decoder.conv_out", 3, 128, 3, 3)
    shapes |= layer("quant_conv", 8, 256, 1, 1) | layer("post_quant_conv", 256, 8, 1, 1)
    return shapes | {"quantize.embedding.weight": (16384, 8)}


def siglip() -> Iterator[Shapes]:
    tower = "vision_model.vision_tower"
    yield {f"{tower}.pos_embed": (1, 576, 1024)} | layer(f"{tower}.patch_embed.proj", 1024, 3, 16, 16)
    for index in range(24):
        block = f"{tower}.blocks.{index}"
        yield layer(f"{block}.norm1", 1024) | layer(f"{block}.norm2", 1024)
        yield layer(f"{block}.attn.qkv", 3072, 1024) | layer(f"{block}.attn.proj", 1024, 1024)
        yield layer(f"{block}.mlp.fc1", 4096, 1024) | layer(f"{block}.mlp.fc2", 1024, 4096)
    yield layer(f"{tower}.norm", 1024)


def official_shapes(size: str) -> Shapes:
    width, mlp, layers = WIDTHS[size]
    shapes: Shapes = {
        "language_model.model.embed_tokens.weight": (102400, width),
        "language_model.model.norm.weight": (width,),
        "language_model.lm_head.weight": (102400, width),
        "gen_embed.weight": (16384, 8),
    }
    for index in range(layers):
        block = f"language_model.model.layers.{index}"
        shapes |= {f"{block}.self_attn.{part}_proj.weight": (width, width) for part in "qkvo"}
        shapes |= {f"{block}.mlp.{part}_proj.weight": (mlp, width) for part in ("gate", "up")}
        shapes |= {f"{block}.mlp.down_proj.weight": (width, mlp)}
        shapes |= {f"{block}.{part}_layernorm.weight": (width,) for part in ("input", "post_attention")}
    shapes |= layer("gen_aligner.layers.0", width, 8) | layer("gen_aligner.layers.2", width, width)
    shapes |= layer("aligner.layers.0", width, 1024) | layer("aligner.layers.2", width, width)
    shapes |= layer("gen_head.output_mlp_projector", width, width) | layer("gen_head.vision_head", 16384, width)
    shapes |= {f"gen_vision_model.{name}": shape for name, shape in vq16().items()}
    return shapes | {name: shape for part in siglip() for name, shape in part.items()}


EXTRA: Shapes = {
    "gen_vision_model.quantize.codebook_used": (65536,),
    "vision_model.vision_tower.attn_pool.latent": (1, 1, 1024),
    "vision_model.vision_tower.attn_pool.kv.weight": (2048, 1024),
    "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": (64,),
}


def on_paper(shapes: Shapes) -> dict[str, StoredTensor]:
    return in_memory({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})


@pytest.mark.parametrize("size", ["1b", "7b"])
def test_true_sizes(size: str) -> None:
    """The published names and shapes are those of the model that the config builds: none missing, none over."""
    official = official_shapes(size)
    weights = on_paper(official | EXTRA)
    config = deepseek.janus_config(Path("config.json"), official_config(size), weights)
    wanted = on_meta(config, tower=True).state_dict()
    left = {name for name in weights if deepseek.NEVER_READ.search(name)}
    placed = deepseek.to_transformers({name: stored for name, stored in weights.items() if name not in left})
    assert {name: stored.shape for name, stored in placed.items()} == {
        name: tuple(tensor.shape) for name, tensor in wanted.items()
    }
    assert left == EXTRA.keys()
    assert {name: stored.shape for name, stored in deepseek.to_deepseek(placed).items()} == official

    text, vision, vq = config.text_config, config.vision_config, config.vq_config
    assert (text.rms_norm_eps, text.rope_parameters["rope_theta"]) == (1e-6, 10000)
    assert text.hidden_size // text.num_attention_heads == 128
    assert text.num_attention_heads == text.num_key_value_heads
    assert (vision.num_attention_heads, vq.num_patches, vision.num_image_tokens) == (16, 24, 576)


def test_the_vq_has_the_published_number_of_parameters() -> None:
    shapes = vq16()
    count = {part: sum(torch.Size(s).numel() for n, s in shapes.items() if part in n) for part in ("", "decoder.")}
    assert (round(count[""] / 1e5), round(count["decoder."] / 1e5)) == (719, 424)


@pytest.mark.parametrize("size", ["1b", "7b"])
def test_the_config_there_and_back(size: str) -> None:
    weights = on_paper(official_shapes(size))
    config = deepseek.janus_config(Path("config.json"), official_config(size), weights)
    again = deepseek.janus_config(Path("config.json"), deepseek.deepseek_config(config), weights)
    assert again.to_dict() == config.to_dict()
    theirs, ours = official_config(size), deepseek.deepseek_config(config)
    for section in ("aligner_config", "gen_vision_config", "gen_aligner_config", "gen_head_config"):
        assert ours[section]["params"] == theirs[section]["params"]
        assert ours[section]["cls"] == theirs[section]["cls"]


def test_fused_attention_is_split_into_q_k_v_and_joined() -> None:
    name = "vision_model.vision_tower.blocks.3.attn.qkv.weight"
    fused = torch.arange(18.0).view(6, 3)
    placed = deepseek.to_transformers(in_memory({name: fused}))
    layer = "model.vision_model.encoder.layers.3.self_attn"
    for index, part in enumerate("qkv"):
        assert torch.equal(placed[f"{layer}.{part}_proj.weight"].read(), fused[2 * index : 2 * index + 2])
    lm_head = in_memory({"lm_head.weight": torch.zeros(1)})
    assert torch.equal(deepseek.to_deepseek({**placed, **lm_head})[name].read(), fused)


@pytest.mark.parametrize("section", ["vision_config", "gen_vision_config", "gen_aligner_config", "gen_head_config"])
def test_a_config_without_a_section(section: str) -> None:
    config = official_config("1b")
    del config[section]
    with pytest.raises(ModelError, match=rf"some/config.json lacks {section}\.params\.\w+: copy"):
        deepseek.janus_config(Path("some/config.json"), config, on_paper(official_shapes("1b")))


def test_a_vq_without_the_weight_that_sizes_it() -> None:
    shapes = official_shapes("1b")
    del shapes["gen_vision_model.encoder.conv_in.weight"]
    with pytest.raises(ModelError, match=r"lacks the weight gen_vision_model\.encoder\.conv_in\.weight: copy"):
        deepseek.janus_config(Path("config.json"), official_config("1b"), on_paper(shapes))
