"""Image logits are float32 products of what the head reads, in every family and precision."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.parts.logits import WideProduct, logits
from models.policy import Condition, Policy
from models.registry import load
from tests.models.families import ALL_FAMILIES, save_family
from tests.models.small_qwen_vl import KINDS

PROMPTS = ["a photo of a red circle", "two squares"]
LAST = {"janus": "model.generation_head.vision_head", "llamagen": "lm_head", "star": "head_logits"}
LAST |= dict.fromkeys(KINDS, "lm_head")
# Largest error of a logit against float64, as a share of their deviation. A product rounded to bfloat16 is off by 4e-3.
ALLOWED = 2e-6


@pytest.fixture(params=ALL_FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_family(request.param, tmp_path / "model")
    return request.param


def states(policy: Policy) -> Tensor:
    condition, length = policy.encode(PROMPTS), min(policy.layout.tokens, 32)
    tokens = torch.randint(32, (len(PROMPTS), length), generator=torch.Generator().manual_seed(0))
    return policy.hidden(condition, tokens, branches=branches(condition))


def branches(condition: Condition) -> int:
    """Two where there is a branch without a prompt."""
    return len(next(iter(condition.tensors.values())))


def last_layer(policy: Policy, family: str, hidden: Tensor) -> tuple[nn.Linear, Tensor]:
    """The head's last layer and what it reads."""
    last = policy.module.get_submodule(LAST[family])
    assert isinstance(last, nn.Linear)
    if family == "janus":
        head = policy.module.get_submodule("model.generation_head")
        hidden = head.activation_fn(head.proj_out(hidden))
    return last, hidden


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_not_rounded(family: str, dtype: torch.dtype, tmp_path: Path):
    policy = load(str(tmp_path / "model"), dtype)
    with torch.no_grad():
        hidden = states(policy)
        last, read = last_layer(policy, family, hidden)
        exact = read.double() @ last.weight.double().T + (0 if last.bias is None else last.bias.double())
        condition = policy.encode(PROMPTS)
        state = policy.prefill(condition, 1, branches(condition))
        decoded = policy.next_logits(state).flatten(0, 1)
        newest = (state.decoding if family in KINDS else state).hidden
        first = last_layer(policy, family, newest.unflatten(0, decoded.shape[:2]) if newest.ndim == 2 else newest)[1]
        exact_first = first.double() @ last.weight.double().T + (0 if last.bias is None else last.bias.double())
    for found, wanted in ((policy.head(hidden), exact), (decoded, exact_first)):
        assert found.dtype == torch.float32
        assert (found - wanted).abs().max() < ALLOWED * wanted.std()


def test_float32_is_the_plain_product(family: str, tmp_path: Path):
    policy = load(str(tmp_path / "model"))
    with torch.no_grad():
        hidden = states(policy)
        last, read = last_layer(policy, family, hidden)
        assert torch.equal(policy.head(hidden), last(read))


@pytest.mark.parametrize("bias", [True, False])
def test_the_gradient_in_half_precision(bias: bool):
    torch.manual_seed(0)
    last, x = nn.Linear(8, 32, bias=bias).bfloat16(), torch.randn(3, 5, 8).bfloat16().requires_grad_()
    pull = torch.randn(3, 5, 32)
    found = torch.autograd.grad((logits(last, x) * pull).sum(), [x, *last.parameters()])
    exact, wide = nn.Linear(8, 32, bias=bias).double(), x.detach().double().requires_grad_()
    exact.load_state_dict(last.state_dict())
    wanted = torch.autograd.grad((exact(wide) * pull).sum(), [wide, *exact.parameters()])
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.double(), other, atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("trained", [(True, False), (True, True), (False, True)])
def test_the_derivative_of_the_product_on_cuda(trained: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch):
    """Its own backward pass, with the one product that a CPU lacks put in place."""
    monkeypatch.setattr(torch, "mm", lambda a, b, out_dtype: a.to(out_dtype) @ b.to(out_dtype))
    torch.manual_seed(0)
    x, weight = torch.randn(6, 8).bfloat16(), torch.randn(32, 8).bfloat16()
    pull = torch.randn(6, 32)
    x.requires_grad_(trained[0])
    weight.requires_grad_(trained[1])
    leaves = [leaf for leaf in (x, weight) if leaf.requires_grad]
    found = torch.autograd.grad((WideProduct.apply(x, weight) * pull).sum(), leaves)
    wanted = torch.autograd.grad((x.float() @ weight.float().T * pull).sum(), leaves)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one, other, atol=1e-1, rtol=2e-2)
