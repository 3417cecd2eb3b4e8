"""`t2i-rl bench rollout`: the arms of `t2i_rl.speed.arms` beside each other, and beside what the bytes allow.

First the gate: in float32 all arms have to sample the same greedy tokens. Then they sample in turns.

What bounds a step: it must read the weights of the layers and the image head once and the filled part of the cache
once. The floor is those bytes over the bandwidth of a measured copy (bytes read plus written), or over the nominal one.
On a CPU with few cores the matrix products cost more than that: `gflop` is their work in one rollout.
"""

import statistics
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch import nn

from t2i_rl.errors import UserError
from t2i_rl.speed.arms import ARMS, OURS, Work
from t2i_rl.speed.counting import Counts, of_one_more
from t2i_rl.speed.measuring import in_turns, machine, ratio, timed, with_peak, write
from t2i_rl.speed.random_model import PROMPT_TOKENS, janus, random_condition, random_policy
from t2i_rl.speed.settings import RolloutBench, Shape
from t2i_rl.speed.tables import table

CHECKED = 32  # greedy tokens that the arms have to share; the first that differs makes all others differ
COUNTED = Shape(layers=1, width=64, mlp=96, heads=2, codes=128, grid=4)  # operations do not depend on widths


def measure(bench: RolloutBench, console: Console) -> dict[str, Any]:
    """All figures of the benchmark, as JSON holds them. Raises UserError where the arms sample different tokens."""
    if bench.threads:
        torch.set_num_threads(bench.threads)
    shared, left_out = gate(bench)
    for arm, why in left_out.items():
        console.print(f"{arm} is left out: {why}", soft_wrap=True)
    device, counts = torch.device(bench.device), operations(bench)
    known = machine(device)
    policy = random_policy(bench, bench.shape, getattr(torch, bench.dtype))
    condition = random_condition(janus(policy), bench.seed)
    rollouts = []
    for images in bench.images:
        work = Work(policy, condition, images, bench.drawn, bench.guidance, seed=bench.seed)
        rollouts.append(one_size(bench, work, [*shared], known, console))
    ours = [arms[arm] for entry in rollouts[-1:] for arms in [entry["arms"]] for arm in OURS if arm in arms]
    return {
        "settings": asdict(bench),
        **known,
        "greedy_tokens_shared": shared,
        "left_out": left_out,
        "operations_per_layer_token": counts["layer"].operations,
        "operations_outside_layers_per_token": counts["rest"].operations,
        "syncs_per_token": counts["layer"].looks + counts["rest"].looks,
        "ratio_vs_transformers": ours[0]["ratio_vs_transformers"],
        "share_of_floor": ours[0]["share_of_floor"],
        "rollouts": rollouts,
    }


def gate(bench: RolloutBench) -> tuple[dict[str, int], dict[str, str]]:
    """Greedy tokens that each arm that runs shares with ours, in float32; and why the others do not run."""
    policy = random_policy(bench, bench.shape, torch.float32)
    condition = random_condition(janus(policy), bench.seed)
    work = Work(policy, condition, 2, min(CHECKED, bench.drawn), bench.guidance, greedy=True)
    wanted = ARMS["eager"](work)
    shared, left_out = {}, {}
    for arm, decode in ARMS.items():
        try:
            found = decode(work)
        except Exception as error:  # of another library, or of a device that is not there: the others go on
            left_out[arm] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        else:
            shared[arm] = int((found == wanted).int().cumprod(-1).sum(-1).min())
    if short := {arm: number for arm, number in shared.items() if number < work.tokens}:
        arm, number = min(short.items())
        raise UserError(
            f"bench rollout: {arm} samples other greedy tokens than ours from token {number + 1} on, so their times "
            "cannot be compared: try another --seed, for two codes may be nearly as likely"
        )
    return shared, left_out


def operations(bench: RolloutBench) -> dict[str, Counts]:
    """What one more token costs our eager step in one more layer, and outside the layers."""

    def of(layers: int) -> Counts:
        policy = random_policy(bench, replace(COUNTED, layers=layers), getattr(torch, bench.dtype))
        condition = random_condition(janus(policy), bench.seed)
        work = Work(policy, condition, 2, 0, bench.guidance)
        return of_one_more(lambda tokens: ARMS["eager"](replace(work, tokens=tokens)), 4, torch.device(bench.device))

    one, two = of(1), of(2)
    return {"layer": two - one, "rest": one - (two - one)}


def one_size(
    bench: RolloutBench, work: Work, arms: list[str], known: dict[str, Any], console: Console
) -> dict[str, Any]:
    """The figures of one number of images."""
    device, images, peaks = torch.device(bench.device), work.images, dict[str, float | None]()

    def run(arm: str, number: int) -> float:
        decode = partial(ARMS[arm], work)
        if number == 0:
            spent = timed(lambda: peaks.update({arm: with_peak(decode, device)}), device)
        else:
            spent = timed(decode, device)
        console.print(f"{images} images  round {number}/{bench.rounds}  {arm}  {spent:.2f} s")
        return spent

    first, seconds = in_turns(arms, bench.rounds, run)
    moved = bytes_read(work)
    floor = moved / 1e9 / known["copy_gb_per_s"]
    nominal = None if known["nominal_gb_per_s"] is None else moved / 1e9 / known["nominal_gb_per_s"]

    def figures(arm: str) -> dict[str, Any]:
        median = statistics.median(seconds[arm])
        compared = "transformers" in seconds
        return {
            "first_seconds": first[arm],
            "seconds": median,
            "ms_per_token": 1e3 * median / work.tokens,
            "images_per_s": images / median,
            "gb_per_s": moved / 1e9 / median,
            "share_of_floor": floor / median,
            "share_of_nominal": None if nominal is None else nominal / median,
            "peak_gb": peaks[arm],
            "ratio_vs_transformers": statistics.median(ratio(seconds, "transformers", arm)) if compared else None,
        }

    entry = {
        "images": images,
        "tokens": work.tokens,
        "gb": moved / 1e9,
        "gflop": flop(work) / 1e9,
        "floor_seconds": floor,
        "rounds": seconds,
        "arms": {arm: figures(arm) for arm in arms},
    }
    console.print(
        table(
            f"{bench.model}, {images} images of {work.tokens} tokens, {bench.dtype} on {bench.device}",
            entry["arms"],
            f"floor {floor:.3g} s at {known['copy_gb_per_s']:.3g} GB/s; {entry['gflop']:.3g} GFLOP",
        )
    )
    return entry


def step_weights(work: Work) -> list[nn.Parameter]:
    """What every step reads. Adapters are not among it: merged, they cost nothing."""
    model = janus(work.policy).model.model
    parts = model.language_model.layers, model.generation_head
    return [weight for part in parts for name, weight in part.named_parameters() if ".lora_" not in name]


def bytes_read(work: Work) -> int:
    """What a rollout must read at least: all weights once per step, and each step the cache filled so far."""
    weights = step_weights(work)
    model = janus(work.policy).language_model
    slots = sum(PROMPT_TOKENS + step for step in range(work.tokens))
    cached = 2 * model.config.hidden_size * len(model.layers) * model.norm.weight.itemsize  # a row's slot
    return work.tokens * sum(weight.nbytes for weight in weights) + slots * 2 * work.images * cached


def flop(work: Work) -> int:
    """Two per weight, row and step; attention's own products are left out."""
    return 2 * sum(weight.numel() for weight in step_weights(work)) * 2 * work.images * work.tokens


def bench_rollout(bench: RolloutBench) -> None:
    console = Console()
    result = measure(bench, console)
    console.print(
        f"{result['operations_per_layer_token']} operations per layer and token, "
        f"{result['operations_outside_layers_per_token']} outside the layers, "
        f"{result['syncs_per_token']} for which the host waits"
    )
    write(bench.json, result)
