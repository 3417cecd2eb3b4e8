"""Adapters on every family: zero at first, the base untouched, saved, merged, refused with a sentence."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eval.records.provenance import model_weights
from models.errors import ModelError
from models.export import merge
from models.files.reading import digest, reading
from models.lora import LoraPolicy, adapt
from models.policy import Policy
from models.registry import load
from t2i_rl.cli import main
from t2i_rl.rollout.log_probs import log_probs
from tests.models.families import ALL_FAMILIES, save_family

PROMPTS = ["a photo of a red circle", "a photo of two squares"]


@pytest.fixture(params=ALL_FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return save_family(request.param, tmp_path / "base")


def drawn(policy: Policy) -> Tensor:
    return torch.randint(32, (len(PROMPTS), policy.layout.tokens), generator=torch.Generator().manual_seed(0))


def scores(policy: Policy) -> Tensor:
    with torch.no_grad():
        return log_probs(policy, policy.encode(PROMPTS), drawn(policy))


def shaken(base: Path) -> LoraPolicy:
    """Adapters that do something in every layer they are on."""
    policy = adapt(load(str(base)), str(base), rank=2, alpha=4.0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


def test_other_weights_behind_the_name_of_the_base_are_refused(tmp_path: Path):
    base, folder = save_family("janus", tmp_path / "base"), tmp_path / "adapter"
    with reading() as files:
        plain = load(str(base))
    adapt(plain, str(base), rank=2, alpha=4.0, digest=digest(files)).save(folder)
    again = load(str(folder))
    assert isinstance(again, LoraPolicy) and again.digest == digest(files)
    kept = model_weights(str(folder))
    path = base / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, **{name: tensors[name] + 1 for name in list(tensors)[:1]}}, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"was trained on other weights than its base .* holds now \(SHA-256"):
        load(str(folder))
    (folder / "base.json").unlink()  # as older ones are
    load(str(folder))
    assert model_weights(str(folder)) != kept


def test_new_adapters_change_nothing_and_share_every_weight(base: Path):
    plain = load(str(base))
    policy = adapt(load(str(base)), str(base), rank=2, alpha=4.0)
    assert torch.equal(scores(policy), scores(plain))
    own = {parameter.data_ptr() for parameter in policy.module.parameters() if not parameter.requires_grad}
    assert own == {parameter.data_ptr() for parameter in policy.base.module.parameters()}
    assert not list(policy.base.trainable_parameters())
    assert policy.reference() is policy.base


def test_every_adapter_gets_gradient_and_nothing_else_does(base: Path):
    """A linear layer whose weight is read past its adapter would leave that without gradient."""
    policy = shaken(base)
    log_probs(policy, policy.encode(PROMPTS), drawn(policy)).sum().backward()
    named = dict(policy.module.named_parameters())
    moved = {name for name, parameter in named.items() if parameter.grad is not None and parameter.grad.any()}
    assert moved == {name for name in named if "lora_" in name}
    assert len(moved) == 2 * sum(isinstance(module, torch.nn.Linear) for module in policy.base.layers.modules())


def test_the_reference_stays_the_base(base: Path):
    policy = shaken(base)
    assert (scores(policy) - scores(policy.reference())).abs().max() > 0.1
    assert torch.equal(scores(policy.reference()), scores(load(str(base))))


def test_saved_adapters_and_merged_weights_are_the_same_policy(base: Path, tmp_path: Path):
    policy = shaken(base)
    policy.save(tmp_path / "adapters")
    assert {path.name for path in (tmp_path / "adapters").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    again = load(str(tmp_path / "adapters"))
    assert isinstance(again, LoraPolicy) and torch.equal(scores(again), scores(policy))
    merge(str(tmp_path / "adapters"), tmp_path / "merged", torch.float32)
    merged = load(str(tmp_path / "merged"))
    assert not isinstance(merged, LoraPolicy)
    torch.testing.assert_close(scores(merged), scores(policy), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("base", ["llamagen"], indirect=True)
def test_only_janus_has_another_format(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shaken(base).save(tmp_path / "adapters")
    words = ["export", "--model", str(tmp_path / "adapters"), "--out", str(tmp_path / "out"), "--format", "deepseek"]
    assert main(words) == 2
    assert "adapters adapts no Janus, and only Janus has two formats" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("base", ["janus"], indirect=True)
class TestOnJanus:
    def test_targets_choose_the_layers(self, base: Path):
        policy = adapt(load(str(base)), str(base), rank=2, alpha=4.0, targets=["q_proj", "v_proj"])
        adapted = {
            name.split(".lora_")[0].rpartition(".")[2]
            for name, p in policy.module.named_parameters()
            if p.requires_grad
        }
        assert adapted == {"q_proj", "v_proj"}
        with pytest.raises(ModelError, match=r"lora.targets has wqkv, but the layers of .* have down_proj, gate_proj"):
            adapt(load(str(base)), str(base), rank=2, alpha=4.0, targets=["wqkv"])

    def test_peft_itself_reads_what_is_saved(self, base: Path, tmp_path: Path):
        from peft import PeftModel

        policy = shaken(base)
        policy.save(tmp_path / "adapters")
        other = load(str(base))
        PeftModel.from_pretrained(other.module, tmp_path / "adapters")
        assert torch.equal(scores(other), scores(policy))

    def test_an_adapter_in_the_other_format_merges_too(self, base: Path, tmp_path: Path):
        shaken(base).save(tmp_path / "adapters")
        words = ["export", "--model", str(tmp_path / "adapters"), "--out", str(tmp_path / "out")]
        assert main([*words, "--format", "deepseek"]) == 0
        assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "multi_modality"
        assert [path.name for path in tmp_path.glob(".*")] == []
        expected = scores(load(str(tmp_path / "adapters")))
        torch.testing.assert_close(scores(load(str(tmp_path / "out"))), expected, atol=1e-4, rtol=1e-4)

    def test_without_peft_the_command_that_installs_it(self, base: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(ModelError, match=r"pip install -e \."):
            adapt(load(str(base)), str(base), rank=2, alpha=4.0)

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
            ({"base_model_name_or_path": "nowhere"}, "needs its base nowhere: unknown model"),
            ({"use_dora": True}, "use_dora True: only plain LoRA"),
            ({"alora_invocation_tokens": [3]}, r"alora_invocation_tokens \[3\]: only plain LoRA"),
            ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4', which changed the base"),
            ({"r": 0}, "describes no LoRA"),
            ({"r": 3}, r"has r 3, but .*lora_A.weight is \(2, 48\)"),
            ({"target_modules": ["q_proj"]}, "weights that this model has no place for"),
            ({"target_modules": 3}, "target_modules 3"),
        ],
    )
    def test_what_is_no_adapter_is_refused(self, base: Path, tmp_path: Path, change: dict, says: str):
        folder = tmp_path / "adapters"
        shaken(base).save(folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelError, match=says):
            load(str(folder))

    def test_a_torn_adapter_is_refused(self, base: Path, tmp_path: Path):
        folder = tmp_path / "adapters"
        shaken(base).save(folder)
        file = folder / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-9])
        with pytest.raises(ModelError, match=r"adapter_model.safetensors is torn"):
            load(str(folder))
