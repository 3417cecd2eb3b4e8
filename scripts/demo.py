"""The demo: train the embedded tiny Janus with `--method cfg` on the shapes world and show what changed.

    make demo
    python scripts/demo.py --reward shapes@http://127.0.0.1:8100     the same run on a reward that is served

Writes `runs/demo` anew: the run itself, `summary.json` (held-out accuracy before and after, overall and per
tag; seconds), a heatmap of before and after side by side, and `report.html`, which shows the run in one page.
"""

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from models.policy import Policy
from models.registry import load
from rewards.errors import RewardError
from rewards.registry import build
from t2i_rl.configuration.config import RewardSpecification
from t2i_rl.configuration.presets import preset
from t2i_rl.configuration.run_method import run_method
from t2i_rl.errors import UserError
from t2i_rl.outputs import write_atomically
from t2i_rl.pictures.heatmap_files import save
from t2i_rl.pictures.heatmaps import token_maps
from t2i_rl.prompts.prompt import balanced
from t2i_rl.prompts.reading import load_prompts
from t2i_rl.reports import report
from t2i_rl.training.evaluation import Evaluation, evaluate
from t2i_rl.training.run import start
from t2i_rl.training.run_folder import CHECKPOINTS, latest

RUN = Path("runs/demo")
IMAGES_PER_TAG = 100
HEATMAP_PROMPT, HEATMAP_IMAGES = "a photo of a red circle and a blue cross", 3


def held_out(policy: Policy, seed: int) -> Evaluation:
    """The official GenEval score; the same prompts and the same noise for every policy."""
    prompts = balanced(load_prompts("shapes:heldout"), IMAGES_PER_TAG)
    return evaluate(policy, prompts, build("shapes-official"), SETTINGS.evaluation.sampling, seed, batch=100)


def table(before: Mapping[str, float], after: Mapping[str, float]) -> Table:
    drawn = Table(title="Held-out accuracy (GenEval's rules)")
    for name in ("tag", "before", "after", "change"):
        drawn.add_column(name, justify="left" if name == "tag" else "right")
    for tag in before:
        style = "bold" if tag == "overall" else None
        drawn.add_row(tag, f"{before[tag]:.3f}", f"{after[tag]:.3f}", f"{after[tag] - before[tag]:+.3f}", style=style)
    return drawn


def scores(found: Evaluation) -> dict[str, float]:
    return {"overall": found.overall, **found.per_tag}


SETTINGS = dataclasses.replace(preset("tiny", "shapes", "cfg"), out=RUN)


def main(reward: RewardSpecification = SETTINGS.reward) -> None:
    """Train the tiny model and show what changed.

    Args:
        reward: what scores the images in training, as in t2i-rl train.
    """
    began = time.time()
    console = Console()
    shutil.rmtree(RUN, ignore_errors=True)
    base = load(SETTINGS.model)
    console.print(f"Judging the base model on {6 * IMAGES_PER_TAG} held-out images …")
    before = scores(held_out(base, SETTINGS.seed))
    start(dataclasses.replace(SETTINGS, reward=reward))
    newest = latest(RUN / CHECKPOINTS)
    assert newest is not None  # a run that ends has written its last step
    trained = load(str(newest))
    console.print("Judging the trained model …")
    after = scores(held_out(trained, SETTINGS.seed))
    what, method = f"after {SETTINGS.steps} steps, against before", run_method(SETTINGS)
    sampling, seed = SETTINGS.rollout.sampling, SETTINGS.seed
    save(token_maps(trained, HEATMAP_PROMPT, HEATMAP_IMAGES, sampling, seed, base, method, what), RUN / "heatmap")
    summary = {"before": before, "after": after, "seconds": round(time.time() - began, 1)}
    write_atomically(RUN / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_atomically(RUN / report.REPORT, report.report([report.read(RUN, RUN.name)]))
    console.print(table(before, after))
    console.print(f"{summary['seconds']:.0f} seconds. Look at:")
    for file, what in (
        (report.REPORT, "the whole run in one page: curves, samples through training, heatmaps, settings"),
        ("reward.png", "the reward and the held-out score against steps"),
        ("samples.png", "the same prompts and noise over the steps"),
        ("heatmap/heatmap.html", "which tokens the prompt decides before training and after, and what became likelier"),
        ("summary.json", "these figures"),
    ):
        console.print(f"  {RUN / file}: {what}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (RewardError, UserError) as error:
        sys.exit(f"demo: {error}")
