"""Packed linear layers against the plain ones: the same products, of the weights as they were."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.lora import LoraPolicy, adapt
from models.parts.packed import PackedLinear, packed
from models.registry import load
from tests.models.families import save_family

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


class Tree(nn.Module):
    """Layers in lists inside lists, other parameters, a buffer, and a place that is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 16)
        self.layers = nn.ModuleList(
            nn.ModuleList([nn.Linear(16, 16, bias=False), nn.Linear(16, 16), nn.LayerNorm(16)]) for _ in range(2)
        )
        self.register_buffer("shift", torch.randn(16))
        self.absent: nn.Module | None
        self.register_module("absent", None)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.get_buffer("shift")
        for first, second, norm in self.layers:
            x = x + norm(second(torch.relu(first(x))))
        return x


@pytest.fixture
def tree() -> Tree:
    torch.manual_seed(0)
    return Tree()


def kinds(module: nn.Module) -> list[type]:
    return [type(part) for part in module.modules() if isinstance(part, nn.Linear | PackedLinear)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3,), (1, 3), (4, 1, 3), (0, 3)])
def test_a_product(bias: bool, shape: tuple[int, ...]):
    torch.manual_seed(0)
    linear, x = nn.Linear(3, 7, bias=bias), torch.randn(shape)
    found = packed(linear)
    assert isinstance(found, PackedLinear)
    torch.testing.assert_close(found(x), linear(x).detach(), **CLOSE)
    assert not found(x).requires_grad


def test_a_tree_of_modules(tree: Tree):
    ids = torch.tensor([[0, 3, 4]])
    twin = packed(tree)
    torch.testing.assert_close(twin(ids), tree(ids), **CLOSE)
    assert kinds(tree) == [nn.Linear] * 4 and kinds(twin) == [PackedLinear] * 4
    assert twin.absent is None


def test_all_but_the_matrices_is_shared(tree: Tree):
    shared = dict(packed(tree).named_parameters()) | dict(packed(tree).named_buffers())
    own = dict(tree.named_parameters()) | dict(tree.named_buffers())
    of_linear = {f"{name}." for name, part in tree.named_modules() if isinstance(part, nn.Linear)}
    assert shared.keys() == {name for name in own if not name.startswith(tuple(of_linear))}
    assert all(tensor is own[name] for name, tensor in shared.items())
    biases = [part.bias for part in packed(tree).modules() if isinstance(part, PackedLinear) and part.bias is not None]
    assert {bias.data_ptr() for bias in biases} == {layer[1].bias.data_ptr() for layer in tree.layers}


def test_weights_that_change_are_packed_anew(tree: Tree):
    ids = torch.tensor([[1, 2]])
    before, twin = tree(ids).detach(), packed(tree)
    with torch.no_grad():
        for layer in tree.layers:
            layer[0].weight.mul_(2)
    torch.testing.assert_close(twin(ids).detach(), before, **CLOSE)
    assert (tree(ids) - before).abs().max() > 1e-2
    torch.testing.assert_close(packed(tree)(ids), tree(ids), **CLOSE)


def test_half_precision_stays_as_it_is(tree: Tree):
    twin = packed(tree.bfloat16())
    assert kinds(twin) == [nn.Linear] * 4
    assert all(twin.layers[row][column] is tree.layers[row][column] for row in (0, 1) for column in (0, 1))
    linear = nn.Linear(3, 7).half()
    assert packed(linear) is linear


@pytest.fixture
def adapted(tmp_path: Path) -> LoraPolicy:
    """Adapters that do something."""
    base = str(save_family("janus", tmp_path / "model"))
    policy = adapt(load(base), base, rank=2, alpha=4.0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return policy


def test_adapters(adapted: LoraPolicy):
    layer, bare = adapted.layers[0].mlp, adapted.base.layers[0].mlp
    x = torch.randn(3, 1, 32)
    assert (layer(x) - bare(x)).abs().max() > 1e-2
    torch.testing.assert_close(packed(layer)(x), layer(x), **CLOSE)
    with adapted.model.disable_adapter():
        torch.testing.assert_close(packed(layer)(x), bare(x), **CLOSE)
    torch.testing.assert_close(packed(layer)(x), layer(x), **CLOSE)


@pytest.mark.parametrize("family", ["janus", "llamagen"])
def test_a_whole_image_is_decoded_alike(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    policy = load(str(save_family(family, tmp_path / "model")))
    tokens = torch.randint(32, (2, policy.layout.tokens), generator=torch.Generator().manual_seed(0))

    def logits() -> Tensor:
        state = policy.prefill(policy.encode(["a red ring"]), 2, branches=2)
        found = [policy.next_logits(state)]
        for step in range(policy.layout.tokens - 1):
            policy.append(state, tokens[:, step : step + 1])
            found.append(policy.next_logits(state))
        return torch.cat(found, 2)

    with_packed = logits()
    monkeypatch.setattr(f"models.{family}.policy.packed", lambda module: module)
    torch.testing.assert_close(with_packed, logits(), atol=1e-4, rtol=1e-4)
