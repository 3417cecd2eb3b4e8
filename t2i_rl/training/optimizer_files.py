"""The state of AdamW in a checkpoint: safetensors, of each process the part that it holds.

`optimizer-00001-of-00004.safetensors` has, by the name of a weight, rows of its moments (`NAME.exp_avg`,
`NAME.exp_avg_sq`) and, where the policy's own precision is lower, of the float32 weight itself (`NAME.master`). The
rows of all files, in the order of their numbers, make the tensor, so that any number of processes can take their parts
of it. `NAME.step` is in the first file. Checkpoints of before have `optimizer.pt`, with everything by number.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter

from t2i_rl.errors import UserError
from t2i_rl.parallel.weights import Weights, local
from t2i_rl.training.optimizer import MasterAdamW

PATTERN = "optimizer-*-of-*.safetensors"
BEFORE = "optimizer.pt"
MOMENTS = ("exp_avg", "exp_avg_sq")


def save(folder: Path, weights: Weights, optimizer: torch.optim.Optimizer) -> None:
    """Write this process's part, unless another one that holds the same does."""
    if weights.copy:
        return
    tensors = dict[str, Tensor]()
    for name, parameter, apart in _named(weights, optimizer):
        state = optimizer.state.get(parameter, {})
        kept = {f"{name}.{moment}": local(state[moment]) for moment in MOMENTS if moment in state}
        if apart:
            kept[f"{name}.master"] = local(parameter.detach())
        if "step" in state and weights.part == 0:
            kept[f"{name}.step"] = state["step"].reshape(1)
        tensors |= {key: value.cpu().contiguous() for key, value in kept.items() if len(value)}
    save_file(tensors, folder / f"optimizer-{weights.part + 1:05d}-of-{weights.parts:05d}.safetensors")


@torch.no_grad()
def load(checkpoint: Path, weights: Weights, optimizer: torch.optim.Optimizer) -> None:
    """Take this process's part, whoever wrote the files; no code in them can run. Raises UserError for other states."""
    try:
        files = sorted(checkpoint.glob(PATTERN))
        named = [*_named(weights, optimizer)]
        stored = _pieces(files) if files else _before(checkpoint / BEFORE, [name for name, *_ in named])
        state = {}
        for index, (name, parameter, apart) in enumerate(named):
            if apart:
                _fill(parameter, stored[f"{name}.master"], weights)
            if f"{name}.step" in stored:
                state[index] = {"step": stored[f"{name}.step"].rows(0, 1)[0]}
                for moment in MOMENTS:
                    state[index][moment] = torch.zeros_like(parameter)
                    _fill(state[index][moment], stored[f"{name}.{moment}"], weights)
        known = {f"{name}.{what}" for name, *_ in named for what in (*MOMENTS, "master", "step")}
        if strange := sorted(stored.keys() - known):
            raise ValueError(f"there is no weight for {strange[0]}")
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        if isinstance(optimizer, MasterAdamW):
            optimizer.round()
    except Exception as error:  # what torch and safetensors raise of malformed bytes is no narrower
        # What torch says of a file that is not its own spans lines and advises to switch the safety off.
        raise UserError(
            f"{checkpoint} does not hold the optimizer state of this run: delete it to resume from an older one"
        ) from error


class Stored(NamedTuple):
    """A tensor of the files. rows: those from one number up to another."""

    shape: tuple[int, ...]
    rows: Callable[[int, int], Tensor]


def _named(weights: Weights, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Parameter, bool]]:
    """What the optimizer steps on, by name, and whether the policy has it in a lower precision."""
    names = [name for name, weight in weights.trained.module.named_parameters() if weight.requires_grad]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, parameter in zip(names, parameters, strict=True):
        yield name, parameter, weights.policy.module.get_parameter(name).dtype != parameter.dtype


def _fill(tensor: Tensor, stored: Stored, weights: Weights) -> None:
    """Copy this process's rows, which are divided as torch divides them. Raises ValueError for another shape."""
    if stored.shape != tuple(tensor.shape):
        raise ValueError(f"{stored.shape} is not {tuple(tensor.shape)}")
    size = -(-len(tensor) // weights.parts)
    start, end = (min(place * size, len(tensor)) for place in (weights.part, weights.part + 1))
    local(tensor).copy_(stored.rows(start, end))


def _pieces(files: list[Path]) -> dict[str, Stored]:
    """The tensors of the files, of which nothing is read yet."""
    found: dict[str, list[Any]] = {}
    for path in files:
        file = safe_open(path, framework="pt")
        for key in file.keys():  # noqa: SIM118 - no mapping
            found.setdefault(key, []).append(file.get_slice(key))
    return {key: _joined(pieces) for key, pieces in found.items()}


def _joined(pieces: list[Any]) -> Stored:
    sizes = [piece.get_shape()[0] for piece in pieces]
    starts = [*accumulate(sizes, initial=0)]

    def rows(first: int, last: int) -> Tensor:
        placed = zip(pieces, starts, sizes, strict=False)
        cut = [(piece, max(first - start, 0), min(last - start, size)) for piece, start, size in placed]
        parts = [piece[low:high] for piece, low, high in cut if low < high]
        return torch.cat(parts) if parts else pieces[0][:0]

    return Stored((starts[-1], *pieces[0].get_shape()[1:]), rows)


def _before(path: Path, names: list[str]) -> Mapping[str, Stored]:
    """What torch saved, by number, under the names of the weights. Raises ValueError for another number of them."""
    saved = dict(torch.load(path, map_location="cpu", weights_only=True))
    if (known := sum(len(group["params"]) for group in saved["param_groups"])) != len(names):
        raise ValueError(f"there are {known} weights")
    found = {
        f"{names[number]}.{what}": value for number, state in saved["state"].items() for what, value in state.items()
    }
    found |= {f"{name}.master": value for name, value in zip(names, saved.get("masters", []), strict=False)}
    whole = {key: value.reshape(1) if value.ndim == 0 else value for key, value in found.items()}
    return {key: Stored(tuple(value.shape), partial(_between, value)) for key, value in whole.items()}


def _between(tensor: Tensor, first: int, last: int) -> Tensor:
    return tensor[first:last]
