"""How fast images are scored: one by one, batched, and batched over HTTP.

    python scripts/bench_rewards.py --json bench.json
    python scripts/bench_rewards.py --device cuda --layers 24

The scorer is an image encoder of ViT-L/14's width and patches with random weights, which is what CLIP-like rewards
cost. The server runs in a process of its own with as many threads as the arms without it; all arms score the same
images in turn, so that whatever else the machine does falls on all alike, and must give the same scores. The overhead
of HTTP is measured twice: as the difference of the medians, and by itself, as the time of the same requests to a
reward that costs nothing. The second is the one to trust where the first is lost in noise.
"""

import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy import ndarray
from rich.console import Console
from rich.table import Table
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from rewards.client import Patience, RemoteReward
from rewards.reward import Reward, Scores, score_images
from rewards.server import listen


@dataclass(frozen=True)
class Bench:
    """images: per call. size: their side in pixels. layers: of the encoder, ViT-L has 24.

    threads: of the CPU. repeats: timed rounds. json: where to write the figures.
    """

    images: int = 16
    size: int = 384
    layers: int = 24
    device: str = "cpu"
    threads: int = 1
    repeats: int = 3
    json: Path | None = None


class Encoder:
    """A ViT-L/14 with random weights: the sum of an image's features."""

    name = "vit-l-14 (random)"

    def __init__(self, layers: int, device: str) -> None:
        torch.manual_seed(0)
        config = CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=layers,
            num_attention_heads=16,
            patch_size=14,
            image_size=224,
            projection_dim=768,
        )
        self.model = CLIPVisionModelWithProjection(config).to(device).eval()
        self.device = device

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Any prompt will do."""

    @torch.inference_mode()
    def score(self, images: Sequence[ndarray], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Scores:
        pixels = torch.from_numpy(np.stack(images)).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        pixels = torch.nn.functional.interpolate(pixels, size=(224, 224), mode="bilinear", antialias=True)
        total = self.model(pixel_values=pixels).image_embeds.sum(-1).float().cpu()
        return Scores(total, {}, ("",) * len(images))


class Nothing:
    """A reward that costs nothing."""

    name = "nothing"

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Any prompt will do."""

    def score(self, images: Sequence[ndarray], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Scores:
        return Scores(torch.zeros(len(images)), {}, ("",) * len(images))


def work(listener: Any, build: Callable[[], Reward], threads: int, batch: int) -> None:
    """A server, in a process of its own."""
    import uvicorn

    from rewards.app import create_app
    from rewards.server import Service

    torch.set_num_threads(threads)
    app = create_app(build(), Service("shapes", batch=batch))
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def one_by_one(reward: Reward, images: Sequence[ndarray], prompts: Sequence[str]) -> torch.Tensor:
    return torch.cat(
        [score_images(reward, [image], [text], [{}]).total for image, text in zip(images, prompts, strict=True)]
    )


def batched(reward: Reward, images: Sequence[ndarray], prompts: Sequence[str]) -> torch.Tensor:
    return score_images(reward, images, prompts, [{}] * len(images)).total


def main(bench: Bench) -> None:
    torch.set_num_threads(bench.threads)
    generator = np.random.default_rng(0)
    images = list(generator.integers(0, 256, (bench.images, bench.size, bench.size, 3), dtype=np.uint8))
    prompts = ["a photo of a red circle and a blue cross"] * bench.images
    spawn = multiprocessing.get_context("spawn")
    children, remote = [], {}
    builders: dict[str, Callable[[], Reward]] = {"http": Build(bench.layers, bench.device), "nothing": Nothing}
    for name, build in builders.items():
        listener = listen("127.0.0.1", 0)
        child = spawn.Process(target=work, args=(listener, build, bench.threads, bench.images), daemon=True)
        child.start()
        children.append(child)
        patience = Patience(timeout=600, connect=600, images=bench.images)
        remote[name] = RemoteReward("shapes", [f"http://127.0.0.1:{listener.getsockname()[1]}"], patience)
        remote[name].check(prompts[:1], [{}])
        listener.close()
    local = Encoder(bench.layers, bench.device)
    arms: dict[str, Callable[[], torch.Tensor]] = {
        "one by one": lambda: one_by_one(local, images, prompts),
        "batched": lambda: batched(local, images, prompts),
        "batched over HTTP": lambda: batched(remote["http"], images, prompts),
        "HTTP alone": lambda: batched(remote["nothing"], images, prompts),
    }
    for reward in (local, *remote.values()):
        batched(reward, images[:1], prompts[:1])  # the first call is slower
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(bench.repeats):
        scores = {}
        for name, arm in arms.items():
            began = time.perf_counter()
            scores[name] = arm()
            seconds[name].append(time.perf_counter() - began)
        torch.testing.assert_close(scores["batched over HTTP"], scores["batched"], rtol=0, atol=0)
        torch.testing.assert_close(scores["one by one"], scores["batched"], rtol=1e-3, atol=1e-2)
    for child in children:
        child.terminate()
    report(bench, {name: statistics.median(spent) for name, spent in seconds.items()})


@dataclass(frozen=True)
class Build:
    """Builds an encoder, in whichever process."""

    layers: int
    device: str

    def __call__(self) -> Reward:
        return Encoder(self.layers, self.device)


def report(bench: Bench, seconds: Mapping[str, float]) -> None:
    table = Table(title=f"{bench.images} images of {bench.size} x {bench.size}, {bench.device}")
    for column in ("arm", "seconds", "images/s", "ms per image"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for name, spent in seconds.items():
        table.add_row(name, f"{spent:.3f}", f"{bench.images / spent:.2f}", f"{1000 * spent / bench.images:.2f}")
    figures = {
        "settings": {**asdict(bench), "json": None},
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}",
        "seconds": dict(seconds),
        "images_per_second": {name: bench.images / spent for name, spent in seconds.items()},
        "http_overhead_of_scoring": {
            "difference": seconds["batched over HTTP"] / seconds["batched"] - 1,
            "alone": seconds["HTTP alone"] / seconds["batched"],
        },
    }
    console = Console()
    console.print(table)
    console.print(f"HTTP adds {100 * figures['http_overhead_of_scoring']['alone']:.2f} % of the scoring time")
    if bench.json:
        bench.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
