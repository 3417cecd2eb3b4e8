"""What decoding reads: the products of the layers as they are now, at the addresses where they were."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from models.lora import LoraPolicy, adapt
from models.parts.rollout_weights import Product
from models.policy import Policy
from models.registry import load
from tests.models.families import save_family

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
FAMILIES = ("janus", "llamagen", "qwen2_5_vl", "qwen3_vl")


def named(kind: tuple[str, bool]) -> str:
    family, adapted = kind
    return f"{family}-adapted" if adapted else family


@pytest.fixture
def layers() -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(16, size) for size in (8, 4, 12)]


@pytest.fixture
def norm() -> LlamaRMSNorm:
    norm = LlamaRMSNorm(16, eps=0.1)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(16))
    return norm


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_layers_that_read_the_same_input_are_one_product(layers: list[nn.Linear], norm: LlamaRMSNorm, bias, rows):
    layers = [layer if bias else nn.Linear(16, layer.out_features, bias=False) for layer in layers]
    product, plain, x, to = Product(), Product(), torch.randn(rows, 16), torch.randn(rows, 24)
    with torch.no_grad():
        product.refresh(layers, norm)
        plain.refresh(layers)
        apart = torch.cat([layer(norm(x)) for layer in layers], dim=-1)
        torch.testing.assert_close(product(x), apart, **CLOSE)
        torch.testing.assert_close(plain.added(norm(x), to=to), apart + to, **CLOSE)
        torch.testing.assert_close(product.wide(x), apart, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_change_are_read_where_they_were(layers: list[nn.Linear], norm: LlamaRMSNorm, dtype: torch.dtype):
    layers, norm, x = [layer.to(dtype) for layer in layers], norm.to(dtype), torch.randn(2, 16, dtype=dtype)
    product = Product()
    with torch.no_grad():
        product.refresh(layers, norm)
        before, where = product(x), (product.weight.data_ptr(), product.bias.data_ptr())
        for parameter in (*layers[1].parameters(), norm.weight):
            parameter.mul_(2)
        product.refresh(layers, norm)
        assert (product.weight.data_ptr(), product.bias.data_ptr()) == where
        assert (product(x) - before).abs().max() > 0.1
        tolerance = CLOSE if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.02}
        torch.testing.assert_close(product(x), torch.cat([layer(norm(x)) for layer in layers], dim=-1), **tolerance)


def test_what_has_not_changed_is_not_copied_again(layers: list[nn.Linear], monkeypatch: pytest.MonkeyPatch):
    product = Product()
    product.refresh(layers)
    monkeypatch.setattr("models.parts.rollout_weights.whole", None)
    product.refresh(layers)


def test_parameters_of_half_precision_become_parts_of_the_product(layers: list[nn.Linear]):
    layers = [layer.bfloat16() for layer in layers]
    parameters = [layer.weight for layer in layers]
    product = Product()
    product.refresh(layers)
    assert all(layer.weight is parameter for layer, parameter in zip(layers, parameters, strict=True))
    at = product.weight.data_ptr()
    assert {parameter.untyped_storage().data_ptr() for parameter in parameters} == {at}
    with torch.no_grad():
        layers[2].weight.fill_(3)
    assert (product.weight.T[12:] == 3).all()  # there is nothing to refresh


def first_logits(policy: Policy) -> Tensor:
    """Of the first token and, through the rollout weights, of the second."""
    state = policy.prefill(policy.encode(["a red ring"]), 1, branches=1)
    policy.append(state, torch.tensor([[1]]))
    return policy.next_logits(state)


def teacher_forced(policy: Policy) -> Tensor:
    tokens = torch.ones(1, policy.layout.tokens, dtype=torch.long)
    return policy.head(policy.hidden(policy.encode(["a red ring"]), tokens, branches=1)[:, :, 1:2])


@pytest.fixture
def policy(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Policy:
    """Of a family, with adapters or without."""
    family, adapted = request.param
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = str(save_family(family, tmp_path / "base"))
    return adapt(load(base), base, rank=2, alpha=4.0) if adapted else load(base)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "policy", [(family, adapted) for family in FAMILIES for adapted in (False, True)], indirect=True, ids=named
)
def test_decoding_after_an_optimizer_step_reads_the_new_weights(policy: Policy, fused: bool):
    """Also a fused one's, which does not count up the versions of what it changes."""
    before, optimizer = first_logits(policy), torch.optim.AdamW(policy.trainable_parameters(), lr=0.05, fused=fused)
    for _ in range(2):  # of an adapter, the first moves one factor alone
        teacher_forced(policy).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(first_logits(policy), teacher_forced(policy), atol=5e-4, rtol=1e-3)
    assert (first_logits(policy) - before).abs().max() > 0.05


@pytest.mark.parametrize("policy", [("janus", True)], indirect=True, ids=named)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_are_added_in_float32_and_rounded_once(policy: LoraPolicy, dtype: torch.dtype):
    policy.base.module.to(dtype)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.normal_()
    layer = policy.layers[0].mlp.down_proj
    product = Product()
    with torch.no_grad():
        product.refresh([layer])
        factors = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        exact = layer.base_layer.weight.double() + 2 * factors[1].double() @ factors[0].double()
    torch.testing.assert_close(product.weight.T.double(), exact.to(dtype).double(), atol=1e-5, rtol=0.004)
    assert layer.base_layer.weight.data_ptr() != product.weight.data_ptr()


@pytest.mark.parametrize(
    "policy", [("janus", False), ("llamagen", False), ("qwen3_vl", False)], indirect=True, ids=named
)
def test_a_policy_of_half_precision_is_saved_whole_after_it_decoded(policy: Policy, tmp_path: Path):
    """Its parameters share storage then."""
    policy.module.bfloat16()
    tensors = {name: tensor.clone() for name, tensor in policy.module.state_dict().items()}
    first_logits(policy)
    policy.save(tmp_path / "saved")
    again = load(str(tmp_path / "saved"), torch.bfloat16).module.state_dict()
    assert tensors.keys() == again.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], again[name])] == []


@pytest.mark.parametrize("policy", [("janus", False)], indirect=True, ids=named)
def test_the_reference_decodes_with_its_own_weights(policy: Policy):
    before = first_logits(policy)
    reference = policy.reference()
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.mul_(1.5)
    assert torch.equal(first_logits(reference), before)
    assert not torch.equal(first_logits(policy), before)
