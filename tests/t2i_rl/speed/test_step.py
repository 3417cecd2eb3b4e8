"""`t2i-rl bench step` on a tiny model: the released step is ours but for its wastes."""

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from rich.console import Console

from t2i_rl.cli import main
from t2i_rl.errors import UserError
from t2i_rl.speed import released, step
from t2i_rl.speed.random_model import random_policy
from t2i_rl.speed.settings import StepBench, Waste


def measured(**settings: object) -> dict:
    return step.measure(StepBench(rounds=1, images=4, micro_batch=2, **settings), Console(quiet=True))


def test_the_command_writes_what_the_documentation_names(tmp_path: Path):
    out = tmp_path / "step.json"
    words = ["bench", "step", "--images", "4", "--micro-batch", "2", "--rounds", "2", "--json", str(out)]
    assert main(words) == 0
    found = json.loads(out.read_text())
    assert list(found["arms"]) == ["grpo", "cfg", "critical", "released"]
    documented = Path("docs/speed.md").read_text()
    names = {*found, *found["gate"], *found["arms"]["grpo"]} - {"versions", "hardware", "threads"}
    assert [name for name in sorted(names) if f"`{name}`" not in documented] == []
    assert {len(seconds) for seconds in found["rounds"].values()} == {2}
    assert found["arms"]["grpo"]["cost_percent"] == 0 and found["arms"]["released"]["ratio_vs_released"] == 1


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_half_precision_trains_every_arm(lora_rank: int):
    """All arms have the gradient of the same weights, which one optimizer takes."""
    bench = StepBench(images=4, micro_batch=2, dtype="bfloat16", lora_rank=lora_rank)
    policy = random_policy(bench, step.GATE, torch.bfloat16)
    for arm, trainer in step.trainers(bench, policy, policy.reference()).items():
        assert trainer.step(1)["grad_norm"] > 0, arm


def test_the_host_waits_once_in_a_micro_batch():
    waits = measured()["syncs_per_micro_batch"]
    assert waits == {"grpo": 1, "released": 5}


@pytest.mark.parametrize("waste", get_args(Waste))
def test_each_waste_is_of_the_same_loss(waste: Waste):
    found = measured(wastes=(waste,), methods=("grpo",))
    assert found["gate"]["gradient_cosine"] >= 0.99999 and found["gate"]["log_prob"] <= 1e-5


def test_without_wastes_there_is_no_released_step():
    found = measured(wastes=(), methods=("grpo",))
    assert (
        list(found["arms"]) == ["grpo"] and found["gate"] == {} and found["arms"]["grpo"]["ratio_vs_released"] is None
    )


def test_another_gradient_is_not_compared(monkeypatch: pytest.MonkeyPatch):
    scored = released.scored
    monkeypatch.setattr(released, "scored", lambda *given: scored(*given) * 1.001)
    with pytest.raises(UserError, match="the released step is not ours"):
        measured()


def test_what_a_step_has_to_move_and_to_compute():
    """By hand: 4 images of 16 tokens, 15 of which are read; policy and reference forward, two passes backward."""
    bench = StepBench(images=4, micro_batch=2, methods=("grpo",), wastes=())
    policy = random_policy(bench, step.GATE, torch.float32)
    (trainer,) = step.trainers(bench, policy, policy.reference()).values()
    found_bytes, found_operations = step.least(bench, trainer)

    prompt = policy.encode([one.text for one in step.PROMPTS]).tensors["ids"].shape[-1]
    layers, head = 2 * (4 * 64 * 64 + 3 * 64 * 96), 64 * 64 + 64 * 128
    seen, pair = sum(prompt + place for place in range(1, 16)), 4 * 64 * 2
    read, whole = prompt * (prompt + 1) // 2, (prompt + 15) * (prompt + 16) // 2
    sampling = 4 * (15 * 2 * layers + 16 * 2 * head + seen * pair) + 2 * (prompt * 2 * layers + read * pair)
    update = 4 * (4 * ((prompt + 15) * 2 * layers + whole * pair) + 4 * 16 * 2 * head)
    assert found_operations == 2 * sampling + update

    trained = sum(weight.numel() for weight in policy.trainable_parameters())
    cache, steps, passes, optimizer = 2 * 4 * seen * 2 * 64 * 2, 16 * (layers + head), 2 * 4 * layers, 7 * trained
    assert found_bytes == 4 * (cache + steps + passes + optimizer)
