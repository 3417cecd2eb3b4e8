"""The configuration of a training run: one tree of frozen dataclasses, and the presets that fill it.

Precedence: flag > run file (TOML or JSON) > preset. What a run used is written into its folder as
`config.json` and read back on resume. Nothing here imports torch: `--help` stays fast.
"""

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

from t2i_rl.errors import UserError


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


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state of a run is saved.

    Attributes:
        every: steps between checkpoints; the last step and every new best one are saved too.
        keep_last: how many of the newest stay, beside the best one.
    """

    every: int = 10
    keep_last: int = 2


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        model: a registered name, a checkpoint folder or a hub id.
        method: how tokens are credited and the policy updated: grpo, cfg, critical.
        reward: what scores an image.
        prompts: the training prompts: shapes:train, or a .jsonl or .txt file.
        heldout: the prompts of the periodic evaluation, likewise.
        steps: rollouts in the whole run.
        seed: of the noise and of the order of the prompts.
        out: the run folder; it must not exist.
        dtype: of the weights.
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
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        rules = (
            (self.rollout.group_size > 1, "rollout.group-size is 1: a group needs two images to compare"),
            (self.steps > 0, f"steps is {self.steps}: a run needs at least one"),
            (self.rollout.prompts_per_step > 0, "rollout.prompts-per-step must be at least 1"),
            (min(self.rollout.micro_batch, self.update.micro_batch) > 0, "a micro-batch must be at least 1"),
            (self.update.updates_per_rollout > 0, "update.updates-per-rollout must be at least 1"),
            (self.rollout.sampling.temperature > 0, "rollout.sampling.temperature must be above 0 in training"),
            (self.evaluation.every > 0 and self.checkpoint.every > 0, "an interval of steps must be at least 1"),
            (self.checkpoint.keep_last > 0, "checkpoint.keep-last must be at least 1"),
        )
        for holds, sentence in rules:
            if not holds:
                raise UserError(sentence)


TINY = TrainConfig(
    steps=80,
    rollout=RolloutConfig(sampling=Sampling(guidance_scale=3.0)),
    update=UpdateConfig(learning_rate=3e-4, warmup_steps=2, schedule="constant"),
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


def from_json(text: str, run: Path, steps: int | None) -> TrainConfig:
    """The configuration that a run was started with, its folder and, if given, its number of steps replaced."""
    try:
        config: TrainConfig = override(TrainConfig(), json.loads(text), f"{run}/config.json")
    except json.JSONDecodeError as error:
        raise UserError(f"{run}/config.json is not valid JSON: {error}") from error
    return dataclasses.replace(config, out=run, steps=config.steps if steps is None else steps)


def read_run_file(path: Path) -> dict[str, Any]:
    """The nested settings of a TOML or JSON file."""
    try:
        text = path.read_text()
        return tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise UserError(f"the run file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"the run file {path} is not valid {path.suffix.lstrip('.').upper()}: {error}") from error


def override(config: Any, settings: Mapping[str, Any], where: str = "the run file") -> Any:
    """The configuration with the nested settings in place; unknown keys and wrong types are refused."""
    hints = get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for key, value in settings.items():
        name = key.replace("-", "_")
        if name not in hints:
            raise UserError(f"{where} has the unknown key {key!r}; it may hold {', '.join(hints)}")
        current = getattr(config, name)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise UserError(f"{where}: {key} must be a table")
            changes[name] = override(current, value, f"{where}, {key}")
        else:
            changes[name] = _converted(value, current, f"{where}: {key}")
    return dataclasses.replace(config, **changes)


def _converted(value: Any, current: Any, where: str) -> Any:
    """`value` as the type that the setting has."""
    wanted = type(current)
    if wanted in (Path, tuple) and isinstance(value, str | list):
        return wanted(value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted:
        raise UserError(f"{where} must be of type {wanted.__name__}, not {value!r}")
    return value
