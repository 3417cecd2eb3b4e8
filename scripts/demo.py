"""The demo: train the embedded tiny Janus with `--method cfg` on the shapes world and show what changed.

    make demo
    python scripts/demo.py --reward shapes@http://127.0.0.1:8100     the same run on a reward that is served

Writes `runs/demo` anew: the run itself, `summary.json` (held-out accuracy before and after, over all tags and of each,
with its standard errors over prompts; seconds), a heatmap of before and after side by side, and `report.html`, which
shows the run in one page.
"""

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

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
from t2i_rl.reports.paired import paired, standard_errors
from t2i_rl.training.evaluation import evaluate
from t2i_rl.training.run import start
from t2i_rl.training.run_folder import CHECKPOINTS, latest
from t2i_rl.training.samples import Verdict, verdicts

RUN = Path("runs/demo")
IMAGES_PER_TAG = 100
HEATMAP_PROMPT, HEATMAP_IMAGES = "a photo of a red circle and a blue cross", 3


def held_out(policy: Policy, seed: int) -> list[Verdict]:
    """By GenEval's official rules; the same prompts and the same noise for every policy."""
    prompts = balanced(load_prompts("shapes:heldout"), IMAGES_PER_TAG)
    sampling = SETTINGS.evaluation.sampling
    return verdicts(prompts, evaluate(policy, prompts, build("shapes-official"), sampling, seed, batch=100))


def summary(before: Sequence[Verdict], after: Sequence[Verdict]) -> dict[str, Any]:
    """Accuracy over all tags and of each, its standard errors over prompts, and what changed prompt by prompt."""
    tags = list(dict.fromkeys(one.tag for one in before))
    found: dict[str, Any] = {}
    for name, judged in (("before", before), ("after", after)):
        by_tag = {tag: fmean(one.score for one in judged if one.tag == tag) for tag in tags}
        errors = standard_errors(judged)
        found[name] = {"overall": fmean(by_tag.values()), **by_tag}
        found[f"{name}_error"] = {"overall": errors["heldout"], **{tag: errors[f"heldout/{tag}"] for tag in tags}}
    numbers = {tag: len({one.number for one in before if one.tag == tag}) for tag in tags}
    found["prompts"] = {"overall": sum(numbers.values()), **numbers}
    both = paired(before, after)
    assert both is not None  # the same samples
    return found | {"paired": asdict(both)}


def table(found: Mapping[str, Any]) -> Table:
    both = found["paired"]
    drawn = Table(
        title="Held-out accuracy (GenEval's rules)",
        caption=f"± standard errors over prompts; {both['won']} prompts won, {both['lost']} lost, of {both['prompts']}",
    )
    for name in ("tag", "prompts", "before", "after", "change"):
        drawn.add_column(name, justify="left" if name == "tag" else "right")
    for tag, before in found["before"].items():
        scores = [f"{found[name][tag]:.3f} ± {found[f'{name}_error'][tag]:.3f}" for name in ("before", "after")]
        change = f"{found['after'][tag] - before:+.3f}"
        if tag == "overall" and both["error"] is not None:
            change += f" ± {both['error']:.3f}"
        drawn.add_row(tag, str(found["prompts"][tag]), *scores, change, style="bold" if tag == "overall" else None)
    return drawn


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
    before = held_out(base, SETTINGS.seed)
    start(dataclasses.replace(SETTINGS, reward=reward))
    newest = latest(RUN / CHECKPOINTS)
    assert newest is not None  # a run that ends has written its last step
    trained = load(str(newest))
    console.print("Judging the trained model …")
    after = held_out(trained, SETTINGS.seed)
    what, method = f"after {SETTINGS.steps} steps, against before", run_method(SETTINGS)
    sampling, seed = SETTINGS.rollout.sampling, SETTINGS.seed
    save(token_maps(trained, HEATMAP_PROMPT, HEATMAP_IMAGES, sampling, seed, base, method, what), RUN / "heatmap")
    found = summary(before, after) | {"seconds": round(time.time() - began, 1)}
    write_atomically(RUN / "summary.json", json.dumps(found, indent=2) + "\n")
    write_atomically(RUN / report.REPORT, report.report([report.read(RUN, RUN.name)]))
    console.print(table(found))
    console.print(f"{found['seconds']:.0f} seconds. Look at:")
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
