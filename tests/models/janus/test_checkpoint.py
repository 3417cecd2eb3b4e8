"""Janus checkpoints in both formats: the same model, written back as it was, and refused when it is not whole."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor

from models.errors import ModelError
from models.files import checkpoint
from models.janus.checkpoint import LEFT_OVER, JanusCheckpoint
from models.janus.policy import JanusPolicy
from t2i_rl.cli import main
from tests.conftest import random_janus

EXTRA = {
    "gen_vision_model.quantize.codebook_used": torch.arange(8.0),
    "vision_model.vision_tower.attn_pool.latent": torch.ones(1, 1, 8),
}
PROMPT = ["a photo of a red square and a blue ring"]
Damage = Callable[[Path], object]


def logits(policy: JanusPolicy) -> Tensor:
    return policy.next_logits(policy.prefill(policy.encode(PROMPT), 1, 2))


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in wanted.items()
    )


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Janus as DeepSeek would publish it: half precision, with what transformers has no place for."""
    native, folder = tmp_path_factory.mktemp("native"), tmp_path_factory.mktemp("deepseek")
    random_janus().save(native)
    JanusCheckpoint.open(native).export("deepseek", folder)
    weights = {name: tensor.bfloat16() for name, tensor in tensors(folder).items()}
    save_file(weights | EXTRA, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"something": "of a fork"}))
    (folder / "processor_config.json").write_text('{"processor_class": "VLChatProcessor"}')
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    (tmp_path / "copy").mkdir()
    for path in pristine.iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "copy"


def empty(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name


def test_to_transformers_and_back_bit_for_bit(pristine: Path, tmp_path: Path) -> None:
    native, back = tmp_path / "native", tmp_path / "back"
    assert main(["export", "--model", str(pristine), "--format", "transformers", "--out", str(native)]) == 0
    assert same(load_file(native / LEFT_OVER), EXTRA)
    assert not any("attn_pool" in name or "codebook_used" in name for name in tensors(native))
    assert main(["export", "--model", str(native), "--format", "deepseek", "--out", str(back)]) == 0
    assert same(tensors(back), tensors(pristine))


def test_both_formats_are_one_model(pristine: Path, tmp_path: Path) -> None:
    native = empty(tmp_path, "native")
    JanusCheckpoint.open(pristine).export("transformers", native)
    assert torch.equal(logits(JanusPolicy.load(native)), logits(JanusPolicy.load(pristine)))


def test_transformers_itself_loads_what_is_exported(pristine: Path, tmp_path: Path) -> None:
    from transformers import JanusForConditionalGeneration

    native = empty(tmp_path, "native")
    JanusCheckpoint.open(pristine).export("transformers", native)
    model, report = JanusForConditionalGeneration.from_pretrained(native, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    ours = JanusPolicy.load(pristine).model.state_dict()
    assert same(model.state_dict(), ours)


def test_a_policy_is_saved_in_the_format_it_came_in(folder: Path, tmp_path: Path) -> None:
    before, config = tensors(folder), (folder / "config.json").read_text()
    policy = JanusPolicy.load(folder)
    for path in folder.iterdir():  # nothing is read from there again
        path.unlink()
    with torch.no_grad():
        policy.language_model.norm.weight.mul_(2)
    saved = empty(tmp_path, "saved")
    policy.save(saved)
    after = tensors(saved)
    assert after.keys() == before.keys()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name].to(tensor.dtype))}
    assert changed == {"language_model.model.norm.weight"}
    assert (saved / "config.json").read_text() == config
    assert (saved / "processor_config.json").is_file()
    assert torch.equal(logits(JanusPolicy.load(saved)), logits(policy))


def as_bin(folder: Path) -> None:
    torch.save(tensors(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_old_bin(folder: Path) -> None:
    torch.save(tensors(folder), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink()


def as_sharded_bin(folder: Path) -> None:
    weights = list(tensors(folder).items())
    halves = {"pytorch_model-00001-of-00002.bin": weights[::2], "pytorch_model-00002-of-00002.bin": weights[1::2]}
    for name, half in halves.items():
        torch.save(dict(half), folder / name)
    index = {"weight_map": {key: name for name, half in halves.items() for key, _ in half}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("store", [as_bin, as_old_bin, as_sharded_bin])
def test_every_way_the_weights_are_stored(folder: Path, pristine: Path, store: Damage) -> None:
    store(folder)
    assert torch.equal(logits(JanusPolicy.load(folder)), logits(JanusPolicy.load(pristine)))


def test_shards_of_our_own(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 100_000)
    shards = empty(tmp_path, "shards")
    JanusCheckpoint.open(pristine).export("deepseek", shards)
    files = sorted(path.name for path in shards.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert same({name: t for file in files for name, t in load_file(shards / file).items()}, tensors(pristine))
    assert not list(shards.glob("*.part"))
    assert torch.equal(logits(JanusPolicy.load(shards)), logits(JanusPolicy.load(pristine)))


def test_dtypes_and_devices(pristine: Path) -> None:
    policy = JanusPolicy.load(pristine, torch.bfloat16)
    for name, tensor in policy.model.state_dict().items():
        assert tensor.dtype == (torch.float32 if ".vqmodel." in name else torch.bfloat16), name
    assert not any(tensor.is_meta for tensor in [*policy.model.parameters(), *policy.model.buffers()])
    whole = JanusPolicy.load(pristine).model.get_buffer("model.language_model.rotary_emb.inv_freq")
    assert torch.equal(policy.model.get_buffer("model.language_model.rotary_emb.inv_freq"), whole)


def test_tensors_are_read_one_by_one_when_the_model_is_made(pristine: Path) -> None:
    """What is opened is not read, and what is read for one tensor is let go before the next."""
    opened = JanusCheckpoint.open(pristine)
    alive: list[int] = []
    held: list[object] = []

    def counting(read: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def counted() -> Tensor:
            import weakref

            tensor = read().clone()
            alive.append(sum(ref() is not None for ref in held))
            held.append(weakref.ref(tensor))
            return tensor

        return counted

    for stored in opened.weights.values():
        object.__setattr__(stored, "read", counting(stored.read))
    opened.model(torch.float32, "cpu")
    assert len(alive) > 50 and max(alive) <= 1


def test_without_the_understanding_tower(folder: Path, tmp_path: Path) -> None:
    complete = logits(JanusPolicy.load(folder))
    weights = {name: t for name, t in tensors(folder).items() if not name.startswith(("vision_model.", "aligner."))}
    save_file(weights, folder / "model.safetensors")
    policy = JanusPolicy.load(folder)
    assert torch.equal(logits(policy), complete)
    saved, native = empty(tmp_path, "saved"), empty(tmp_path, "native")
    policy.save(saved)
    assert tensors(saved).keys() == weights.keys()
    JanusCheckpoint.open(folder).export("transformers", native)
    assert torch.equal(logits(JanusPolicy.load(native)), complete)


def test_a_tied_text_head_is_written_out(tmp_path: Path) -> None:
    native, ours = empty(tmp_path, "native"), empty(tmp_path, "ours")
    policy = random_janus()
    policy.model.config.tie_word_embeddings = True
    policy.model.tie_weights()
    policy.save(native)
    assert "lm_head.weight" not in tensors(native)
    again = JanusPolicy.load(native)
    assert again.model.lm_head.weight is again.language_model.embed_tokens.weight
    JanusCheckpoint.open(native).export("deepseek", ours)
    head = tensors(ours)["language_model.lm_head.weight"]
    assert torch.equal(head, policy.language_model.embed_tokens.weight)
    loaded = JanusPolicy.load(ours).model
    assert loaded.lm_head.weight.data_ptr() != loaded.model.language_model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("declared", [{}, {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True}])
def test_one_bos_whatever_the_tokenizer_config_says(folder: Path, declared: dict) -> None:
    """Published tokenizers are byte-level and declared as Llama's; no class adds or leaves out anything here."""
    names = ["<｜begin▁of▁sentence｜>", "<｜▁pad▁｜>", "<begin_of_image>", "<|User|>", "<|Assistant|>"]
    ids = {token: index for index, token in enumerate([*":ĠĊaring", *names])}
    tokenizer = Tokenizer(BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(names)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(declared))
    policy = JanusPolicy(random_janus().model, JanusCheckpoint.open(folder).tokenizer())
    cond, null = policy.encode(["  a ring "]).tensors["ids"][:, 0].tolist()
    text = [ids["<|User|>"], *(ids[sign] for sign in ":ĠaĠringĊĊ"), ids["<|Assistant|>"], ids[":"]]
    assert cond == [ids[names[0]], *text, ids["<begin_of_image>"]]
    assert null == [cond[0], *[ids["<｜▁pad▁｜>"]] * len(text), cond[-1]]


class Bomb:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.write_text, (self.path, "executed"))


def drop(name: str) -> Damage:
    def damage(folder: Path) -> None:
        weights = tensors(folder)
        del weights[name]
        save_file(weights, folder / "model.safetensors")

    return damage


def reshape(name: str) -> Damage:
    def damage(folder: Path) -> None:
        weights = tensors(folder)
        save_file(weights | {name: weights[name][:-1].clone()}, folder / "model.safetensors")

    return damage


def cut(folder: Path) -> None:
    path = next(folder.glob("*model*"))
    path.write_bytes(path.read_bytes()[:-100])


def cut_bin(folder: Path) -> None:
    as_bin(folder)
    cut(folder)


def lose_a_shard(folder: Path) -> None:
    as_sharded_bin(folder)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()


def tear_the_index(folder: Path) -> None:
    as_sharded_bin(folder)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(index.read_text()[:40])


def empty_the_index(folder: Path) -> None:
    as_sharded_bin(folder)
    (folder / "pytorch_model.bin.index.json").write_text("{}")


def misplace(folder: Path) -> None:
    as_sharded_bin(folder)
    index = folder / "pytorch_model.bin.index.json"
    found = json.loads(index.read_text())
    found["weight_map"]["gen_embed.bias"] = "pytorch_model-00001-of-00002.bin"
    index.write_text(json.dumps(found))


def explode(folder: Path) -> None:
    torch.save({"gen_embed.weight": Bomb(folder / "executed")}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def explode_old(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(
        pickle.dumps({"gen_embed.weight": Bomb(folder / "executed")}, protocol=2)
    )
    (folder / "model.safetensors").unlink()


def configure(**settings: object) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return damage


def other_codes(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["gen_vision_config"]["params"]["image_token_size"] = 31
    path.write_text(json.dumps(config))


def one_layer(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["language_config"]["num_hidden_layers"] = 1
    path.write_text(json.dumps(config))


REFUSED: dict[str, tuple[Damage, str]] = {
    "a missing key": (drop("gen_head.vision_head.bias"), "lacks 1 weights, such as gen_head.vision_head.bias"),
    "a missing fused key": (
        drop("vision_model.vision_tower.blocks.0.attn.qkv.bias"),
        "such as vision_model.vision_tower.blocks.0.attn.qkv.bias",
    ),
    "a wrong shape": (reshape("language_model.lm_head.weight"), "language_model.lm_head.weight is ("),
    "another codebook than the config's": (
        other_codes,
        "embedding.weight is (32, 8), but by config and other weights it should be (31, 8)",
    ),
    "fewer layers than there are": (one_layer, "has weights of 2 layers, but its config.json says 1"),
    "torn safetensors": (cut, "model.safetensors is torn"),
    "a torn torch file": (cut_bin, "pytorch_model.bin is torn"),
    "a lost shard": (lose_a_shard, "pytorch_model-00002-of-00002.bin does not exist"),
    "a torn index": (tear_the_index, "pytorch_model.bin.index.json is not JSON"),
    "an index of nothing": (empty_the_index, "pytorch_model.bin.index.json is not an index"),
    "an index of what is not there": (misplace, "gen_embed.bias is not in pytorch_model-00001-of-00002.bin"),
    "an executing pickle": (explode, "holds code, which is never run"),
    "an executing pickle without a zip": (explode_old, "holds code, which is never run"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
    "another family": (configure(model_type="llava"), "model_type 'llava'"),
    "no language model": (configure(language_config=None), "lacks language_config"),
    "sizes that are none": (configure(language_config={"hidden_size": "wide"}), "does not describe a Janus"),
    "no image size": (configure(vision_config={"params": {}}), "lacks vision_config.params.image_size"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json does not exist"),
    "a torn tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{"), "is no tokenizer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_whole_is_refused_with_one_sentence(folder: Path, case: str) -> None:
    damage, sentence = REFUSED[case]
    damage(folder)
    with pytest.raises(ModelError) as caught:
        JanusPolicy.load(folder)
    assert sentence in str(caught.value)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder / "executed").exists()


def test_fewer_layers_in_the_other_format(tmp_path: Path) -> None:
    random_janus().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"has weights of 2 layers, but its config\.json says 1"):
        JanusPolicy.load(tmp_path)


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
def test_a_kernel_that_a_config_names_is_not_fetched(tmp_path: Path, name: str) -> None:
    random_janus().save(tmp_path)
    configure(**{name: "owner/kernel"})(tmp_path)
    assert JanusPolicy.load(tmp_path).model.config._attn_implementation != "owner/kernel"


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    Tokenizer(BPE({"a": 0}, [])).save(str(folder / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"tokenizer\.json has no <begin_of_image>"):
        JanusPolicy.load(folder)


def test_an_export_that_fails_leaves_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut(folder)
    out = tmp_path / "out"
    assert main(["export", "--model", str(folder), "--format", "transformers", "--out", str(out)]) == 2
    assert "is torn" in capsys.readouterr().err
    assert not out.exists() and {path.name for path in tmp_path.iterdir()} == {"copy"}
