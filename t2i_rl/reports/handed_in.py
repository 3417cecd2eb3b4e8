"""Curves that people hand in: what a run measured and what defines it, as a small JSON, with nothing else of theirs.

`t2i-rl curve` writes that of a run, `t2i-rl report RUN FILE.json` draws it beside another; docs/reproduce.md describes
the fields. A stranger's file is read strictly, and nothing that it names is imported or looked for.
"""

import json
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.registry import anywhere
from t2i_rl.configuration.adapter_presets import ADAPTED
from t2i_rl.configuration.config import FREE, REWARDS, TrainConfig, to_json
from t2i_rl.configuration.places import placeless
from t2i_rl.configuration.presets import preset_name
from t2i_rl.errors import UserError
from t2i_rl.reports.report import Reported
from t2i_rl.reports.revisit import run_config
from t2i_rl.settings import check_whole, override, read_settings
from t2i_rl.training.metrics_log import read_metrics, step_seconds
from t2i_rl.training.origins import RECORD as ORIGINS
from t2i_rl.training.prompt_record import RECORD as PROMPTS
from t2i_rl.training.run_record import read_record

FORM = 1
FIELDS = ("form", "preset", "settings", "digests", "versions", "commit", "hardware", "rows")
UNDEFINING = {*FREE} - {"steps"}  # settings that say where and how fast a run went, not what it computed
# Of `metrics.jsonl`: the curves, and what the doubts about a run (`t2i_rl.training.doubts`) look at.
NUMBERS = ("reward", "heldout", "kl", "zero_variance", "grad_norm", "clip_fraction", "logprob_gap")
SECONDS, TAG = "seconds/step", "heldout/"
LARGEST = 1e300  # of a number, so that none is infinite
HELD_OUT, REWARD = ("heldout", TAG), ("reward",)


@dataclass(frozen=True)
class Curve:
    """A run as it is handed in.

    preset: that of its model, reward and method.
    digests: the SHA-256 of its `model`, its `prompts` and its `heldout` prompts; "" where that is not known.
    rows: the step and what was measured in it, by the names of `metrics.jsonl`.
    """

    preset: str | None
    config: TrainConfig
    digests: Mapping[str, str]
    versions: Mapping[str, str]
    commit: str
    hardware: str
    rows: Sequence[Mapping[str, float]]


def of_run(run: Path) -> Curve:
    """A run so far. Raises UserError for a folder that is none, and for a run that has measured nothing yet."""
    config, measured = run_config(run), read_metrics(run)
    if not measured:
        raise UserError(f"{run} has measured nothing yet: wait for its first evaluation")
    preset = preset_name(config.model, config.reward, config.method)
    started = ChainMap(*read_record(run))  # as it began, and what that did not write down yet as it went on
    return Curve(
        preset=preset and preset + (ADAPTED if config.lora.rank else ""),
        config=placeless(config),
        digests={"model": _digest(run / ORIGINS, "model")}
        | {name: _digest(run / PROMPTS, name, "sha256") for name in ("prompts", "heldout")},
        versions=started.get("versions", {}),
        commit=started.get("commit", ""),
        hardware=started.get("hardware", ""),
        rows=[_row(row) for row in measured],
    )


def _digest(path: Path, *names: str) -> str:
    found: Any = read_settings(path) if path.exists() else {}
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, str) else ""


def _row(row: Mapping[str, float]) -> dict[str, float]:
    kept = {name: value for name, value in row.items() if name in NUMBERS or name.startswith(TAG)}
    kept |= {SECONDS: step_seconds(row)} if step_seconds(row) else {}
    return {"step": int(row["step"])} | {name: float(f"{value:.5g}") for name, value in kept.items()}


def to_text(curve: Curve) -> str:
    """The file: a field a line, a step a line."""
    held = {"form": FORM, **vars(curve), "settings": _defining(json.loads(to_json(curve.config)))}
    head = [f'"{name}": {json.dumps(held[name])}' for name in FIELDS if name != "rows"]
    rows = ",\n  ".join(map(json.dumps, curve.rows))
    return "{" + ",\n ".join([*head, f'"rows": [\n  {rows}\n ]']) + "}\n"


def _defining(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings without those that say where and how fast a run went; rewards without their addresses."""
    kept = {name: value for name, value in settings.items() if prefix + name not in UNDEFINING}
    for name, value in kept.items():
        if isinstance(value, Mapping):
            kept[name] = _defining(value, f"{prefix}{name}.")
        elif prefix + name in REWARDS and isinstance(value, str):
            kept[name] = anywhere(value)
    return kept


def read(path: Path) -> Curve:
    """A curve that somebody handed in. Raises UserError for all that is not as docs/reproduce.md says."""
    found = read_settings(path)

    def need(holds: bool, what: str) -> None:
        if not holds:
            raise UserError(f"{path} is no curve that t2i-rl curve wrote: {what}; ask for another")

    need(isinstance(found, dict) and {*found} == {*FIELDS}, f"it has to hold {', '.join(FIELDS)}, and nothing else")
    need(found["form"] == FORM, f"its form is {found['form']!r}, and {FORM} is what is read here")
    need(isinstance(found["preset"], str | None), "its preset has to be a name or null")
    for name in ("commit", "hardware"):
        need(isinstance(found[name], str), f"its {name} has to be a text")
    for name in ("digests", "versions"):
        held = found[name]
        need(isinstance(held, dict) and all(isinstance(one, str) for one in held.values()), f"its {name} are no texts")
    need({*found["digests"]} == {"model", "prompts", "heldout"}, "its digests are of model, prompts and heldout")
    settings, rows = found["settings"], found["rows"]
    need(isinstance(settings, dict) and _defining(settings) == settings, "its settings name what defines no run")
    need(isinstance(rows, list) and bool(rows), "it has no rows")
    check_whole(json.dumps(found, ensure_ascii=False), str(path))
    config: TrainConfig = override(TrainConfig(), settings, f"{path}, settings")
    last = -1
    for number, row in enumerate(rows, 1):
        need(isinstance(row, dict) and type(row.get("step")) is int, f"its row {number} has no step")
        need(last < row["step"] <= config.steps, f"its row {number} is of step {row['step']}, behind {last}")
        last = row["step"]
        for name, value in row.items():
            known = name in ("step", *NUMBERS, SECONDS) or name.startswith(TAG)
            need(known, f"its row {number} holds {name!r}")
            need(_is_number(value), f"{name} of its row {number} is {value!r}, which is no number")
    return Curve(config=config, **{name: found[name] for name in FIELDS if name not in ("form", "settings")})


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST


def beside(curve: Curve, own: Curve, name: str) -> tuple[Reported, list[str]]:
    """A curve that was handed in as the page shows it beside another, and what was left out of it: what was not
    measured alike.
    """
    config, left_out = curve.config, dict[str, tuple[str, ...]]()
    if curve.digests["heldout"] != own.digests["heldout"] or not own.digests["heldout"]:
        there, here = (one.digests["heldout"][:8] or "unknown" for one in (curve, own))
        left_out[f"other held-out prompts (SHA-256 {there}, not {here})"] = HELD_OUT
    elif _judge(config) != _judge(own.config):
        left_out[f"its held-out images are judged by {_judge(config)}, not {_judge(own.config)}"] = HELD_OUT
    if anywhere(config.reward) != anywhere(own.config.reward):
        left_out[f"it was trained on {config.reward}, not {own.config.reward}"] = REWARD
    gone = [name for names in left_out.values() for name in names]
    rows = [
        {of: value for of, value in row.items() if of not in gone and not (TAG in gone and of.startswith(TAG))}
        for row in curve.rows
    ]
    return Reported(name, config, rows, None, {}, commit=curve.commit), [*left_out]


def _judge(config: TrainConfig) -> str:
    return anywhere(config.evaluation.reward or config.reward)
