"""Float32 copies of half-precision weights: they learn what bfloat16 alone rounds away, add up, and come back."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter

from models.registry import load
from rewards.catalogue import REWARDS, RewardEntry
from t2i_rl.cli import main
from t2i_rl.configuration.config import UpdateConfig
from t2i_rl.errors import UserError
from t2i_rl.training import checkpoints, optimizer_files
from t2i_rl.training.optimizer import MasterAdamW, adamw
from t2i_rl.training.update import apply_gradient
from tests.t2i_rl.small_runs import STEPS, Brightness, train_words
from tests.t2i_rl.training.runs import OPTIMIZER, held_by

UPDATE = UpdateConfig(learning_rate=5e-6, weight_decay=0.01)  # the papers' rate
START = torch.linspace(0.5, 2, 7)


def weight(dtype: torch.dtype) -> Parameter:
    return Parameter(START.to(dtype, copy=True))


def trained(value: Parameter, optimizer: torch.optim.Optimizer, steps: int) -> Tensor:
    """Weights are pulled to 0: what a step changes is about the learning rate."""
    for step in range(1, steps + 1):
        (value.float() ** 2).sum().backward()
        apply_gradient(optimizer, UPDATE.learning_rate, 1.0, 0.0, step)
    return value.detach()


def plain(value: Parameter) -> torch.optim.AdamW:
    return torch.optim.AdamW([value], lr=UPDATE.learning_rate, weight_decay=UPDATE.weight_decay)


def test_bfloat16_learns_where_it_stalls_without_copies():
    stalled, learning, exact = weight(torch.bfloat16), weight(torch.bfloat16), weight(torch.float32)
    trained(stalled, plain(stalled), 2000)
    optimizer = adamw([learning], UPDATE)
    trained(learning, optimizer, 2000)
    trained(exact, plain(exact), 2000)
    assert torch.equal(stalled.detach(), START.bfloat16())
    assert (exact < START.bfloat16().float() - 0.009).all()
    assert isinstance(optimizer, MasterAdamW)
    torch.testing.assert_close(optimizer.masters[0].detach(), exact.detach(), atol=1e-3, rtol=0)
    assert torch.equal(learning.detach(), optimizer.masters[0].bfloat16())


def test_float32_is_torch_and_nothing_else():
    ours, theirs = weight(torch.float32), weight(torch.float32)
    optimizer = adamw([ours], UPDATE)
    assert type(optimizer) is torch.optim.AdamW
    assert torch.equal(trained(ours, optimizer, 20), trained(theirs, plain(theirs), 20))


def test_what_is_float32_among_others_is_its_own_copy():
    low, whole, alone = weight(torch.bfloat16), weight(torch.float32), weight(torch.float32)
    optimizer = adamw([low, whole], replace(UPDATE, weight_decay=0.0))
    for step in range(1, 6):
        (low.float().sum() + (whole**2).sum()).backward()
        apply_gradient(optimizer, 1e-3, 1e9, 0.0, step)
    assert optimizer.masters[1] is whole
    single = torch.optim.AdamW([alone], lr=1e-3, weight_decay=0.0)
    for step in range(1, 6):
        (alone**2).sum().backward()
        apply_gradient(single, 1e-3, 1e9, 0.0, step)
    assert torch.equal(whole, alone)


def test_gradients_of_micro_batches_add_up_in_float32():
    value = Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = MasterAdamW([value])
    for factor in [256.0] + [0.5] * 100:  # bfloat16 would stay at 256
        (factor * value).sum().backward()
        assert value.grad is None
    assert optimizer.masters[0].grad.tolist() == [306.0] * 3
    assert apply_gradient(optimizer, 1e-3, 1.0, 0.0, 1) == pytest.approx(306 * 3**0.5)


def test_the_state_comes_back(tmp_path: Path):
    value, again = weight(torch.bfloat16), weight(torch.bfloat16)
    optimizer, other = adamw([value], UPDATE), adamw([again], UPDATE)
    trained(value, optimizer, 3)
    optimizer_files.save(tmp_path, held_by(optimizer), optimizer)
    optimizer_files.load(tmp_path, held_by(other), other)
    assert torch.equal(value, again) and not torch.equal(value.float(), optimizer.masters[0])
    assert torch.equal(trained(value, optimizer, 200), trained(again, other, 200))
    assert torch.equal(optimizer.masters[0], other.masters[0])


def test_the_state_of_other_weights_is_refused(tmp_path: Path):
    optimizer = adamw([weight(torch.bfloat16)], UPDATE)
    trained(optimizer.weights[0], optimizer, 1)
    optimizer_files.save(tmp_path, held_by(optimizer), optimizer)
    found = load_file(tmp_path / OPTIMIZER)
    without = {name: value for name, value in found.items() if not name.endswith("master")}
    for foreign in (without, found | {"weight.master": torch.zeros(1)}, found | {"other.exp_avg": torch.zeros(1)}):
        save_file(foreign, tmp_path / OPTIMIZER)
        with pytest.raises(UserError, match="does not hold the optimizer state of this run"):
            optimizer_files.load(tmp_path, held_by(optimizer), optimizer)


def test_a_bfloat16_run_resumes_bit_for_bit(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """At the papers' rate, where the weights themselves hardly show what was learnt."""
    monkeypatch.setitem(REWARDS, "brightness", RewardEntry(lambda device: Brightness()))
    more = ["--dtype", "bfloat16", "--update.learning-rate", "5e-6", "--update.schedule", "constant"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(train_words(model, whole, "grpo", *more)) == 0
    assert main(train_words(model, parts, "grpo", *more, "--steps", "2")) == 0
    assert main(["train", "--resume", str(parts), "--steps", str(STEPS)]) == 0
    ends = [checkpoints.at_step(run / "checkpoints", STEPS) for run in (whole, parts)]
    states = [load_file(end / OPTIMIZER) for end in ends]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    weights = [load_file(end / "model.safetensors") for end in ends]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    begun = load(str(model), torch.bfloat16).module
    masters = {name.removesuffix(".master"): value for name, value in states[0].items() if name.endswith(".master")}
    moved = [(master != begun.get_parameter(name).float()).float().mean().item() for name, master in masters.items()]
    assert sorted(moved)[1] > 0.9  # all but the embeddings, of which a prompt reads a few
