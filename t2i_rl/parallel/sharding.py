"""Weights split among processes, by torch's FSDP2.

Each process holds a share of every weight that is trained, in float32, with its gradient and moments. A layer's shares
are gathered, in the policy's own precision, when the update comes to that layer, and let go behind it; gradients are
summed, and each process keeps its share of the sum. What is not trained is whole in every process, and one tensor for
all who read it.

Sampling takes hundreds of passes per step and would gather everything in each: it reads a whole copy of the weights
instead, at addresses that never change, which is refreshed layer by layer after the optimizer's step.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.nn import Parameter

from models.parts.forward import HOOKED
from models.policy import Policy, Rebuilt
from t2i_rl.parallel.ranks import Ranks


class Sharded:
    """A policy that every process has whole, and the same weights in shares, which are what is trained."""

    def __init__(self, policy: Rebuilt, ranks: Ranks, shard: int, reshard: bool, offload: bool) -> None:
        """shard: how many processes share one copy; there is a copy for each such number of them.

        reshard: let a layer's weights go between its forward and its backward pass.
        offload: keep the shares, their gradients and moments in the CPU's memory.
        """
        self.policy: Policy = policy
        self.over, self.reshard = policy.over, reshard
        self.names = [name for name, parameter in policy.module.named_parameters() if parameter.requires_grad]
        device = next(policy.module.parameters()).device.type
        self.offload = CPUOffloadPolicy(pin_memory=device != "cpu") if offload else OffloadPolicy()
        if shard == ranks.world:
            self.mesh = init_device_mesh(device, (shard,))
        else:
            self.mesh = init_device_mesh(device, (ranks.world // shard, shard), mesh_dim_names=("copy", "shard"))
        self.part, self.parts, self.copy = ranks.rank % shard, shard, ranks.rank // shard
        self.trained = self._shares(policy, torch.float32, trained=True)

    def reference(self, policy: Policy) -> Policy:
        dtype = self.policy.module.get_parameter(self.names[0]).dtype
        return self._shares(policy, dtype, trained=False)

    def add_up(self, gradients: Iterable[Tensor]) -> None:
        """They were added up as they were made."""

    @torch.no_grad()
    def refresh(self) -> None:
        """One layer at a time: no process ever holds two whole copies."""
        own, whole = self.trained.module, self.policy.module
        for unit, names in units(self.trained, self.names):
            assert isinstance(unit, FSDPModule)
            unit.unshard()
            for name in names:
                whole.get_parameter(name).copy_(own.get_parameter(name))
            unit.reshard()

    def _shares(self, policy: Policy, dtype: torch.dtype, trained: bool) -> Policy:
        """The policy over this process's shares of the weights."""
        source = policy.module
        split = {id(source.get_parameter(name)) for name in self.names}
        memo: dict[int, Any] = {}
        for tensor in chain(source.parameters(), source.buffers()):
            empty = torch.empty_like(tensor, dtype=dtype, device="meta") if id(tensor) in split else None
            memo[id(tensor)] = tensor if empty is None else Parameter(empty, requires_grad=trained)
        shares = self.over(copy.deepcopy(source, memo))
        whole = {parameter for parameter in source.parameters() if id(parameter) not in split}
        half = dtype if not trained else source.get_parameter(self.names[0]).dtype
        precision = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for unit, names in units(shares, self.names):
            for name in names:
                value = Parameter(source.get_parameter(name).detach().to(dtype, copy=True), requires_grad=trained)
                torch.utils.swap_tensors(shares.module.get_parameter(name), value)
            fully_shard(
                unit,
                mesh=self.mesh,
                # What is in no layer is needed until the end of the backward pass.
                reshard_after_forward=(self.reshard or not trained) and unit is not shares.module,
                mp_policy=precision,
                offload_policy=self.offload,
                ignored_params=whole,
            )
            hook(unit, names if trained and unit is shares.module else [])
        return shares


def units(policy: Policy, names: Iterable[str]) -> Iterator[tuple[nn.Module, list[str]]]:
    """What is gathered at once, and its weights among the named ones: each layer, then all that is in none."""
    prefix = next(path for path, module in policy.module.named_modules() if module is policy.layers)
    within: dict[str, list[str]] = {}
    for name in names:
        number = name.removeprefix(f"{prefix}.").partition(".")[0] if name.startswith(f"{prefix}.") else ""
        within.setdefault(number, []).append(name)
    for place, layer in enumerate(policy.layers):
        if str(place) in within:
            yield layer, within[str(place)]
    yield policy.module, within.get("", [])


class Touched(torch.autograd.Function):
    """A value as it is, with a gradient of 0 for weights besides.

    The processes add up one gradient for each weight that has one, so all need one of the same weights: also of a
    vision tower that saw no picture in one of them.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, *weights: Tensor) -> Tensor:
        ctx.weights = weights
        return value.clone()

    @staticmethod
    def backward(ctx: Any, pulled: Tensor) -> tuple[Tensor, ...]:
        return pulled, *map(torch.zeros_like, ctx.weights)


def hook(unit: nn.Module, names: Sequence[str]) -> None:
    """Let `models.parts.forward.as_forward` gather the unit's shares, and gradients be sums.

    names: of its weights that might have no gradient. Where there are some, the value is one tensor.
    """

    def run(self: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
        value = function(self, *inputs)
        if not (names and torch.is_grad_enabled()):
            return value
        return Touched.apply(value, *map(self.get_parameter, names))

    setattr(unit, HOOKED, MethodType(run, unit))
    register_fsdp_forward_method(unit, HOOKED)
    assert isinstance(unit, FSDPModule)
    unit.set_force_sum_reduction_for_comms(True)  # first: gloo has no other
    unit.set_gradient_divide_factor(1.0)
