"""The compiled layer is the eager one: values and gradients, one graph for all layers and lengths.

Traced by dynamo and run by torch's own kernels: what inductor makes of the graph for a GPU is for tests/test_cuda.py.
"""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from models.lora import adapt
from models.parts import llama
from models.policy import CompilesLayers, Policy
from t2i_rl.rollout.log_probs import log_probs
from tests.conftest import random_janus

LENGTHS = (["a photo of a ring", "a photo of a cross"], ["a photo of two rings and a blue cross"] * 3)


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    torch._dynamo.reset()
    found = CompileCounterWithBackend("eager")
    layer = torch.compile(llama.decoder_layer, dynamic=True, backend=found)
    monkeypatch.setattr(llama, "compiled_layer", lambda: layer)
    return found


def values_and_gradient(policy: Policy, prompts: list[str]) -> tuple[Tensor, Tensor]:
    tokens = torch.arange(len(prompts) * policy.layout.tokens).view(len(prompts), -1) % 32
    values = log_probs(policy, policy.encode(prompts), tokens)
    pulls = torch.autograd.grad(values.sum(), list(policy.trainable_parameters()), allow_unused=True)
    return values.detach(), torch.cat([pull.flatten() for pull in pulls if pull is not None])


@pytest.mark.parametrize(("adapted", "graphs"), [(False, 1), (True, 2)], ids=["whole", "adapters"])
def test_it_is_the_eager_layer_and_one_graph(adapted: bool, graphs: int, counter: CompileCounterWithBackend):
    """With adapters one more, for the first layer, whose input has no gradient."""
    policy: Policy = random_janus()
    if adapted:
        policy = adapt(policy, "tiny", 4, 8.0)
    assert isinstance(policy, CompilesLayers)
    for prompts in LENGTHS:
        policy.compiled = False
        eager = values_and_gradient(policy, prompts)
        policy.compiled = True
        for mine, twin in zip(values_and_gradient(policy, prompts), eager, strict=True):
            assert torch.equal(mine, twin)
    assert counter.frame_count == graphs


def test_rows_of_several_lengths_take_another_graph_and_recomputation_none(counter: CompileCounterWithBackend):
    policy = random_janus()
    eager = values_and_gradient(policy, [LENGTHS[0][0], LENGTHS[1][0]])
    policy.compiled = True
    for policy.gradient_checkpointing in (False, True):
        found = values_and_gradient(policy, [LENGTHS[0][0], LENGTHS[1][0]])
        assert all(torch.equal(*pair) for pair in zip(found, eager, strict=True))
    assert counter.frame_count == 1
