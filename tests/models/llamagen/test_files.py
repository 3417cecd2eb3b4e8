"""Which files make a LlamaGen, and what is said of those that do not."""

import argparse
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.errors import ModelError
from models.llamagen.policy import LlamaGenPolicy
from models.llamagen.transformer import LlamaGenTransformer, grid_side
from tests.models.tiny_llamagen import CODES, GRID, PIXELS, save_release, transformer_weights, vq_weights

RELEASED = f"t2i_tiny_{PIXELS}.pt"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llamagen")
    save_release(folder)
    return folder


@pytest.fixture
def folder(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to change. The hub is out of reach."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return Path(shutil.copytree(release, tmp_path / "parent" / "llamagen"))


def logits(policy: LlamaGenPolicy) -> Tensor:
    condition = policy.encode(["a photo of a circle", "two rings"])
    tokens = torch.arange(2 * GRID**2).view(2, -1) % CODES
    return policy.head(policy.hidden(condition, tokens, branches=2)).detach()


@pytest.fixture
def expected(folder: Path) -> Tensor:
    return logits(LlamaGenPolicy.load(folder))


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", None])
def test_wrappers_and_stray_entries(folder: Path, expected: Tensor, wrapper: str | None) -> None:
    weights = {
        **transformer_weights(),
        "freqs_cis": torch.zeros(3),
        "layers.0.attention.kv_cache.k_cache": torch.ones(2),
    }
    stray = {"optimizer": {"state": {0: torch.zeros(1)}}, "steps": 3, "args": argparse.Namespace(lr=1e-4)}
    torch.save({wrapper: weights, **stray} if wrapper else {**weights, **stray}, folder / RELEASED)
    assert torch.equal(logits(LlamaGenPolicy.load(folder)), expected)


def test_the_released_size() -> None:
    """GPT-XL: 777.9 million numbers, 36 layers, 20 heads, all read from shapes."""
    width, hidden, codes, rows, caption = 1280, 3584, 16384, 120, 2048
    shapes = {
        "tok_embeddings": (codes, width),
        "output": (codes, width),
        "cls_embedding.cap_proj.fc1": (width, caption),
        "cls_embedding.cap_proj.fc2": (width, width),
        "norm": (width,),
    }
    for layer in range(36):
        shapes |= {
            f"layers.{layer}.attention.wqkv": (3 * width, width),
            f"layers.{layer}.attention.wo": (width, width),
            f"layers.{layer}.feed_forward.w1": (hidden, width),
            f"layers.{layer}.feed_forward.w3": (hidden, width),
            f"layers.{layer}.feed_forward.w2": (width, hidden),
            f"layers.{layer}.attention_norm": (width,),
            f"layers.{layer}.ffn_norm": (width,),
        }
    weights = {f"{name}.weight": torch.empty(shape, device="meta") for name, shape in shapes.items()}
    weights["cls_embedding.uncond_embedding"] = torch.empty(rows, caption, device="meta")
    transformer = LlamaGenTransformer.from_weights(weights, {}, Path("t2i_XL_stage1_256.pt"))
    assert round(sum(tensor.numel() for tensor in transformer.named_weights().values()) / 1e6, 1) == 777.9
    assert transformer.heads == (20, 20)
    assert grid_side({}, Path("t2i_XL_stage2_512.pt"), pixels_per_token=16) == 32


def say_the_size(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"block_size": GRID**2}))


def in_one_file(folder: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, folder / "model.safetensors")


def in_a_pickle(folder: Path, weights: dict[str, Tensor]) -> None:
    torch.save(weights, folder / "pytorch_model.bin")


def in_shards(folder: Path, weights: dict[str, Tensor]) -> None:
    names = list(weights)
    parts = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("write", [in_one_file, in_a_pickle, in_shards])
def test_a_copy_in_transformers_style(
    folder: Path, expected: Tensor, tmp_path: Path, write: Callable[[Path, dict[str, Tensor]], None]
) -> None:
    (folder / RELEASED).unlink()
    copied = transformer_weights("transformers")
    write(folder, {**copied, "t5_model.shared.weight": torch.zeros(2)})
    (folder / "config.json").write_text(json.dumps({"block_size": GRID**2, "caption_dim": 24}))
    policy = LlamaGenPolicy.load(folder)
    assert torch.equal(logits(policy), expected)

    policy.save(tmp_path / "saved")
    assert policy.transformer.named_weights().keys() == copied.keys()
    assert torch.equal(logits(LlamaGenPolicy.load(tmp_path / "saved")), expected)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["caption_dim"] == 24


@pytest.mark.parametrize("place", ["t5/flan-t5-xl", "t5-ckpt/flan-t5-xl", "../t5"])
def test_text_encoder_and_tokenizer_may_lie_elsewhere(folder: Path, expected: Tensor, place: str) -> None:
    (folder / "t5").rename(folder / "moved")
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / "moved").rename(folder / place)
    (folder / "vq_ds16_t2i.pt").rename(folder.parent / "vq_ds16_t2i.pt")
    assert torch.equal(logits(LlamaGenPolicy.load(folder)), expected)


def test_a_file_instead_of_its_folder(folder: Path, expected: Tensor) -> None:
    shutil.copy(folder / RELEASED, folder / "t2i_other_32.pt")
    with pytest.raises(ModelError, match=rf"holds several transformers \(t2i_other_32.pt, {RELEASED}\): name the file"):
        LlamaGenPolicy.load(folder)
    assert torch.equal(logits(LlamaGenPolicy.load(folder / RELEASED)), expected)
    assert LlamaGenPolicy.load(folder / "t2i_other_32.pt").layout.maps == ((8, 8),)


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = transformer_weights()
    change(weights)
    torch.save({"model": weights}, folder / RELEASED)


def no_transformer(folder: Path) -> None:
    (folder / RELEASED).unlink()


def no_tokenizer(folder: Path) -> None:
    (folder / "vq_ds16_t2i.pt").unlink()


def no_text_encoder(folder: Path) -> None:
    shutil.rmtree(folder / "t5")


def no_text_tokenizer(folder: Path) -> None:
    (folder / "t5" / "tokenizer_config.json").unlink()


def missing_key(folder: Path) -> None:
    edit(folder, lambda weights: weights.pop("layers.1.attention.wqkv.weight"))


def missing_size(folder: Path) -> None:
    edit(folder, lambda weights: weights.pop("cls_embedding.uncond_embedding"))


def missing_layer(folder: Path) -> None:
    edit(folder, lambda weights: [weights.pop(name) for name in list(weights) if name.startswith("layers.1.")])
    (folder / "config.json").write_text(json.dumps({"n_layer": 2, "block_size": GRID**2}))


def misshapen_key(folder: Path) -> None:
    edit(folder, lambda weights: weights.update({"layers.0.feed_forward.w2.weight": torch.zeros(96, 128)}))


def not_a_matrix(folder: Path) -> None:
    edit(folder, lambda weights: weights.update({"tok_embeddings.weight": torch.zeros(7)}))


def missing_vq_key(folder: Path) -> None:
    weights = vq_weights()
    del weights["decoder.mid.1.q.weight"]
    torch.save({"model": weights}, folder / "vq_ds16_t2i.pt")


def another_codebook(folder: Path) -> None:
    torch.save({"model": vq_weights(codes=CODES * 2)}, folder / "vq_ds16_t2i.pt")


def truncated(folder: Path) -> None:
    os.truncate(folder / RELEASED, 10_000)


def empty(folder: Path) -> None:
    os.truncate(folder / RELEASED, 0)


def a_list(folder: Path) -> None:
    torch.save([torch.zeros(2)], folder / RELEASED)


def another_model(folder: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(2)}}, folder / RELEASED)


def nameless_size(folder: Path) -> None:
    (folder / RELEASED).rename(folder / "t2i_tiny.pt")


def no_square(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"block_size": 15}))


def odd_heads(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"n_head": 3}))


def heads_in_words(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"n_head": "two"}))


def fewer_layers(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"n_layer": 1}))


def epsilon_in_words(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"norm_eps": "small"}))


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def no_interval(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"cfg_interval": "all"}))


def no_choice(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"clean_captions": "no"}))


def missing_shard(folder: Path) -> None:
    say_the_size(folder)
    in_shards(folder, transformer_weights("transformers"))
    (folder / "model-2-of-2.safetensors").unlink()


def broken_index(folder: Path) -> None:
    say_the_size(folder)
    (folder / "model.safetensors.index.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_transformer, r"has no transformer: neither a t2i_\*.pt as released nor model.safetensors"),
        (no_tokenizer, r"vq_ds16_t2i.pt does not exist: .*peizesun/llamagen_t2i"),
        (no_text_encoder, r"google/flan-t5-xl is neither a path here, .*nor can it be had from the hub"),
        (no_text_tokenizer, r"t5/tokenizer_config.json does not exist: put the text encoder"),
        (missing_key, rf"{RELEASED} lacks 1 weights, such as layers.1.attention.wqkv.weight"),
        (missing_size, rf"{RELEASED} lacks the weight cls_embedding.uncond_embedding"),
        (missing_layer, rf"{RELEASED} has 1 layers, but its config.json says 2: set n_layer to 1, or copy"),
        (misshapen_key, r"layers.0.feed_forward.w2.weight is \(96, 128\), .*\(128, 96\)"),
        (not_a_matrix, r"tok_embeddings.weight is \(7,\), not a matrix"),
        (missing_vq_key, r"vq_ds16_t2i.pt lacks 1 weights, such as decoder.mid.1.q.weight"),
        (another_codebook, rf"has {2 * CODES} codes, but .*{RELEASED} predicts {CODES}"),
        (truncated, rf"{RELEASED} is torn"),
        (empty, rf"{RELEASED} is torn"),
        (a_list, rf"{RELEASED} does not hold tensors by name"),
        (another_model, rf"{RELEASED} holds no LlamaGen, for it has no tok_embeddings.weight"),
        (nameless_size, r"nothing tells the image size of .*t2i_tiny.pt: .*block_size.*config.json"),
        (no_square, r"block_size 15: it has to be a square number"),
        (odd_heads, r"a width of 128 does not divide into 3 heads"),
        (heads_in_words, r"n_head 'two': it has to be a whole number"),
        (fewer_layers, rf"{RELEASED} has 2 layers, but its config.json says 1: set n_layer to 2"),
        (epsilon_in_words, r"norm_eps 'small': it has to be a number above 0"),
        (broken_config, r"config.json is not JSON"),
        (no_interval, r"cfg_interval 'all': it has to be a whole number from -1"),
        (no_choice, r"clean_captions 'no': it has to be true or false"),
        (missing_shard, r"model-2-of-2.safetensors"),
        (broken_index, r"model.safetensors.index.json is not an index of weights"),
    ],
)
def test_what_is_not_all_there_is_refused(folder: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=said) as refused:
        LlamaGenPolicy.load(folder)
    assert "\n" not in str(refused.value)


def test_the_options_of_a_config(folder: Path, tmp_path: Path) -> None:
    """They are saved with what is trained from there."""
    (folder / "config.json").write_text(json.dumps({"cfg_interval": 3, "clean_captions": False}))
    LlamaGenPolicy.load(folder).save(tmp_path / "saved")
    for place in (folder, tmp_path / "saved"):
        policy = LlamaGenPolicy.load(place)
        assert policy.guidance(7.5).tolist() == [7.5] * 5 + [1.0] * (GRID**2 - 5)
        assert not policy.text.clean


def test_a_path_that_does_not_exist(folder: Path) -> None:
    with pytest.raises(ModelError, match="nowhere does not exist, and is no owner/name"):
        LlamaGenPolicy.load(folder / "nowhere")


class Payload:
    """Unpickling it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("file", [RELEASED, "vq_ds16_t2i.pt", "pytorch_model.bin"])
def test_code_in_a_checkpoint_is_never_run(folder: Path, tmp_path: Path, file: str, protocol: int) -> None:
    mark = tmp_path / "ran"
    say_the_size(folder)
    torch.save({"model": transformer_weights(), "extra": Payload(mark)}, folder / file, pickle_protocol=protocol)
    with pytest.raises(ModelError, match=rf"{file} is torn, or holds code, which is never run"):
        LlamaGenPolicy.load(folder)
    (folder / file).write_bytes(pickle.dumps(Payload(mark), protocol))
    with pytest.raises(ModelError, match=rf"{file} is torn"):
        LlamaGenPolicy.load(folder)
    assert not mark.exists()
