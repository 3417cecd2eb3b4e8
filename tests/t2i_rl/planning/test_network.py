"""What GPUs send each other, against hand arithmetic."""

from dataclasses import replace

from t2i_rl.planning.network import Traffic, network_lines, seconds, traffic
from t2i_rl.planning.plan_config import PlanConfig

PLAN = PlanConfig(model="janus-pro-7b", gpus=8, prompts_per_step=8, group_size=16, update_batch=4)
TRAINED = 8000


def by_name(plan: PlanConfig) -> dict[str, Traffic]:
    return {kind.what: kind for kind in traffic(TRAINED, plan)}


def test_one_gpu_is_sent_nothing():
    assert not traffic(TRAINED, replace(PLAN, gpus=1))


def test_shares_in_one_machine():
    """16 images on each of 8 GPUs are 4 micro-batches; of everything a GPU has an eighth already."""
    found = by_name(PLAN)
    assert found["layers gathered"] == Traffic("layers gathered", 4 * 2 * 2 * 7000, True, False)
    assert found["gradients summed"].bytes == 4 * 4 * 7000
    assert found["reference gathered"].bytes == 4 * 2 * 7000
    assert found["copy refreshed"] == Traffic("copy refreshed", 2 * 7000, False, False)
    assert "gradients of copies" not in found


def test_shares_over_two_machines_and_copies():
    """All in one ring: at the speed between machines. A copy in each: only gradients leave the machine."""
    over = replace(PLAN, gpus=16, prompts_per_step=16)
    assert all(kind.far for kind in traffic(TRAINED, over))
    found = by_name(replace(over, shard=8))
    assert {name for name, kind in found.items() if kind.far} == {"gradients of copies"}
    assert found["gradients of copies"].bytes == 4 * 2 * (1 / 2) * 4 * TRAINED / 8


def test_adapters_are_summed_once():
    (found,) = traffic(TRAINED, replace(PLAN, lora_rank=16))
    assert found == Traffic("gradients summed", 2 * (7 / 8) * 4 * TRAINED, False, False)


def test_what_bounds_a_step():
    sent = [Traffic("layers gathered", 900e9, True, False), Traffic("copy refreshed", 45e9, False, False)]
    assert [seconds(kind, PLAN) for kind in sent] == [2.0, 0.1]
    assert seconds(sent[0]._replace(far=True), PLAN) == 18.0
    # Sampling 1 s, the update waits 2 s for the network while it computes 1.5 s, then the copy is refreshed.
    assert network_lines(sent, PLAN, 1.0, 1.5)[-1] == (
        "a step takes at least 3.10 s (41.3 images/s), bound by the network during the update"
    )
    assert network_lines([], replace(PLAN, gpus=1), 3.0, 1.0)[-1].endswith("bound by sampling")
