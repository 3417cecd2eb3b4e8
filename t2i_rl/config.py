"""The configuration of a training run: one tree of frozen dataclasses, and the presets that fill it.

Precedence: flag > run file (TOML or JSON) > preset. What a run used is written into its folder as
`config.json` and read back on resume. Nothing here imports torch: `--help` stays fast.
"""

import dataclasses
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from t2i_rl.errors import UserError

# What may differ between a run and its continuation, and where it lies.
FREE = ("out", "steps", "device")


def _check(name: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise UserError(f"{name} is {value}: it has to be {wanted}")


@dataclass(frozen=True)
class Sampling:
    """How images are drawn.

    Attributes:
        guidance_scale: g of `u + g * (c - u)`; 1 is plain conditional sampling.
        temperature: divides the guided logits; 0 takes the most likely token.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens up to this total probability; 1 keeps all.
    """

    guidance_scale: float = 5.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        _check("guidance-scale", self.guidance_scale, math.isfinite(self.guidance_scale), "finite")
        _check("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 or more")
        _check("top-k", self.top_k, self.top_k >= 0, "0 or more")
        _check("top-p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")


@dataclass(frozen=True)
class RolloutConfig:
    """What is sampled in a step.

    Attributes:
        prompts_per_step: P, prompts in a step.
        group_size: G, images per prompt.
        micro_batch: prompts sampled at once; only memory and speed depend on it.
    """

    prompts_per_step: int = 8
    group_size: int = 8
    micro_batch: int = 8
    sampling: Sampling = Sampling()

    def __post_init__(self) -> None:
        _check("rollout.prompts-per-step", self.prompts_per_step, self.prompts_per_step >= 1, "at least 1")
        _check("rollout.group-size", self.group_size, self.group_size >= 2, "at least 2, to compare images in a group")
        _check("rollout.micro-batch", self.micro_batch, self.micro_batch >= 1, "at least 1")


@dataclass(frozen=True)
class UpdateConfig:
    """How a rollout changes the policy.

    Attributes:
        learning_rate: of AdamW, after warm-up.
        betas: of AdamW.
        weight_decay: of AdamW.
        max_grad_norm: longer gradients are scaled down to this norm.
        warmup_steps: over which the learning rate grows linearly.
        schedule: of the learning rate after warm-up.
        final_ratio: what a schedule that falls leaves of the learning rate.
        updates_per_rollout: optimizer steps on the same rollout; more than one uses clipped ratios.
        micro_batch: images per forward and backward pass; only memory and speed depend on it.
    """

    learning_rate: float = 5e-6
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    final_ratio: float = 0.05
    updates_per_rollout: int = 1
    micro_batch: int = 32

    def __post_init__(self) -> None:
        _check("update.learning-rate", self.learning_rate, 0 < self.learning_rate < math.inf, "above 0")
        _check("update.betas", self.betas, all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)")
        _check("update.weight-decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or more")
        _check("update.max-grad-norm", self.max_grad_norm, self.max_grad_norm > 0, "above 0")
        _check("update.warmup-steps", self.warmup_steps, self.warmup_steps >= 0, "0 or more")
        _check("update.final-ratio", self.final_ratio, 0 <= self.final_ratio <= 1, "between 0 and 1")
        repeats = self.updates_per_rollout
        _check("update.updates-per-rollout", repeats, repeats >= 1, "at least 1")
        _check("update.micro-batch", self.micro_batch, self.micro_batch >= 1, "at least 1")


@dataclass(frozen=True)
class EvaluationConfig:
    """Periodic evaluation on held-out prompts.

    Attributes:
        every: steps between evaluations; the untrained policy and the last step are always evaluated.
        images_per_tag: images drawn for each tag of the prompts, its prompts taking turns.
        batch: images sampled at once; only memory and speed depend on it.
    """

    every: int = 10
    images_per_tag: int = 50
    batch: int = 64

    def __post_init__(self) -> None:
        _check("evaluation.every", self.every, self.every >= 1, "at least 1")
        _check("evaluation.images-per-tag", self.images_per_tag, self.images_per_tag >= 1, "at least 1")
        _check("evaluation.batch", self.batch, self.batch >= 1, "at least 1")


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state of a run is saved.

    Attributes:
        every: steps between checkpoints; the last step and every new best one are saved too.
        keep_last: how many of the newest stay, beside the best one.
    """

    every: int = 10
    keep_last: int = 2

    def __post_init__(self) -> None:
        _check("checkpoint.every", self.every, self.every >= 1, "at least 1")
        _check("checkpoint.keep-last", self.keep_last, self.keep_last >= 1, "at least 1")


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Flags win over the run file, which wins over the preset of the model, reward and method.

    --config FILE: the run file, TOML or JSON, with settings by the names below.

    --resume RUN: continue a run instead; see t2i-rl train --resume RUN --help.

    Attributes:
        model: a registered name, a checkpoint folder or a hub id.
        method: how tokens are credited and the policy updated: grpo, cfg, critical.
        reward: what scores an image.
        prompts: the training prompts: shapes:train, or a .jsonl or .txt file.
        heldout: the prompts of the periodic evaluation, likewise.
        steps: rollouts in the whole run.
        seed: of the noise and of the order of the prompts.
        out: the run folder; it must not exist.
        dtype: of the weights and of AdamW's moments (whose epsilon float16 would round to 0).
        device: where everything runs, such as cpu or cuda.
    """

    model: str = "tiny"
    method: str = "cfg"
    reward: str = "shapes"
    prompts: str = "shapes:train"
    heldout: str = "shapes:heldout"
    steps: int = 100
    seed: int = 0
    out: Path = Path("runs/train")
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        _check("steps", self.steps, self.steps >= 1, "at least 1")
        _check("seed", self.seed, self.seed >= 0, "0 or more")
        temperature = self.rollout.sampling.temperature
        _check("rollout.sampling.temperature", temperature, temperature > 0, "above 0 in training")


TINY = TrainConfig(
    steps=100,
    rollout=RolloutConfig(sampling=Sampling(guidance_scale=3.0)),
    update=UpdateConfig(learning_rate=3e-4, warmup_steps=2, schedule="constant"),
    evaluation=EvaluationConfig(every=25, images_per_tag=32, batch=96),
    checkpoint=CheckpointConfig(every=25),
)
# Presets by (model, reward, method): a run without flags of its own.
PRESETS: dict[tuple[str, str, str], TrainConfig] = {
    ("tiny", "shapes", method): dataclasses.replace(TINY, method=method) for method in ("grpo", "cfg", "critical")
}


def preset(model: str, reward: str, method: str) -> TrainConfig:
    """The preset of a combination, or the defaults with these names where there is none."""
    default = TrainConfig(model=model, reward=reward, method=method)
    return PRESETS.get((model, reward, method), default)


def to_json(config: TrainConfig) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2, default=str) + "\n"


def fixed(config: TrainConfig) -> dict[str, Any]:
    """The settings that a continuation has to share, by dotted name, as JSON holds them."""

    def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        leaves: dict[str, Any] = {}
        for name, value in tree.items():
            leaves |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        return leaves

    return {name: value for name, value in flat(json.loads(to_json(config))).items() if name not in FREE}


def read_settings(path: Path) -> Any:
    """What a TOML or JSON file holds."""
    kind, parse = ("TOML", tomllib.loads) if path.suffix == ".toml" else ("JSON", json.loads)
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the settings in {path} ({error.strerror}): check the path") from error
    except ValueError as error:  # of either parser, or of the decoding
        raise UserError(f"{path} is not valid {kind} ({error}): mend it") from error


def override(config: Any, settings: Any, where: str) -> Any:
    """The configuration with the nested settings in place; unknown keys and wrong types are refused."""
    if not isinstance(settings, Mapping):
        raise UserError(f"{where} has to hold named settings, not {settings!r}")
    hints = get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for key, value in settings.items():
        name = key.replace("-", "_")
        if name not in hints:
            raise UserError(f"{where} has the unknown key {key!r}: it may hold {', '.join(hints)}")
        if dataclasses.is_dataclass(hints[name]):
            changes[name] = override(getattr(config, name), value, f"{where}, {key},")
        else:
            changes[name] = _converted(value, hints[name], f"{where}: {key}")
    return dataclasses.replace(config, **changes)


def _converted(value: Any, wanted: Any, where: str) -> Any:
    """`value` as the type that the setting has."""
    choices = get_args(wanted)
    if get_origin(wanted) is Literal:
        if value not in choices:
            raise UserError(f"{where} is {value!r}: choose one of {', '.join(choices)}")
        return value
    if get_origin(wanted) is tuple:
        if not isinstance(value, list) or len(value) != len(choices):
            raise UserError(f"{where} is {value!r}: it has to be a list of {len(choices)} numbers")
        return tuple(_converted(item, kind, where) for item, kind in zip(value, choices, strict=True))
    if wanted is Path and isinstance(value, str):
        return Path(value)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise UserError(f"{where} is {value!r}: it has to be of type {wanted.__name__}")
    return value
