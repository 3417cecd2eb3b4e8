"""Decoding steps: of wide buckets and of growing ones, one graph, few operations, buffers that are used again."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.lora import adapt
from models.parts import decoding
from models.policy import FixedShapes, Policy
from models.registry import load
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.measure import measure
from t2i_rl.rollout.names import StatisticName
from t2i_rl.rollout.noise import Noise, uniforms
from t2i_rl.rollout.sampler import sample_group
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.rollout.statistics import STATISTICS
from t2i_rl.rollout.steps import Steps, begin, kept
from tests.models.families import save_family

PROMPTS = ("a photo of a circle", "a photo of a red square and a blue ring")
FAMILIES = ("janus", "llamagen", "janus-adapted", "llamagen-adapted")


@pytest.fixture(params=FAMILIES)
def policy(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Policy:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    family, _, adapted = request.param.partition("-")
    base = str(save_family(family, tmp_path / "model"))
    if not adapted:
        return load(base)
    policy = adapt(load(base), base, rank=2, alpha=4.0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return policy


MEASURABLE = [name for name in STATISTICS if name != "logp_cfg"]  # which greedy drawing does not have


def sample(policy: Policy, sampling: Sampling, group: int, names: Any = MEASURABLE, prompts: Any = PROMPTS) -> Rollout:
    return sample_group(policy, policy.encode(prompts), group, sampling, Noise(3), list(names))


@pytest.mark.parametrize("group", [1, 6])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(1.0),
        Sampling(3.0, temperature=0.8, top_k=9),
        Sampling(3.0, top_p=0.8),
        Sampling(temperature=0),
    ],
    ids=["guided", "plain", "top-k", "top-p", "greedy"],
)
def test_wide_buckets_draw_and_measure_what_growing_ones_do(
    policy: Policy, sampling: Sampling, group: int, monkeypatch: pytest.MonkeyPatch
):
    """Growing: attention reads what is filled and no more, as on a CPU. Wide: as where steps are captured."""
    growing = sample(policy, sampling, group)
    monkeypatch.setitem(decoding.BUCKETS, "cpu", 64)
    kept(policy).steps = None
    wide = sample(policy, sampling, group)
    assert kept(policy).steps.state.visible == 64
    assert torch.equal(wide.tokens, growing.tokens)
    for name, values in growing.statistics.items():
        torch.testing.assert_close(wide.statistics[name], values, atol=1e-4, rtol=1e-4, msg=name)


def test_the_statistics_are_those_of_one_pass_with_the_adapters_apart(policy: Policy):
    sampling, names = Sampling(2.0), ["entropy", "kl_cond_uncond", "logp_cond", "logp_guided"]
    rollout = sample(policy, sampling, 3, names)
    forced = measure(policy, rollout, sampling, names, micro_batch=2)
    for name, values in forced.items():
        torch.testing.assert_close(rollout.statistics[name], values, atol=2e-4, rtol=1e-3, msg=name)


def begun(policy: Policy, names: list[StatisticName], prompts: Any = PROMPTS, group: int = 2) -> Steps:
    tokens = uniforms(0, 0, prompts, [0] * len(prompts), group, policy.layout.tokens).flatten(0, 1)
    return begin(policy, policy.encode(prompts), group, Sampling(2.0, top_k=9, top_p=0.9), names, tokens)


@torch.no_grad()
def test_a_step_is_one_graph_for_all_tokens(policy: Policy, monkeypatch: pytest.MonkeyPatch):
    """No break, and nothing on the host that another token would change."""
    monkeypatch.setitem(decoding.BUCKETS, "cpu", 64)
    names: list[StatisticName] = ["entropy", "kl_cond_uncond", "logp_cfg"]
    expected = sample_group(
        policy, policy.encode(PROMPTS), 2, Sampling(2.0, top_k=9, top_p=0.9), Noise(0, occurrences=[0, 0]), names
    )
    steps, graphs = begun(policy, names), []

    def counting(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    step = torch.compile(steps.step, fullgraph=True, backend=counting)
    last = steps.first(policy).clone()
    for _ in range(policy.layout.tokens - 1):
        step(policy, last, 64)
    assert len(graphs) == 1
    assert torch.equal(steps.drawing.tokens, expected.tokens.flatten(0, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_half_is_compiled_once_for_all_layers_and_buckets(policy: Policy, dtype: torch.dtype):
    policy.module.to(dtype)
    steps, graphs = begun(policy, []), []

    def counting(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    steps.state.halves = tuple(torch.compile(half, fullgraph=True, backend=counting) for half in steps.state.halves)
    last = steps.first(policy).clone()
    for visible in (steps.state.filled + 1, 64, 64):
        steps.step(policy, last, visible)
    assert len(graphs) == 2


class Operations(TorchDispatchMode):
    """Counts what reaches the kernels; a view computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not operation.is_view:
            self.counts[str(operation)] += 1
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("policy", ["janus", "janus-adapted", "llamagen"], indirect=True)
def test_a_layer_takes_few_operations(policy: Policy):
    state = begun(policy, []).state
    layers, found = state.weights.layers, []
    for depth in (1, 2):
        state.weights.layers = layers[:depth]
        with Operations() as operations:
            policy.append(state, torch.zeros(4, 1, dtype=torch.long))
        found.append(operations.counts)
    assert (found[1] - found[0]).total() <= 15, found[1] - found[0]


def addresses(steps: Steps) -> list[int]:
    state = steps.state
    buffers = (state.cache.entries, state.cos, state.bias, state.hidden, state.slot)
    weights = [product.weight for layer in state.weights.layers for product in (layer.qkv, layer.down)]
    return [tensor.data_ptr() for tensor in (*buffers, *weights, steps.drawing.tokens, steps.drawing.uniform)]


def test_rollouts_of_one_shape_share_their_buffers(policy: Policy):
    """Also those of longer prompts, and after an update; what was drawn before is not written over."""
    short, long = (PROMPTS[0],) * 2, (PROMPTS[1],) * 2
    first = sample(policy, Sampling(2.0), 2, ["entropy"], short)
    where, drawn = addresses(kept(policy).steps), first.tokens.clone()
    second = sample(policy, Sampling(2.0), 2, ["entropy"], long)
    assert addresses(kept(policy).steps) == where
    assert torch.equal(first.tokens, drawn) and not torch.equal(second.tokens, drawn)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.mul_(0.8)
    sample(policy, Sampling(2.0), 2, ["entropy"], short)
    assert addresses(kept(policy).steps) == where
    assert torch.equal(sample(policy, Sampling(2.0), 2, ["entropy"], long[:1]).tokens, sample_alone(policy, long[:1]))


def sample_alone(policy: Policy, prompts: tuple[str, ...]) -> Tensor:
    """In buffers that nothing was in."""
    kept(policy).steps = None
    return sample(policy, Sampling(2.0), 2, ["entropy"], prompts).tokens


def test_where_a_step_can_be_captured_its_state_says_so(policy: Policy):
    state = begun(policy, []).state
    assert isinstance(state, FixedShapes)
    assert state.visible in state.buckets and max(state.buckets) >= state.filled + policy.layout.tokens - 1
