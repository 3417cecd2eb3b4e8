"""What happened in one or several runs, as one page that needs nothing else: curves, samples, token maps, settings.

Everything is read from the run folders (`t2i_rl.training.run`); runs that still go on or were killed are shown so far.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from models.policy import Policy
from models.question import IMAGE
from t2i_rl.configuration.asking import DEFAULT_CONTRAST, asking_of
from t2i_rl.configuration.config import TrainConfig, fixed
from t2i_rl.configuration.run_method import run_method
from t2i_rl.errors import UserError
from t2i_rl.methods.method import Method
from t2i_rl.pictures.answer_files import page as answer_page
from t2i_rl.pictures.answer_maps import answer_maps
from t2i_rl.pictures.heatmap_files import page
from t2i_rl.pictures.pages import render
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.reports.paired import Paired, paired, standard_errors
from t2i_rl.reports.revisit import run_config
from t2i_rl.reports.samples import Samples, read_samples
from t2i_rl.training.doubts import history
from t2i_rl.training.metrics_log import read_metrics, step_seconds
from t2i_rl.training.prompt_record import prompts_of
from t2i_rl.training.run_folder import CHECKPOINTS
from t2i_rl.training.run_record import read_record
from t2i_rl.training.samples import SAMPLES, read_verdicts

REPORT = "report.html"
FEW, SETTLED = 10, 2  # prompts that say nothing; standard errors that a change has to have
ROUNDING = 1e-6  # what numbers differ by that are the same: of their size, or of 1 where that is more

# Told apart without colour vision; from the seventh run on, by their dashes.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("", "6 3", "2 3", "8 3 2 3")

# Which curves stand together, and in which order; a name ending in / stands for all that begin with it.
SECTIONS = {
    "Held-out score": ("heldout", "heldout/", "also/"),
    "Reward of the training groups": ("reward", "reward/", "reward_std", "zero_variance", "groups_"),
    "Policy": (
        "kl",
        "kl_updated",
        "entropy",
        "length",
        "truncated",
        "contrast_same",
        "clip_fraction",
        "updated_tokens",
        "credit_weight",
        "policy_loss",
        "grad_norm",
        "learning_rate",
        "logprob_gap",
    ),
    "Time": ("seconds/step", "seconds/", "images_per_second", "answers_per_second"),
    "Further": ("",),
}
TITLES = {
    "heldout": "held-out score, all tags",
    "reward": "reward",
    "reward_std": "standard deviation in a group",
    "zero_variance": "share of groups with equal rewards",
    "kl": "divergence from the reference, nats",
    "kl_updated": "the same over updated tokens, nats",
    "entropy": "entropy while sampling, nats",
    "clip_fraction": "share of clipped tokens",
    "updated_tokens": "share of updated tokens",
    "credit_weight": "mean weight of updated tokens",
    "policy_loss": "policy loss",
    "grad_norm": "gradient norm before clipping",
    "learning_rate": "learning rate",
    "logprob_gap": "sampler against trainer, nats",
    "images_per_second": "images per second",
    "answers_per_second": "answers per second",
    "length": "tokens of an answer",
    "truncated": "share of answers that were cut off",
    "contrast_same": "share of questions that the contrast leaves as they are",
    "seconds/step": "seconds per step",
}


@dataclass(frozen=True)
class Reported:
    """One run, as the page shows it.

    maps: pages of token maps, by their names.
    paired: the last evaluation against the first; None where their samples are not known.
    commit: of the code that it was started with; "" where that is not known.
    errors: standard errors over prompts, by step and metric, of the evaluations whose samples are known.
    """

    name: str
    config: TrainConfig
    metrics: Sequence[Mapping[str, float]]
    samples: Samples | None
    maps: Mapping[str, str]
    paired: Paired | None = None
    commit: str = ""
    errors: Mapping[int, Mapping[str, float]] = field(default_factory=dict)

    @property
    def done(self) -> int:
        return int(self.metrics[-1]["step"])

    def curve(self, name: str) -> list[tuple[int, float]]:
        return [(int(row["step"]), row[name]) for row in self.metrics if name in row]


def read(run: Path, name: str, prompt: str | None = None, device: str = "cpu") -> Reported:
    """A run so far. prompt: draw its token maps with the newest checkpoint, on this device.

    Raises UserError for a folder that is not a run's, and for a run that has not measured anything yet.
    """
    config = run_config(run)
    metrics = read_metrics(run)
    if not metrics:
        raise UserError(f"{run} has measured nothing yet: wait for its first evaluation")
    evaluated = [int(row["step"]) for row in metrics if "heldout" in row]
    verdicts = {step: read_verdicts(run / SAMPLES, step) for step in evaluated}
    maps = {path.parent.name: path.read_text(encoding="utf-8") for path in sorted(run.glob("*/heatmap.html"))}
    if prompt is not None:
        maps[f"“{prompt}”"] = drawn_maps(run, config, prompt, device)
    samples = read_samples(run, config, evaluated, verdicts)
    both = paired(verdicts[evaluated[0]], verdicts[evaluated[-1]]) if len(evaluated) > 1 else None
    commit = str((read_record(run) or [{}])[0].get("commit", ""))
    errors = {step: standard_errors(found) for step, found in verdicts.items() if found}
    return Reported(name, config, metrics, samples, maps, both, commit, errors)


def drawn_maps(run: Path, config: TrainConfig, prompt: str, device: str) -> str:
    """The page of the token maps of the newest checkpoint, against the model that the run began with."""
    import torch

    from models.registry import load
    from t2i_rl.pictures.heatmaps import token_maps
    from t2i_rl.training.checkpoints import check_source
    from t2i_rl.training.origins import origin_of
    from t2i_rl.training.run_folder import latest

    newest = latest(run / CHECKPOINTS)
    if newest is None:
        raise UserError(f"{run} has no checkpoint to draw token maps with: leave out --prompt")
    for model in (str(newest), config.model):
        check_source(model)
    dtype, source = getattr(torch, config.dtype), f"{run.name}, {newest.name}, against {config.model}"
    policy, reference = load(str(newest), dtype, device), origin_of(run, config, device)
    sampling, method = config.rollout.sampling, run_method(config)
    if policy.stop_tokens:
        return drawn_answers(policy, config, method, prompt, f"{run.name}, {newest.name}")
    return page(token_maps(policy, prompt, 4, sampling, config.seed, reference, method, source))


def drawn_answers(policy: Policy, config: TrainConfig, method: Method, prompt: str, source: str) -> str:
    """The page of answers, word by word, to the held-out question with these words, or to them without a picture."""
    asking, heldout = asking_of(config, method, answers=True), prompts_of(config, "heldout")
    asked = next((one for one in heldout if one.text.replace(IMAGE, "").strip() == prompt.strip()), Prompt(prompt))
    compared = asking if asking.against else replace(asking, against=DEFAULT_CONTRAST)
    most, sampling = config.question.max_tokens, config.rollout.sampling
    return answer_page(answer_maps(policy, asked, compared, 4, sampling, config.seed, method, most, source))


def names_of(runs: Sequence[Path]) -> list[str]:
    """What the runs are called: their folders' names, or whole paths where those are the same."""
    short = [run.resolve().name for run in runs]
    return short if len(set(short)) == len(runs) else [str(run) for run in runs]


def sections(names: Sequence[str]) -> dict[str, list[str]]:
    """The curves by section; each in the first that names it, in the order of the names there."""
    left, found = list(dict.fromkeys(names)), dict[str, list[str]]()
    for title, wanted in SECTIONS.items():
        for pattern in wanted:
            fits = [name for name in left if name == pattern or (name.startswith(pattern) and pattern[-1:] in "/_")]
            found.setdefault(title, []).extend(fits)
            left = [name for name in left if name not in fits]
    return {title: fits for title, fits in found.items() if fits}


def panel(name: str, runs: Sequence[Reported]) -> dict[str, Any]:
    """One curve of every run. unit: its axis goes from 0 to 1, so that the tags' panels compare.

    noisy: many points are shown with their moving mean.
    errors: beside each curve, the standard error of each point; none but of held-out scores.
    """
    curves = [run.curve(name) for run in runs]
    values = [value for curve in curves for _, value in curve]
    unit = name.startswith("heldout") and all(0 <= value <= 1 for value in values)
    title = TITLES.get(name) or name.removeprefix("heldout/").replace("/", ": ").replace("_", " ")
    judged = name.startswith("heldout")
    errors = [[error_at(run, row, name) for row in run.metrics if name in row] if judged else [] for run in runs]
    noisy = name != "learning_rate"
    return {"name": name, "title": title, "unit": unit, "noisy": noisy, "curves": curves, "errors": errors}


def last_error(run: Reported) -> float | None:
    """The standard error of the last held-out score; None where it is not known."""
    judged = [row for row in run.metrics if "heldout" in row]
    return error_at(run, judged[-1], "heldout") if judged else None


def error_at(run: Reported, row: Mapping[str, float], name: str) -> float | None:
    """The standard error of a held-out score in a step; None where it is not known.

    Of samples that are not known it is the most that it can be, while the scores lie in 0..1: those of mean p have a
    variance of at most p (1 - p), and the overall score is the mean over tags.
    """
    if (known := run.errors.get(int(row["step"]))) is not None:
        return known.get(name)
    tags = [name] if name != "heldout" else [one for one in row if one.startswith("heldout/")]
    values = [row[one] for one in tags]
    if not values or not all(0 <= value <= 1 for value in values):
        return None
    images = run.config.evaluation.images_per_tag
    return math.sqrt(sum(value * (1 - value) for value in values) / images) / len(values)


def summary(run: Reported) -> dict[str, str]:
    """A run in one row of the first table."""
    config, rollout, scores = run.config, run.config.rollout, dict(run.curve("heldout"))
    trained = {step: score for step, score in scores.items() if step > 0}
    error = last_error(run)
    best = max(trained, key=lambda step: trained[step], default=None)
    unfinished = "" if run.done == config.steps else " (not finished)"
    return {
        "run": run.name,
        "method": config.method,
        "model": config.model,
        "seed": str(config.seed),
        "steps": f"{run.done} of {config.steps}{unfinished}",
        "samples per step": f"{rollout.prompts_per_step} × {rollout.group_size}",
        "held-out before": f"{scores[0]:.3f}" if 0 in scores else "",
        "best (step)": "" if best is None else f"{trained[best]:.3f} ({best})",
        "last": f"{trained[max(trained)]:.3f}" if trained else "",
        "error of the last": "" if error is None else f"± {error:.3f}",
        "training time": f"{sum(map(step_seconds, run.metrics)):.0f} s",
    }


def headline(run: Reported) -> dict[str, str]:
    """What a person wants to know first: before and after, by how much, over which prompts, how long, of which code."""
    scores, both = run.curve("heldout"), run.paired
    rewards = [f"{value:.3f}" for _, value in run.curve("reward")]
    said = {"score": rewards[-1] if rewards else "", "change": "", "under": "reward of the last step", "prompts": ""}
    if len(scores) == 1:
        ((step, score),) = scores
        said |= {"score": f"{score:.3f}", "under": f"held-out score at step {step}, the only evaluation"}
    elif scores:
        (first, before), (last, after) = scores[0], scores[-1]
        error = change_error(run)
        said = {
            "score": f"{before:.3f} → {after:.3f}",
            "change": f"{after - before:+.3f}" + ("" if error is None else f" ± {error:.3f}"),
            "under": f"held-out score, step {first} to {last}",
            "prompts": f"prompts won: {both.won}, lost: {both.lost}, of {both.prompts}" if both else "",
        }
    seconds = sum(map(step_seconds, run.metrics))
    hours, minutes = f"{seconds / 3600:.1f} h", f"{seconds / 60:.0f} min"
    said["time"] = hours if seconds >= 3600 else minutes if seconds >= 120 else f"{seconds:.0f} s"
    return {"run": run.name, "method": run.config.method, **said, "commit": run.commit}


def change_error(run: Reported) -> float | None:
    """The standard error of the held-out score's change: over prompts, where the samples are known."""
    if run.paired and run.paired.error is not None:
        return run.paired.error
    alone = last_error(run)
    return None if alone is None else alone * math.sqrt(2)  # of a difference of two such scores


def learned(run: Reported) -> str:
    """Whether the held-out score says that the run learned, in a sentence."""
    scores = run.curve("heldout")
    if len(scores) < 2:
        return "This cannot be said: the held-out prompts were judged " + ("once." if scores else "never.")
    change, error = scores[-1][1] - scores[0][1], change_error(run)
    if run.paired and run.paired.prompts < FEW:
        return f"This cannot be said: {run.paired.prompts} held-out prompts are too few."
    if not change:
        return "This is not seen: the held-out score is what it was."
    if not error:
        return f"The held-out score changed by {change:+.3f}; how sure that is, is not known."
    size = f"{change:+.3f} is {abs(change) / error:.1f} of its standard errors"
    if abs(change) < SETTLED * error:
        return f"This is not settled: the held-out score's change of {size}, and {SETTLED} are asked for."
    return f"{'Yes' if change > 0 else 'No, it unlearned'}: the held-out score's change of {size}."


def silent(name: str, runs: Sequence[Reported]) -> bool:
    """Whether a curve moves in no run, or by rounding only, so that its panel could say nothing."""
    curves = [[value for _, value in run.curve(name)] for run in runs]
    still = all(max(curve) - min(curve) <= ROUNDING * max(1, *map(abs, curve)) for curve in curves if curve)
    return still and name != "learning_rate" and not name.startswith("heldout")


def gains(runs: Sequence[Reported]) -> list[dict[str, str]]:
    """What further rewards say of the same held-out images, beside the score: what was won and what was lost."""
    found = []
    for run in runs:
        names = [name for name in dict(run.metrics[-1]) | dict(run.metrics[0]) if name.startswith("also/")]
        for name in ("heldout", *names) if names else ():
            curve = run.curve(name)
            (_, before), (step, after) = curve[0], curve[-1]
            figures = {"before": f"{before:.3f}", f"step {step}": f"{after:.3f}", "change": f"{after - before:+.3f}"}
            found.append(
                {"run": run.name, "judged by": name.removeprefix("also/").replace("heldout", "its score")} | figures
            )
    return found


def doubted(run: Reported) -> list[str]:
    """What the run's numbers say against it (`t2i_rl.training.doubts`), a line each."""
    updates = run.config.update.optimizer_steps
    return [
        f"{name}, in {len(steps)} of {run.done} steps, at last in step {steps[-1]}: {said}"
        for name, (steps, said) in history(run.metrics, run.config.dtype, updates).items()
    ]


def settings(runs: Sequence[Reported]) -> dict[str, list[str]]:
    """Every setting by its dotted name, one value per run; "" where a run does not have it."""
    flat = [{"steps": run.config.steps, **fixed(run.config)} for run in runs]
    names = dict.fromkeys(chain(*flat))
    return {name: ["" if name not in one else str(one[name]) for one in flat] for name in names}


def look(number: int) -> dict[str, str]:
    """Colour and dashes of a run's curves."""
    return {"color": COLORS[number % len(COLORS)], "dashes": DASHES[number // len(COLORS) % len(DASHES)]}


def report(runs: Sequence[Reported]) -> str:
    """The page."""
    measured = [name for run in runs for row in run.metrics for name in row if name != "step"]
    chosen = settings(runs)
    data = {
        "runs": [{"name": run.name, **look(number)} for number, run in enumerate(runs)],
        "panels": [panel(name, runs) for names in sections(measured).values() for name in names],
        "steps": sorted({step for run in runs if run.samples for step in run.samples.steps}),
        "samples": [
            [[step, [[one.content, one.said, one.right] for one in shown]] for step, shown in run.samples.steps.items()]
            for run in runs
            if run.samples
        ],
    }
    return render(
        "report.html.j2",
        runs=runs,
        summary=[summary(run) for run in runs],
        headlines=[headline(run) for run in runs],
        silent=[name for name in dict.fromkeys(measured) if silent(name, runs)],
        doubts={run.name: (learned(run), doubted(run)) for run in runs},
        gains=gains(runs),
        sections=sections(measured),
        differing={name: values for name, values in chosen.items() if len(set(values)) > 1},
        settings=chosen,
        data=data,
    )
