"""How fast a group of images is sampled: ours, transformers' own `generate`, and a growing-cache loop.

    python scripts/bench_rollout.py --json bench.json
    python scripts/bench_rollout.py --device cuda --dtype bfloat16 --layers 24 --width 2048 --mlp 5632 --heads 16

Three arms run the same random Janus-shaped model on the same prompts under the same guidance:

- `ours`: `t2i_rl.rollout.sampler.sample_group`, measuring every per-token statistic on the way;
- `transformers`: `JanusForConditionalGeneration.generate(generation_mode="image")`, a static cache of which
  every step reads all slots, masked;
- `growing`: the loop of the research repositories, branches interleaved, a cache that is concatenated anew
  in every layer of every step.

First each arm decodes greedily in a fresh process, whose peak memory is reported; the tokens must be the
same. Then the arms sample in turn, so that whatever else the machine does falls on all three alike: the
ratios are medians over rounds.

What bounds a step: it must read the weights of the decoder and the image head once and the filled part of
the cache once. The floor is those bytes over the bandwidth of a measured copy (bytes read plus written).
On a CPU with few cores the matrix products cost more than that: `gflop` is their work in one rollout.
"""

import json
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, cast

import torch
import transformers
import tyro
from jaxtyping import Int
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    LlamaConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig

from models.janus.policy import JanusPolicy, condition_from_ids
from models.policy import Condition
from t2i_rl.rollout.noise import Noise
from t2i_rl.rollout.sampler import sample_group
from t2i_rl.rollout.sampling import Sampling

# What the methods cfg and critical ask for, and both branches' log-probabilities.
MEASURED = ("entropy", "kl_cond_uncond", "logp_cond", "logp_uncond", "logp_guided")
BOS, PAD, BEGIN_OF_IMAGE, FIRST_WORD = 0, 1, 2, 3
TEXT_VOCABULARY = 256
GAIN = 4.0  # on transformers' initial weights: as they come, all images are alike and greedy decoding repeats itself


@dataclass(frozen=True)
class Bench:
    """layers, width, mlp, heads: of the language model. codes: image vocabulary. grid: tokens per side.

    prompts, group: images per rollout is their product. prompt_tokens: of the shortest prompt, each next one
    is a token longer.
    threads: of the CPU. repeats: timed rounds. json: where to write the figures.
    """

    layers: int = 8
    width: int = 512
    mlp: int = 1376
    heads: int = 8
    codes: int = 16384
    grid: int = 24
    prompts: int = 2
    group: int = 4
    prompt_tokens: int = 16
    guidance: float = 5.0
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = 2
    repeats: int = 5
    seed: int = 0
    json: Path | None = None


def random_policy(bench: Bench) -> JanusPolicy:
    """The language model and the image head at full size, the towers around them as small as they come."""
    torch.manual_seed(bench.seed)
    config = JanusConfig(
        text_config=LlamaConfig(
            vocab_size=TEXT_VOCABULARY,
            hidden_size=bench.width,
            intermediate_size=bench.mlp,
            num_hidden_layers=bench.layers,
            num_attention_heads=bench.heads,
            max_position_embeddings=bench.prompt_tokens + bench.prompts + bench.grid**2,
            bos_token_id=BOS,
            pad_token_id=PAD,
        ),
        vision_config=JanusVisionConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=bench.grid,
            patch_size=1,
            mlp_ratio=1.0,
            projection_dim=bench.width,
            num_image_tokens=bench.grid**2,
            depth=1,
        ),
        vq_config=JanusVQVAEConfig(
            num_embeddings=bench.codes,
            latent_channels=32,
            base_channels=32,
            channel_multiplier=[1],
            num_res_blocks=1,
            projection_dim=bench.width,
            image_token_embed_dim=bench.width,
        ),
        image_token_id=FIRST_WORD,
    )
    with torch.device(bench.device):
        model = JanusForConditionalGeneration(config).to(getattr(torch, bench.dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(GAIN)
    return JanusPolicy(model, cast(PreTrainedTokenizerBase, None))  # token ids are given, nothing is tokenized


def random_condition(bench: Bench, device: torch.device) -> Condition:
    """Prompts of random words and their null rows."""
    generator = torch.Generator().manual_seed(bench.seed)
    lengths = range(bench.prompt_tokens, bench.prompt_tokens + bench.prompts)
    words = [torch.randint(FIRST_WORD, TEXT_VOCABULARY, (length - 2,), generator=generator) for length in lengths]
    rows = [[BOS, *row.tolist(), BEGIN_OF_IMAGE] for row in words]
    null_rows = [[BOS, *[PAD] * (len(row) - 2), BEGIN_OF_IMAGE] for row in rows]
    names = tuple(f"prompt {index}" for index in range(bench.prompts))
    return condition_from_ids(names, [rows, null_rows], PAD, device)


def ours(policy: JanusPolicy, condition: Condition, bench: Bench, sample: bool) -> Int[Tensor, "R N"]:
    sampling = Sampling(bench.guidance, temperature=1.0 if sample else 0.0)
    rollout = sample_group(policy, condition, bench.group, sampling, Noise(bench.seed), MEASURED)
    return rollout.tokens.flatten(0, 1)


def prompt_rows(condition: Condition, bench: Bench) -> tuple[Int[Tensor, "K R L"], Int[Tensor, "K R L"]]:
    """Token ids and attention masks, one row per image."""
    rows = condition.repeat(bench.group).tensors
    width = rows["ids"].shape[-1]
    slots = torch.arange(width, device=rows["ids"].device)
    return rows["ids"], (slots >= width - rows["lengths"][..., None]).long()


def transformers_generate(policy: JanusPolicy, condition: Condition, bench: Bench, sample: bool) -> Int[Tensor, "R N"]:
    ids, mask = prompt_rows(condition, bench)
    settings = GenerationConfig(
        bos_token_id=BOS,
        pad_token_id=PAD,
        do_sample=sample,
        guidance_scale=bench.guidance,
        max_length=ids.shape[-1] + policy.layout.tokens,
        generation_kwargs={"boi_token_id": BEGIN_OF_IMAGE},
    )
    return policy.model.generate(ids[0], mask[0], generation_config=settings, generation_mode="image")


@torch.no_grad()
def growing_cache(policy: JanusPolicy, condition: Condition, bench: Bench, sample: bool) -> Int[Tensor, "R N"]:
    ids, mask = (rows.transpose(0, 1).flatten(0, 1) for rows in prompt_rows(condition, bench))
    model, cache, tokens = policy.model.model, DynamicCache(), []
    embedded = model.language_model.embed_tokens(ids)
    for _ in range(policy.layout.tokens):
        states = model.language_model(
            inputs_embeds=embedded, attention_mask=mask, past_key_values=cache, use_cache=True
        ).last_hidden_state
        logits = model.generation_head(states[:, -1]).float()
        guided = logits[1::2] + bench.guidance * (logits[0::2] - logits[1::2])
        token = guided.softmax(-1).multinomial(1) if sample else guided.argmax(-1, keepdim=True)
        tokens.append(token)
        embedded = policy.model.prepare_embeddings_for_image_generation(token.repeat_interleave(2, dim=0))
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return torch.cat(tokens, dim=1)


ARMS: dict[str, Callable[[JanusPolicy, Condition, Bench, bool], Int[Tensor, "R N"]]] = {
    "ours": ours,
    "transformers": transformers_generate,
    "growing": growing_cache,
}


def prepare(bench: Bench) -> tuple[JanusPolicy, Condition]:
    torch.set_num_threads(bench.threads)
    policy = random_policy(bench)
    return policy, random_condition(bench, policy.device)


def greedy(arm: str, bench: Bench) -> tuple[list[list[int]], int]:
    """Greedy tokens, and the peak memory in bytes of the process or, on a GPU, of torch's allocations there."""
    tokens = ARMS[arm](*prepare(bench), bench, False).tolist()
    on_gpu = torch.device(bench.device).type == "cuda"
    return tokens, torch.cuda.max_memory_allocated() if on_gpu else peak_resident()


def peak_resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts kibibytes


def agreement(tokens: dict[str, list[list[int]]]) -> dict[str, float]:
    """Share of the greedy tokens of each arm that stand before the image's first difference from ours."""
    mine = torch.tensor(tokens["ours"])
    same = {arm: (torch.tensor(theirs) == mine).int().cumprod(-1) for arm, theirs in tokens.items()}
    return {arm: flags.float().mean().item() for arm, flags in same.items()}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of wall time."""
    synchronize(device)
    begin = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - begin


def copy_bandwidth(device: torch.device, size: int = 2**28) -> float:
    """Bytes per second, read plus written, the best of ten copies of `size` bytes."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * size / min(timed(lambda: target.copy_(source), device) for _ in range(10))


def rollout_bytes(policy: JanusPolicy, condition: Condition, bench: Bench) -> int:
    """What a rollout must read at least: all weights once per step, and each step the cache filled so far."""
    itemsize = policy.language_model.norm.weight.itemsize
    weights = sum(p.nbytes for module in step_modules(policy) for p in module.parameters())
    prompt, steps = condition.tensors["ids"].shape[-1], policy.layout.tokens
    rows = 2 * bench.prompts * bench.group
    slots = sum(prompt + step for step in range(steps))
    return steps * weights + slots * rows * bench.layers * 2 * bench.width * itemsize


def rollout_flop(policy: JanusPolicy, bench: Bench) -> int:
    """Two per weight, row and step; attention's own products are left out."""
    weights = sum(p.numel() for module in step_modules(policy) for p in module.parameters())
    return 2 * weights * 2 * bench.prompts * bench.group * policy.layout.tokens


def step_modules(policy: JanusPolicy) -> list[torch.nn.Module]:
    model = policy.model.model
    return [cast(torch.nn.Module, model.language_model.layers), model.generation_head, model.generation_aligner]


def measure(bench: Bench, console: Console) -> dict[str, object]:
    """All figures of the benchmark, ready for JSON."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        checked = {arm: pool.apply(greedy, (arm, bench)) for arm in ARMS}
    agreed = agreement({arm: tokens for arm, (tokens, _) in checked.items()})
    console.print(f"greedy tokens as ours: {agreed}")
    if bench.dtype == "float32" and min(agreed.values()) < 1:
        raise SystemExit(f"the arms decode different greedy tokens ({agreed}): they cannot be compared")

    policy, condition = prepare(bench)
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for number in range(1, bench.repeats + 1):
        for arm, decode in ARMS.items():
            seconds[arm].append(timed(partial(decode, policy, condition, bench, True), policy.device))
            console.print(f"round {number}/{bench.repeats}  {arm}  {seconds[arm][-1]:.1f} s")
    bandwidth = copy_bandwidth(policy.device)
    floor = rollout_bytes(policy, condition, bench) / bandwidth

    def figures(arm: str) -> dict[str, float]:
        median = statistics.median(seconds[arm])
        images = bench.prompts * bench.group
        return {
            "seconds": median,
            "times_ours": statistics.median(a / b for a, b in zip(seconds[arm], seconds["ours"], strict=True)),
            "images_per_s": images / median,
            "tokens_per_s": images * policy.layout.tokens / median,
            "ms_per_step": 1e3 * median / policy.layout.tokens,
            "share_of_floor": floor / median,
            "peak_gb": checked[arm][1] / 1e9,
            "greedy_agreement": agreed[arm],
        }

    return {
        "settings": {name: value for name, value in asdict(bench).items() if name != "json"},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "hardware": torch.cuda.get_device_name(policy.device) if policy.device.type == "cuda" else platform.machine(),
        "distinct_greedy_tokens": len({token for row in checked["ours"][0] for token in row}),
        "copy_gb_per_s": bandwidth / 1e9,
        "floor_seconds": floor,
        "gflop": rollout_flop(policy, bench) / 1e9,
        "seconds": seconds,
        "arms": {arm: figures(arm) for arm in ARMS},
    }


def table(result: dict) -> Table:
    settings = result["settings"]
    title = "{prompts} prompts x {group} images of {grid}x{grid} tokens, {dtype} on {device}".format(**settings)
    columns = list(result["arms"]["ours"])
    shown = Table("arm", *(name.replace("_", " ") for name in columns), title=title)
    shown.columns[0].no_wrap = True
    for arm, figures in result["arms"].items():
        shown.add_row(arm, *(f"{figures[name]:.3g}" for name in columns))
    shown.caption = (
        f"floor {result['floor_seconds']:.3g} s at {result['copy_gb_per_s']:.3g} GB/s; {result['gflop']:.3g} GFLOP; "
        f"{result['distinct_greedy_tokens']} distinct greedy tokens"
    )
    return shown


def main(bench: Bench) -> None:
    console = Console()
    result = measure(bench, console)
    console.print(table(result))
    if bench.json is not None:
        bench.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
