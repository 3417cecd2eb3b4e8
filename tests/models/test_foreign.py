"""What a checkpoint holds beyond what is asked for: ignored by name or refused with one sentence, in every family."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.errors import ModelError
from models.janus.checkpoint import JanusCheckpoint
from models.lora import adapt
from models.registry import load
from tests.models.families import save_family
from tests.models.tiny_llamagen import transformer_weights, vq_weights

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]

# A kind of file: the family it belongs to, where it lies, a matrix in it, and what is in it but never read.
FILES: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "janus": (
        "janus",
        "model.safetensors",
        "model.language_model.layers.0.self_attn.q_proj.weight",
        ("model.language_model.rotary_emb.inv_freq", "model.vision_model.embeddings.position_ids"),
    ),
    "deepseek": (
        "deepseek",
        "model.safetensors",
        "language_model.model.layers.0.self_attn.q_proj.weight",
        (
            "vision_model.vision_tower.attn_pool.latent",
            "gen_vision_model.quantize.codebook_used",
            "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
        ),
    ),
    "llamagen": (
        "llamagen",
        "model.safetensors",
        "layers.0.attention.wqkv.weight",
        ("freqs_cis", "causal_mask", "layers.0.attention.kv_cache.k_cache", "t5_model.shared.weight"),
    ),
    "llamagen copy": (
        "llamagen copy",
        "model.safetensors",
        "model.layers.0.self_attn.q_proj.weight",
        ("t5_model.shared.weight", "model.rotary_emb.inv_freq"),
    ),
    "llamagen vq": ("llamagen", "vq_ds16_t2i.safetensors", "quantize.embedding.weight", ("quantize.codebook_used",)),
    "star": (
        "star",
        "star.safetensors",
        "blocks.0.attn.mat_qkv.weight",
        ("feat_extract_blocks.0.attn.proj.bias", "pos_start_last", "attn_bias_for_masking"),
    ),
    "star vae": ("star", "vae.safetensors", "quantize.embedding.weight", ("quantize.ema_vocab_hit_SV",)),
    "qwen2.5": (
        "qwen2_5_vl",
        "model.safetensors",
        "model.layers.0.self_attn.q_proj.weight",
        ("model.layers.0.self_attn.rotary_emb.inv_freq",),
    ),
    "qwen3": (
        "qwen3_vl",
        "model.safetensors",
        "model.language_model.layers.0.self_attn.q_proj.weight",
        ("model.language_model.rotary_emb.inv_freq",),
    ),
    "t5": (
        "llamagen",
        "t5/model.safetensors",
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        ("decoder.final_layer_norm.weight", "lm_head.weight"),
    ),
    "clip": (
        "star",
        "text_encoder/model.safetensors",
        "encoder.layers.0.self_attn.q_proj.weight",
        ("embeddings.position_ids", "vision_model.post_layernorm.weight", "logit_scale"),
    ),
}


def save(family: str, folder: Path) -> None:
    if family == "deepseek":
        save_family("janus", folder.parent / "native")
        folder.mkdir()
        JanusCheckpoint.open(folder.parent / "native").export("deepseek", folder)
    elif family.startswith("llamagen"):
        save_family("llamagen", folder)
        for released in folder.glob("*.pt"):
            released.unlink()
        naming = "original" if family == "llamagen" else "transformers"
        save_file(transformer_weights(naming), folder / "model.safetensors")
        save_file(dict(vq_weights()), folder / "vq_ds16_t2i.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "llamagen", "block_size": 16}))
    else:
        save_family(family, folder)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "model"


def change(path: Path, edit: Change) -> None:
    save_file(edit({name: tensor.clone() for name, tensor in load_file(path).items()}), path, {"format": "pt"})


def use(folder: Path) -> Tensor:
    """Load it all, the text encoder too."""
    policy = load(str(folder))
    condition = policy.encode(["a photo of a red circle"])
    return policy.next_logits(policy.prefill(condition, 1, branches=len(next(iter(condition.tensors.values())))))


def quantized(name: str) -> Change:
    """As int8 is saved: codes under the plain name, their scale beside them."""
    return lambda found: (
        found
        | {
            name: (found[name] * 10).to(torch.int8),
            name.replace(".weight", ".SCB"): torch.ones(2),
        }
    )


def beside(name: str) -> Change:
    stem = name.removesuffix(".weight")
    return lambda found: found | {f"{stem}.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}


def unmerged(name: str) -> Change:
    stem = name.removesuffix(".weight")
    return lambda found: {
        (f"{stem}.base_layer.weight" if key == name else key): tensor for key, tensor in found.items()
    }


def prefixed(prefix: str) -> Change:
    return lambda found: {prefix + key: tensor for key, tensor in found.items()}


@pytest.mark.parametrize("kind", FILES)
def test_what_is_never_read_is_ignored_by_name(kind: str, folder: Path):
    family, file, _, ignored = FILES[kind]
    save(family, folder)
    expected = use(folder)
    change(folder / file, lambda found: found | {name: torch.ones(2, dtype=torch.int64) for name in ignored})
    for cached in folder.parent.glob("cache/**/*.safetensors"):
        cached.unlink()
    assert torch.equal(use(folder), expected)


@pytest.mark.parametrize("kind", FILES)
def test_what_has_no_place_is_refused(kind: str, folder: Path):
    """One loading after another from one folder: each sentence names the tensor and the way out."""
    family, file, name, _ = FILES[kind]
    save(family, folder)
    whole = (folder / file).read_bytes()
    stem = name.removesuffix(".weight")
    cases: list[tuple[Change, str, str]] = [
        (quantized(name), f"{name} is int8", "give the unquantised checkpoint"),
        (lambda found: found | {name: found[name].to(torch.float8_e4m3fn)}, f"{name} is float8_e4m3fn", "unquantised"),
        (beside(name), f"has 2 weights that this model has no place for, such as {stem}.lora_A", "merge them"),
        (unmerged(name), f"such as {stem}.base_layer.weight", "merge them"),
        (prefixed("module."), "with 'module' in their names", "take 'module.' out of the names"),
        (prefixed("_orig_mod."), "with '_orig_mod' in their names", "take '_orig_mod.' out of the names"),
        (lambda found: found | {f"{stem}.gate": torch.ones(2)}, f"{stem.split('.', 1)[1]}.gate", "no place"),
    ]
    for edit, *said in cases:
        (folder / file).write_bytes(whole)
        change(folder / file, edit)
        with pytest.raises(ModelError) as refused:
            use(folder)
        message = str(refused.value)
        assert all(part in message for part in said), (said, message)
        assert str(folder) in message and "\n" not in message


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("janus", "config.json"),
        ("deepseek", "config.json"),
        ("llamagen", "config.json"),
        ("star", "config.json"),
        ("qwen2_5_vl", "config.json"),
        ("llamagen", "t5/config.json"),
        ("star", "text_encoder/config.json"),
    ],
)
def test_a_config_that_speaks_of_quantisation(family: str, config: str, folder: Path):
    save(family, folder)
    path = folder / config
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(ModelError, match=r"config\.json .*quantization_config"):
        use(folder)


def test_what_lies_beside_transformers_weights_for_the_other_format(folder: Path):
    save("janus", folder)
    save_file({"language_model.model.norm.weight": torch.ones(2)}, folder / "deepseek_only.safetensors")
    with pytest.raises(ModelError, match=r"deepseek_only.safetensors has language_model.model.norm.weight, which"):
        use(folder)


class TestAdapters:
    @pytest.fixture
    def adapter(self, folder: Path, tmp_path: Path) -> Path:
        save("janus", folder)
        adapt(load(str(folder)), str(folder), 2, 4.0, ["q_proj"]).save(tmp_path / "adapter")
        return tmp_path / "adapter"

    def name_base(self, adapter: Path, base: Path) -> None:
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(base)}))

    def test_the_base_is_a_whole_model(self, adapter: Path, tmp_path: Path):
        """Its own folder, and two that name each other."""
        (tmp_path / "other").mkdir()
        for path in adapter.iterdir():
            (tmp_path / "other" / path.name).write_bytes(path.read_bytes())
        self.name_base(tmp_path / "other", adapter)
        for base in (adapter, tmp_path / "other"):
            self.name_base(adapter, base)
            with pytest.raises(ModelError, match=r"adapter_config.json names .*: the base of an adapter is a whole"):
                load(str(adapter))

    def test_codes_are_refused(self, adapter: Path):
        change(adapter / "adapter_model.safetensors", lambda found: {k: t.to(torch.int8) for k, t in found.items()})
        with pytest.raises(ModelError, match=r"lora_A.weight is int8 .*give the unquantised"):
            load(str(adapter))

    def test_a_rank_that_the_weights_do_not_have_is_never_made(self, adapter: Path):
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 10**9}))
        with pytest.raises(ModelError, match=r"has r 1000000000, but .*lora_A.weight is \(2, 32\)"):
            load(str(adapter))
