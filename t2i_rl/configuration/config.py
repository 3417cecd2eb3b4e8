"""The configuration of a training run: one tree of frozen dataclasses.

Precedence: flag > run file (TOML or JSON) > preset (`t2i_rl.configuration.presets`). What a run used is written into
its folder as `config.json` and read back on resume. Nothing here imports torch: `--help` stays fast.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from models.device import AUTO
from rewards.http.patience import Patience
from rewards.registry import anywhere, parse
from t2i_rl.configuration.trackers import TrackerName
from t2i_rl.parallel.settings import Parallel
from t2i_rl.prompts.questions import PictureSize
from t2i_rl.rollout.sampling import LogProb, Sampling
from t2i_rl.settings import check, override, read_settings

CONFIG = "config.json"  # what a run used, in its folder

RewardOrder = Literal["sum-then-normalize", "normalize-then-sum"]
OnRewardFailure = Literal["stop", "drop_group"]
NULL = "null"  # the contrast of a model that draws with its unconditional branch
# One text of the form that rewards.registry reads; on the command line its words need no quotes.
RewardSpecification = Annotated[
    str,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME[:WEIGHT][@ADDRESS,...] ...",
        instance_from_str=" ".join,
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=str.split,
    ),
]

# What may differ between a run and its continuation: where it lies and runs, what it bears with, and what only memory
# and speed depend on.
FREE = (
    *("out", "steps", "device", "deterministic", "on_reward_failure", "reward_server", "parallel"),
    *("strict", "track", "evaluation.also"),
    *("rollout.micro_batch", "rollout.group_batch", "rollout.capture", "rollout.compile", "evaluation.batch"),
    *("update.micro_batch", "update.gradient_checkpointing", "update.compile"),
)


REWARDS = ("reward", "evaluation.reward")


UNPLANNED = 8  # prompts sampled at once where nothing says how many


@dataclass(frozen=True)
class RolloutConfig:
    """What is sampled in a step.

    Attributes:
        prompts_per_step: P, prompts in a step.
        group_size: G, images per prompt; one is enough only for methods that compare with a prompt's past (spo).
        micro_batch: prompts sampled at once; only memory and speed depend on it. 0: on a card as many as fit by the
            plan (t2i-rl plan), elsewhere 8.
        resample_rounds: how often a method that samples further prompts, for groups that teach nothing, may do so.
        group_batch: images of a prompt sampled at once, where memory is short; 0: the whole group.
        capture: on CUDA, replay a captured decoding step instead of starting its kernels one by one.
        compile: compile the layers of the step before it is captured.
    """

    prompts_per_step: int = 8
    group_size: int = 8
    micro_batch: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    resample_rounds: int = 4
    group_batch: int = 0
    capture: bool = True
    compile: bool = True

    def __post_init__(self) -> None:
        check("rollout.prompts-per-step", self.prompts_per_step, self.prompts_per_step >= 1, "at least 1")
        check("rollout.group-size", self.group_size, self.group_size >= 1, "at least 1")
        check("rollout.micro-batch", self.micro_batch, self.micro_batch >= 0, "0 (as many as fit) or more")
        check("rollout.group-batch", self.group_batch, self.group_batch >= 0, "0 (the whole group) or more")
        check("rollout.resample-rounds", self.resample_rounds, self.resample_rounds >= 1, "at least 1")

    @property
    def prompts_at_once(self) -> int:
        return self.micro_batch or UNPLANNED


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
        final_ratio: what a schedule that falls leaves of the learning rate after the last step.
        updates_per_rollout: passes over the same rollout; more than one uses clipped ratios.
        mini_batches: optimizer steps in a pass, each on a part of the rollout's prompts; from the second on the policy
            is no longer the one that sampled.
        beta: factor of the KL to the reference, whatever the method; nothing: the method's own.
        dynamic_clip: bound, in nats, of the running weight of methods that have one (e in the paper of critical);
            nothing: the method's own.
        micro_batch: images per forward and backward pass; only memory and speed depend on it.
        log_prob: which distribution is updated: the conditional one (cond), or the guided one that images are drawn
            from (cfg); see t2i_rl/rollout/log_probs.py.
        unconditional_gradient: in mode cfg, whether the unconditional branch of the mixture receives gradient.
        gradient_checkpointing: keep only each layer's input for the backward pass and compute the rest again: less
            memory, a third more time.
        compile: compile the transformer's layers for the update: on a GPU, seconds once and then a faster step. Not
            for STAR.
    """

    learning_rate: float = 5e-6
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    final_ratio: float = 0.05
    updates_per_rollout: int = 1
    mini_batches: int = 1
    beta: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    dynamic_clip: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    micro_batch: int = 32
    log_prob: LogProb = "cond"
    unconditional_gradient: bool = True
    gradient_checkpointing: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        check("update.learning-rate", self.learning_rate, 0 < self.learning_rate <= 1e6, "above 0 and at most 1e6")
        check("update.betas", self.betas, all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)")
        check("update.weight-decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or more")
        check("update.max-grad-norm", self.max_grad_norm, self.max_grad_norm > 0, "above 0")
        check("update.warmup-steps", self.warmup_steps, self.warmup_steps >= 0, "0 or more")
        check("update.final-ratio", self.final_ratio, 0 <= self.final_ratio <= 1, "between 0 and 1")
        repeats = self.updates_per_rollout
        check("update.updates-per-rollout", repeats, repeats >= 1, "at least 1")
        check("update.mini-batches", self.mini_batches, self.mini_batches >= 1, "at least 1")
        check("update.beta", self.beta, self.beta is None or 0 <= self.beta < math.inf, "0 or more")
        clip = self.dynamic_clip
        check("update.dynamic-clip", clip, clip is None or 0 < clip < math.inf, "above 0")
        check("update.micro-batch", self.micro_batch, self.micro_batch >= 1, "at least 1")

    @property
    def optimizer_steps(self) -> int:
        """On one rollout."""
        return self.updates_per_rollout * self.mini_batches


@dataclass(frozen=True)
class QuestionConfig:
    """How a model that answers in text is asked. A model that draws is asked the prompts as they are.

    Attributes:
        instruction: how to answer, behind every question after a blank line.
        max_tokens: of an answer, its end among them; longer ones are cut off.
        max_prompt_tokens: of a question with its pictures; training leaves out longer ones.
        pictures: of how many pixels those that are files are shown, at least and at most.
    """

    instruction: str = ""
    max_tokens: int = 2048
    max_prompt_tokens: int = 4096
    pictures: PictureSize = field(default_factory=PictureSize)

    def __post_init__(self) -> None:
        check("question.max-tokens", self.max_tokens, self.max_tokens >= 1, "at least 1")
        check("question.max-prompt-tokens", self.max_prompt_tokens, self.max_prompt_tokens >= 1, "at least 1")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters instead of the whole model.

    Attributes:
        rank: of the adapters; 0 trains the model itself.
        alpha: the adapters' product is scaled by alpha / rank.
        targets: names of the linear layers in each transformer layer that get one, such as q_proj v_proj; nothing: all.
    """

    rank: int = 0
    alpha: float = 32.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check("lora.rank", self.rank, self.rank >= 0, "0 or more")
        check("lora.alpha", self.alpha, 0 < self.alpha < math.inf, "above 0")


@dataclass(frozen=True)
class EvaluationSampling(Sampling):
    """How held-out images are drawn; the flag `--negative-prompt` is that of training."""

    negative_prompt: str = ""


@dataclass(frozen=True)
class EvaluationConfig:
    """Periodic evaluation on held-out prompts.

    Attributes:
        every: steps between evaluations; the untrained policy and the last step are evaluated too. 0: never.
        images_per_tag: images drawn for each tag of the prompts, its prompts taking turns.
        batch: images sampled at once; only memory and speed depend on it.
        reward: what scores the held-out images, written as the run's --reward; nothing: that reward.
        also: further rewards that judge the same images, each a curve of its own: what is lost while the reward is won.
        sampling: how they are drawn: as t2i-rl eval draws them if not given, whatever training does.
    """

    every: int = 10
    images_per_tag: int = 50
    batch: int = 64
    reward: RewardSpecification = ""
    sampling: EvaluationSampling = field(default_factory=EvaluationSampling)
    also: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()

    def __post_init__(self) -> None:
        check("evaluation.every", self.every, self.every >= 0, "0 (never) or more")
        check("evaluation.images-per-tag", self.images_per_tag, self.images_per_tag >= 1, "at least 1")
        check("evaluation.batch", self.batch, self.batch >= 1, "at least 1")
        for name in self.also:
            check("evaluation.also", name, len(parse(name)) == 1 and parse(name)[0].weight is None, "names of rewards")
            check("evaluation.also", name, not parse(name)[0].entry.comparing, "rewards of single images")


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
        check("checkpoint.every", self.every, self.every >= 1, "at least 1")
        check("checkpoint.keep-last", self.keep_last, self.keep_last >= 1, "at least 1")


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Flags win over the run file, which wins over the preset of the model, reward and method.

    --preset NAME: a preset by its name, such as janus-pro-7b-geneval-cfg; a name that is not there lists them.

    --config FILE: the run file, TOML or JSON, with settings by the names below.

    --dry-run: say what all this comes to and what would be downloaded; nothing is started or written.

    --resume RUN: continue a run instead; see t2i-rl train --resume RUN --help.

    Attributes:
        model: a registered name, a checkpoint folder or a hub id.
        method: how tokens are credited and the policy updated: grpo, cfg, critical, ...; t2i-rl methods lists them; or
            one of your own (MODULE:NAME).
        reward: what scores an image: one reward, or several with weights (geneval:1.0 hpsv2:0.5), in this process or
            where it is served (shapes@http://127.0.0.1:8100), or one of your own (MODULE:NAME); docs/rewards.md lists
            them.
        reward_weights: parts of the reward by name (or total) and their weights, to train on their weighted sum;
            nothing: on the total.
        reward_order: whether the parts are summed and then compared inside the group, or the reverse. The reverse of a
            sum of rewards (geneval:1.0 hpsv2:0.5) takes its weights from there.
        on_reward_failure: where an image has no score: stop the run, or leave its whole group out of the update.
        prompts: the training prompts: shapes:train, the name of a set (t2i-rl data list) or a file (docs/data.md).
        heldout: the prompts of the periodic evaluation, likewise.
        steps: rollouts in the whole run.
        seed: of the noise and of the order of the prompts.
        out: the run folder; it must not exist.
        contrast: what methods that measure the prompt's influence compare it with. Of a model that draws: null, its
            unconditional branch, or text:WORDS; if not given, what guidance leads away from. Of one that answers in
            text: a negative prompt (wrong-answer, masked-image, ... or text:WORDS); if not given, wrong-answer.
        dtype: of the weights. AdamW steps on float32 copies of bfloat16 ones, to which its steps would be lost; its
            moments and adapters are float32 always.
        trainable: which parameters the update changes, as a regular expression that their names contain, such as
            language_model|generation_head; nothing: the model family's own, the transformer.
        device: where everything runs: auto is cuda where there is one, else cpu.
        strict: end the run, with exit code 1, at the first sign that it does not learn (t2i_rl/training/doubts.py).
        track: where the numbers go besides metrics.jsonl and TensorBoard, which are always written
            (tensorboard --logdir runs); each is a package of its own.
        deterministic: use operations that give the same bits each time, on a GPU too; slower there. A CPU's do anyway.
    """

    model: str = "tiny"
    method: str = "cfg"
    reward: RewardSpecification = "shapes"
    reward_weights: dict[str, float] = field(default_factory=dict)
    reward_order: RewardOrder = "sum-then-normalize"
    on_reward_failure: OnRewardFailure = "stop"
    prompts: str = "shapes:train"
    heldout: str = "shapes:heldout"
    steps: int = 100
    seed: int = 0
    out: Path = Path("runs/train")
    contrast: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    trainable: str = ""
    device: str = AUTO
    strict: bool = False
    track: tuple[TrackerName, ...] = ()
    deterministic: bool = False
    question: QuestionConfig = field(default_factory=QuestionConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    reward_server: Patience = field(default_factory=Patience)
    parallel: Parallel = field(default_factory=Parallel)

    def __post_init__(self) -> None:
        check("steps", self.steps, self.steps >= 1, "at least 1")
        check("seed", self.seed, self.seed >= 0, "0 or more")
        temperature = self.rollout.sampling.temperature
        check("rollout.sampling.temperature", temperature, temperature > 0, "above 0 in training")
        weights = self.reward_weights
        check("reward-weights", weights, all(map(math.isfinite, weights.values())), "names with finite numbers")

    @property
    def part_weights(self) -> dict[str, float]:
        """What `reward_weights` names or, for normalize-then-sum, the rewards of a sum; with their weights."""
        if self.reward_weights or self.reward_order == "sum-then-normalize":
            return self.reward_weights
        terms = parse(self.reward)
        if len(terms) == 1 and terms[0].weight is None:
            return {}
        return {term.name: 1.0 if term.weight is None else term.weight for term in terms}


def to_json(config: TrainConfig) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2, default=str) + "\n"


def read_config(path: Path) -> TrainConfig:
    """The configuration that a run wrote down; an older one drew its held-out images as those of training."""
    settings = _renamed(read_settings(path))
    config: TrainConfig = override(TrainConfig(), settings, str(path))
    if "sampling" in settings.get("evaluation", {}):
        return config
    sampling = EvaluationSampling(**dataclasses.asdict(config.rollout.sampling))
    return dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, sampling=sampling))


def _renamed(settings: Any) -> Any:
    """With the contrast of an older run, whose words had a name of their own."""
    if not isinstance(settings, Mapping):
        return settings  # to be refused
    found = dict(settings)
    words = found.pop("contrast_prompt", None)
    return found if words is None else {**found, "contrast": f"text:{words}" if words else NULL}


def completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint by dotted name, with what an older run did not have yet."""
    training, heldout = "rollout.sampling.", "evaluation.sampling."
    as_trained = {
        heldout + name.removeprefix(training): value for name, value in settings.items() if name.startswith(training)
    }
    found = fixed(TrainConfig()) | as_trained | _renamed(settings)
    return found | {name: anywhere(settings[name]) for name in REWARDS if name in settings}


def resolved(config: TrainConfig, own_guidance: float) -> TrainConfig:
    """With the model's own guidance scale where none is given, in training and on held-out prompts."""
    rollout = dataclasses.replace(config.rollout, sampling=config.rollout.sampling.of(own_guidance))
    evaluation = dataclasses.replace(config.evaluation, sampling=config.evaluation.sampling.of(own_guidance))
    return dataclasses.replace(config, rollout=rollout, evaluation=evaluation)


def flat(config: TrainConfig) -> dict[str, Any]:
    """The settings by dotted name, as JSON holds them."""

    def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in tree.items():
            nested = isinstance(value, dict) and value
            found |= leaves(value, f"{prefix}{name}.") if nested else {prefix + name: value}
        return found

    return leaves(json.loads(to_json(config)))


def fixed(config: TrainConfig) -> dict[str, Any]:
    """The settings that a continuation has to share: rewards by name and weight, wherever they are served."""
    settings = {name: value for name, value in flat(config).items() if not {name, name.partition(".")[0]} & {*FREE}}
    return settings | {name: anywhere(settings[name]) for name in REWARDS}
