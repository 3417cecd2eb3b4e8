"""How fast images are scored: one by one, batched, and batched over HTTP.

    python scripts/bench_rewards.py --json bench.json
    python scripts/bench_rewards.py --device cuda --repeats 10

The scorer is `rewards.scorers.clipscore.ClipScore` itself, with CLIP's own transform of each picture, on an open_clip
ViT-L/14 of random weights: what a CLIP-like reward costs. Images and prompts come as a training step sends them, in
groups of `--group` images of one prompt. A batch reads each prompt once; one by one, it is read again for every image.

The server is the one that users start, in a process of its own with as many threads as the arms without it, and the
client is a run's. The arms take turns, so that whatever else the machine does falls on all alike, and must give the
same scores: over HTTP to the bit. The overhead of HTTP is measured twice: as the difference of the medians, and by
itself, as the time of the same requests to a reward that costs nothing. The second is the one to trust where the first
is lost in noise.
"""

import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import tyro
from jaxtyping import UInt8
from numpy import ndarray
from rich.console import Console
from rich.table import Table

from rewards.http.client import Patience, RemoteReward
from rewards.http.service import Service
from rewards.reward import Reward, score_images
from rewards.scorers.clip import Clip, evaluation_transform
from rewards.scorers.clipscore import ClipScore
from rewards.scorers.measure import Measure
from rewards.scorers.tokenizer import ClipTokenizer
from rewards.server import listen

ARCHITECTURE = "ViT-L-14-quickgelu"
SERVED = "clipscore"
LONGEST = 3600.0  # seconds for a request: a slow machine is no fault here


@dataclass(frozen=True)
class Bench:
    """Images per second of a reward: one by one, batched, over HTTP.

    Attributes:
        images: in a call.
        group: images of one prompt.
        size: of an image's side, in pixels.
        layers: of the image encoder; ViT-L has 24.
        device: where the scorer runs, such as cpu or cuda.
        threads: of the CPU, for each process.
        repeats: timed rounds.
        json: a file for the figures.
    """

    images: int = 16
    group: int = 8
    size: int = 384
    layers: int = 24
    device: str = "cpu"
    threads: int = 1
    repeats: int = 3
    json: Path | None = None


@dataclass(frozen=True)
class Scorer:
    """Builds the reward, in whichever process; random weights, the same everywhere."""

    layers: int
    device: str

    def __call__(self) -> Reward:
        torch.manual_seed(0)
        config = open_clip.get_model_config(ARCHITECTURE)
        config["vision_cfg"]["layers"] = self.layers
        model = open_clip.CLIP(**config).eval().requires_grad_(False).to(self.device)
        transform = evaluation_transform(model.visual.image_size)
        return ClipScore(
            Clip(model, ClipTokenizer(model.context_length), transform, torch.device(self.device)),
            f"random {ARCHITECTURE}",
        )


class Nothing(Measure):
    """A reward that costs nothing."""

    name = "nothing"

    def measure(self, images: Sequence[UInt8[ndarray, "H W 3"]], prompts: Sequence[str]) -> torch.Tensor:
        return torch.zeros(len(images))


def work(listener: Any, build: Callable[[], Reward], threads: int) -> None:
    """A server, in a process of its own."""
    import uvicorn

    from rewards.http.app import create_app

    torch.set_num_threads(threads)
    app = create_app(build(), Service(SERVED))
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def served(stack: ExitStack, build: Callable[[], Reward], threads: int, images: int) -> RemoteReward:
    """The reward behind a server of its own, once it answers; the stack ends the server."""
    with listen("127.0.0.1", 0) as listener:
        child = multiprocessing.get_context("spawn").Process(target=work, args=(listener, build, threads), daemon=True)
        child.start()
        stack.callback(child.terminate)
        patience = Patience(timeout=LONGEST, connect=LONGEST, images=images)
        remote = RemoteReward(SERVED, [f"http://127.0.0.1:{listener.getsockname()[1]}"], patience)
        remote.check(["a"], [{}])
    return remote


def one_by_one(reward: Reward, images: Sequence[ndarray], prompts: Sequence[str]) -> torch.Tensor:
    return torch.cat(
        [score_images(reward, [image], [text], [{}]).total for image, text in zip(images, prompts, strict=True)]
    )


def batched(reward: Reward, images: Sequence[ndarray], prompts: Sequence[str]) -> torch.Tensor:
    return score_images(reward, images, prompts, [{}] * len(images)).total


def measure(bench: Bench) -> dict[str, list[float]]:
    """The seconds of each arm, round by round."""
    generator = np.random.default_rng(0)
    images = list(generator.integers(0, 256, (bench.images, bench.size, bench.size, 3), dtype=np.uint8))
    prompts = [f"a photo of {2 + row // bench.group} red dogs left of a blue bench" for row in range(bench.images)]
    build = Scorer(bench.layers, bench.device)
    with ExitStack() as stack:
        remote = served(stack, build, bench.threads, bench.images)
        nothing = served(stack, Nothing, bench.threads, bench.images)
        local = build()
        arms: dict[str, Callable[[], torch.Tensor]] = {
            "one by one": lambda: one_by_one(local, images, prompts),
            "batched": lambda: batched(local, images, prompts),
            "batched over HTTP": lambda: batched(remote, images, prompts),
            "HTTP alone": lambda: batched(nothing, images, prompts),
        }
        # The first call is slower, on a GPU the first of each size.
        ahead = bench.images if bench.device != "cpu" else 1
        for reward in (local, remote, nothing):
            batched(reward, images[:ahead], prompts[:ahead])
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(bench.repeats):
            scores = {}
            for name, arm in arms.items():
                began = time.perf_counter()
                scores[name] = arm()
                seconds[name].append(time.perf_counter() - began)
            torch.testing.assert_close(scores["batched over HTTP"], scores["batched"], rtol=0, atol=0)
            torch.testing.assert_close(scores["one by one"], scores["batched"], rtol=1e-3, atol=1e-3)
    return seconds


def figures(bench: Bench, seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """What is reported of the medians."""
    median = {name: statistics.median(spent) for name, spent in seconds.items()}
    return {
        "settings": {name: value for name, value in asdict(bench).items() if name != "json"},
        "hardware": torch.cuda.get_device_name(bench.device) if "cuda" in bench.device else processor(),
        "versions": {"torch": torch.__version__, "open_clip": open_clip.__version__},
        "seconds": {name: list(spent) for name, spent in seconds.items()},
        "images_per_second": {name: bench.images / spent for name, spent in median.items()},
        "http_overhead": {
            "alone": median["HTTP alone"] / median["batched"],
            "difference": median["batched over HTTP"] / median["batched"] - 1,
            "ms_per_image": 1000 * median["HTTP alone"] / bench.images,
        },
    }


def processor() -> str:
    """What the CPU calls itself, where the system tells."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} CPUs"


def table(bench: Bench, found: Mapping[str, Any]) -> Table:
    drawn = Table(title=f"{bench.images} images of {bench.size} x {bench.size}, {found['hardware']}")
    for column in ("arm", "seconds", "images/s", "ms per image"):
        drawn.add_column(column, justify="left" if column == "arm" else "right")
    for name, rate in found["images_per_second"].items():
        drawn.add_row(name, f"{bench.images / rate:.3f}", f"{rate:.2f}", f"{1000 / rate:.2f}")
    return drawn


def main(bench: Bench) -> None:
    torch.set_num_threads(bench.threads)
    found = figures(bench, measure(bench))
    console, overhead = Console(), found["http_overhead"]
    console.print(table(bench, found))
    console.print(
        f"HTTP costs {100 * overhead['alone']:.2f} % of the batched scoring time by itself "
        f"({100 * overhead['difference']:+.2f} % as the difference of the arms)"
    )
    if bench.json:
        bench.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
