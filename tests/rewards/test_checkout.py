"""The server from a checkout that holds `rewards/` alone, where nothing but its requirements files is installed."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

import rewards
from rewards.registry import build
from rewards.reward import score_images
from tests.rewards.tiny_clip import save_tiny_clip
from tests.rewards.tiny_scorers import save_detector

FOLDER = Path(rewards.__file__).parent
# What is fenced off is nowhere, so that packages which look whether another one is there see none.
CHILD = """
import importlib, runpy, sys
from pathlib import Path

away = {*sys.argv[1].split()}

class Fenced:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *more):
        return None if name.partition(".")[0] in away else self.finder.find_spec(name, *more)

sys.meta_path[:] = [Fenced(finder) for finder in sys.meta_path]
for name in sys.argv[2].split():
    importlib.import_module(name)
sys.argv = ["rewards.server", sys.argv[3], "--port", "0"]
import rewards
assert Path(rewards.__file__).is_relative_to(Path.cwd())
runpy.run_module("rewards.server", run_name="__main__")
"""


def named(file: Path) -> Iterator[str]:
    """The distributions that a requirements file names, with those of the files that it includes."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            yield from named(file.parent / line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            yield line


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def away(file: Path) -> set[str]:
    """What can be imported here, but not where nothing is installed except that file."""
    found: set[str] = set()
    waiting = [Requirement(line) for line in named(file)]
    while waiting:
        wanted = waiting.pop()
        if plain(wanted.name) in found:
            continue
        found.add(plain(wanted.name))
        extras = ["", *wanted.extras]
        further = map(Requirement, requires(wanted.name) or ())
        waiting += [one for one in further if not one.marker or any(one.marker.evaluate({"extra": e}) for e in extras)]
    return {name for name, owners in packages_distributions().items() if not found & {*map(plain, owners)}}


NETWORKS = " ".join(f"scorers.{name}" for name in ("aesthetic", "clipscore", "hpsv2", "imagereward", "pickscore"))
SCORERS = f"{NETWORKS} judges.judge calibrate http.client"


@pytest.mark.parametrize(
    ("reward", "requirements", "modules"),
    [("shapes", "requirements.txt", ""), ("geneval", "requirements-scorers.txt", SCORERS)],
)
def test_the_requirements_are_enough(
    reward: str, requirements: str, modules: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It serves what is scored here, though nothing else of ours or of others can be imported; then it stops."""
    monkeypatch.setenv("T2I_RL_DETECTOR", str(save_detector(tmp_path / "detector.safetensors")))
    monkeypatch.setenv("T2I_RL_CLIP", str(save_tiny_clip(tmp_path / "clip")))
    shutil.copytree(FOLDER, tmp_path / "rewards", ignore=shutil.ignore_patterns("__pycache__"))
    fenced = away(FOLDER / requirements) - {"rewards"}
    assert {"t2i_rl", "models", "eval", "peft", "matplotlib"} <= fenced and "torch" not in fenced
    words = [" ".join(fenced), " ".join(f"rewards.{name}" for name in modules.split()), reward]
    square = np.full((48, 48, 3), 150, dtype=np.uint8)
    square[12:30, 12:30] = 30
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    thing = "square" if reward == "shapes" else "bottle"
    record = {
        "tag": "colors",
        "include": [{"class": thing, "count": 1, "color": "black"}, {"class": thing, "count": 5}],
    }
    asked = ([square, noise], ["a photo"] * 2, [record] * 2)
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None and server.stderr is not None
            line = server.stdout.readline()
            assert line.startswith(f"{reward} ("), server.stderr.read()
            served = build(f"{reward}@{line.split()[-1]}")
            served.check(*asked[1:])
            here = build(reward)
            assert served.name == here.name
            scores, expected = score_images(served, *asked), score_images(here, *asked)
            assert torch.equal(scores.total, expected.total) and scores.reasons == expected.reasons
            assert scores.total.any()
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0 and not server.stderr.read()
        finally:
            server.kill()
