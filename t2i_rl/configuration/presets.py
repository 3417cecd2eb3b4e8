"""Full runs as data: one preset per column of the two papers' tables of settings, and those of the tiny model.

A preset goes by its name (`t2i-rl train --preset janus-pro-7b-geneval-cfg`) or by model, reward and method together
(`--model janus-pro-7b --reward geneval --method cfg`); a combination without one takes the nearest of its model. A
folder or hub id has the presets of the model whose sizes it has (`models.kin`), and a model without any those of its
family's first, with its own guidance and micro-batches. Flags
win over the run file, which wins over the preset. beta and the clip of the running weight are the column's, so another
method has them too (`--preset janus-pro-7b-geneval-cfg --method grpo` is that column's baseline, with its beta).

What both papers spread over processes is one batch here: `prompts_per_step` is processes x prompts of each x
accumulation. Micro-batches, evaluation and checkpoints are ours: they decide memory, speed and what is shown.
Weights are float32, where the releases train in bfloat16 beside float32 copies: `--dtype bfloat16` does the same.
Prompts are sets of `t2i-rl data`: ours in GenEval's grammar; for HPSv2 those of T2I-R1, which the releases train on,
about 7,000 where arXiv:2509.22485 says 15,000 of HPSv2's (`--prompts FILE` takes those). Held-out prompts, by which
`best.json` chooses among checkpoints, are neither training prompts nor a benchmark's: that is left to `t2i-rl eval`.
Those of models that answer in text are in `t2i_rl.configuration.answer_presets`.
Nothing here imports torch.
"""

from collections.abc import Collection
from dataclasses import replace

from models.kin import kin
from models.registry import MODELS
from t2i_rl.configuration.adapter_presets import ADAPTED, with_adapters
from t2i_rl.configuration.answer_presets import ANSWERS
from t2i_rl.configuration.config import (
    CheckpointConfig,
    EvaluationConfig,
    RolloutConfig,
    TrainConfig,
    UpdateConfig,
)
from t2i_rl.configuration.run_method import with_method
from t2i_rl.errors import UserError
from t2i_rl.methods.catalogue import METHODS
from t2i_rl.methods.variants import base_name
from t2i_rl.rollout.sampling import Sampling

TINY = TrainConfig(
    steps=120,
    rollout=RolloutConfig(sampling=Sampling(guidance_scale=1.5)),
    update=UpdateConfig(learning_rate=3e-4, warmup_steps=2, schedule="cosine"),
    evaluation=EvaluationConfig(every=30, images_per_tag=50, batch=100),
    checkpoint=CheckpointConfig(every=30),
)

GENEVAL = TrainConfig(
    reward="geneval",
    prompts="geneval-train",
    heldout="geneval-heldout",
    steps=1600,
    device="cuda",
    evaluation=EvaluationConfig(every=100, images_per_tag=50, batch=16),
    checkpoint=CheckpointConfig(every=100),
)
HPS = replace(
    GENEVAL,
    reward="hpsv2",
    prompts="t2i-r1-train",
    heldout="t2i-r1-heldout",
    evaluation=replace(GENEVAL.evaluation, images_per_tag=200),  # one tag, where GenEval has five
)

# arXiv:2605.29198, images. Batch: 8 processes x 1 prompt x 16 images.
# Our copy of the paper lacks the learning rate and where its cosine ends: both are the launch script's.
CFG = replace(
    GENEVAL,
    model="janus-pro-7b",
    method="cfg",
    rollout=RolloutConfig(prompts_per_step=8, group_size=16, sampling=Sampling(guidance_scale=5.0)),
    update=UpdateConfig(
        learning_rate=5e-6, betas=(0.99, 0.999), schedule="cosine", final_ratio=0.05, beta=0.03, micro_batch=4
    ),
)
# The launch script says nothing of AdamW's betas: the framework's.
CFG_RELEASED = replace(CFG, method="cfg-released", seed=20, update=replace(CFG.update, betas=(0.9, 0.999)))
# From the script for HPS beside the launch script. The entropy reward is for verifiable rewards alone.
# Batch: 8 processes x 1 prompt x 8 images x accumulation 2.
CFG_RELEASED_HPS = replace(
    CFG_RELEASED,
    reward=HPS.reward,
    prompts=HPS.prompts,
    heldout=HPS.heldout,
    evaluation=HPS.evaluation,
    method="cfg-released[entropy_reward=none]",
    rollout=replace(CFG.rollout, prompts_per_step=16, group_size=8),
    update=replace(CFG_RELEASED.update, learning_rate=1e-6, beta=0.01),
)


def critical(
    base: TrainConfig, model: str, rate: float, batch: int, group: int, clip: float, beta: float = 0.01
) -> TrainConfig:
    """A column of arXiv:2509.22485. The 4 processes and the linear fall of the learning rate are the release's.

    batch: prompts of each process times accumulation. clip: e of the running weight.
    """
    return replace(
        base,
        model=model,
        method="critical",
        rollout=RolloutConfig(4 * batch, group, sampling=Sampling(guidance_scale=5.0)),
        update=UpdateConfig(
            learning_rate=rate, schedule="linear", final_ratio=0.0, beta=beta, dynamic_clip=clip, micro_batch=4
        ),
    )


def released(column: TrainConfig) -> TrainConfig:
    """The column as released: e is 0.5 for every model, the method's own."""
    return replace(column, method="critical-released", update=replace(column.update, dynamic_clip=None))


CRITICAL = {
    "janus-pro-1b-geneval": critical(GENEVAL, "janus-pro-1b", 3e-6, batch=2, group=4, clip=1.0),
    "janus-pro-1b-hps": critical(HPS, "janus-pro-1b", 1e-6, batch=2, group=4, clip=0.5),
    "janus-pro-7b-geneval": critical(GENEVAL, "janus-pro-7b", 3e-6, batch=2, group=4, clip=0.6),
    "janus-pro-7b-hps": critical(HPS, "janus-pro-7b", 1e-6, batch=4, group=8, clip=1.0),
}
# Accumulation 2, no guidance. Schedule as released: a tenth of the run to warm up, a cosine down to a tenth.
without_guidance = critical(HPS, "llamagen-256", 1e-5, batch=2 * 2, group=8, clip=0.5, beta=0.04)
LLAMAGEN = replace(
    without_guidance,
    steps=900,
    rollout=replace(without_guidance.rollout, sampling=Sampling(guidance_scale=1.0)),
    update=replace(without_guidance.update, warmup_steps=90, schedule="cosine", final_ratio=0.1),
)
# As released: no accumulation; images are compared by the codebook's vectors. One epoch there, of a number of prompts
# that we do not know: the paper's steps here.
LLAMAGEN_RELEASED = replace(
    released(LLAMAGEN),
    method="critical-released[credit.embedding=codebook]",
    rollout=replace(LLAMAGEN.rollout, prompts_per_step=8),
)
# The paper has results of STAR (its table 4) and no settings: those of the 1B column for HPS, and the model's guidance.
# Its tokens are drawn scale by scale, so a scale's tokens share one weight (docs/methods.md: ours).
small = CRITICAL["janus-pro-1b-hps"]
STAR = replace(
    small,
    model="star-256",
    method="critical[dynamic.over=scales]",
    rollout=replace(small.rollout, sampling=Sampling(guidance_scale=4.0)),
)

PRESETS: dict[str, TrainConfig] = {
    **{
        f"tiny-shapes-{name}": replace(TINY, method=name)
        for name, method in METHODS.items()
        if method.source == "rollout"
    },
    "janus-pro-7b-geneval-cfg": CFG,
    "janus-pro-7b-geneval-cfg-released": CFG_RELEASED,
    "janus-pro-7b-hps-cfg-released": CFG_RELEASED_HPS,
    "llamagen-256-hps-critical": LLAMAGEN,
    "llamagen-256-hps-critical-released": LLAMAGEN_RELEASED,
    "star-256-hps-critical": STAR,
    "star-256-hps-grpo": with_method(STAR, "grpo"),
    **{f"{column}-critical": config for column, config in CRITICAL.items()},
    **{f"{column}-critical-released": released(config) for column, config in CRITICAL.items()},
    **ANSWERS,
}


BY_NAMES = {(config.model, config.reward, base_name(config.method)): name for name, config in PRESETS.items()}
TOYS = ("tiny", "tiny-vlm")  # their presets are of coloured shapes, and for no other model


def model_of(model: str) -> str | None:
    """The model whose presets are a model's: the one whose sizes it has, else the first of its family that has any.

    None for a model that nothing here knows (`models.kin`), and for a family without presets.
    """
    alike, trained = kin(model), [config.model for config in PRESETS.values()]
    if alike is None or alike in trained:
        return alike
    family = MODELS[alike].family
    return next((one for one in trained if one not in TOYS and MODELS[one].family == family), None)


def preset_name(model: str, reward: str | None, method: str) -> str | None:
    """The preset of a combination or the nearest to it: of this model, rather of this reward, rather of this method.

    None for a model that has none. A single reward is the same wherever it is served: `geneval@http://HOST:PORT`.
    """
    method, model = base_name(method), model_of(model) or ""
    if reward is not None and " " not in reward:
        reward = reward.partition("@")[0]
    alike = {
        name: (judged == reward, used == method)
        for (trained, judged, used), name in BY_NAMES.items()
        if trained == model
    }
    return max(alike, key=lambda name: alike[name], default=None)


def preset(model: str, reward: str | None, method: str) -> TrainConfig:
    """The preset of a combination or the nearest to it, with these names; the defaults where its model has none."""
    name = preset_name(model, reward, method)
    found = TrainConfig(model=model) if name is None else fitted(PRESETS[name], model)
    return take_method(replace(found, reward=reward or found.reward), method)


def fitted(found: TrainConfig, model: str) -> TrainConfig:
    """The preset for that model. One of other sizes keeps its own guidance, and batches of as many tokens."""
    found, before, now = replace(found, model=model), MODELS[found.model], kin(model)
    if now in (None, before.name):
        return found
    share = tokens(before.name) / tokens(now)
    own, training, judging = Sampling(), found.rollout, found.evaluation
    return replace(
        found,
        rollout=replace(training, sampling=replace(training.sampling, guidance_scale=own.guidance_scale)),
        update=replace(found.update, micro_batch=max(1, int(found.update.micro_batch * share))),
        evaluation=replace(judging, batch=max(1, int(judging.batch * share))),
    )


def tokens(model: str) -> int:
    """Of an image, by the name of its model."""
    return sum(side**2 for side in MODELS[model].scales or (1,))


def take_method(found: TrainConfig, method: str) -> TrainConfig:
    """The preset with that method.

    A bare name stands for the variant that the preset or its column has of it, with that one's contrast; one that is
    spelt out with its settings stays as it is.
    """
    if method == base_name(found.method):
        return with_method(found, found.method)
    column = BY_NAMES.get((found.model, found.reward, method))
    if column is None:
        return with_method(found, method)
    return replace(with_method(found, PRESETS[column].method), contrast=PRESETS[column].contrast)


def check_named(model: str, preset: str | None, named: Collection[str]) -> None:
    """Raise UserError where neither a preset nor the user says what the model is to learn."""
    missing = [f"--{name}" for name in ("reward", "prompts", "heldout") if name not in named]
    if preset is None and missing:
        raise UserError(
            f"no preset is of the model {model}, nor does anything here say which it is like, so nothing says what it "
            f"is to learn: name {' and '.join(missing)}, or the preset whose settings it is to have, such as --preset "
            "janus-pro-7b-geneval-cfg (t2i-rl presets lists them)"
        )


def papers() -> list[str]:
    """The presets of the papers' columns."""
    return [name for name, config in PRESETS.items() if config.model not in TOYS]


def find_preset(name: str) -> TrainConfig:
    """The preset of that name; NAME-lora is a column's with adapters."""
    column = name.removesuffix(ADAPTED)
    if column not in PRESETS or (name != column and column not in papers()):
        raise UserError(
            f"there is no preset {name!r}: choose one of {', '.join(papers())}, each also with {ADAPTED} behind it, or "
            "tiny-shapes-METHOD, tiny-vlm-math-METHOD"
        )
    return PRESETS[name] if name == column else with_adapters(PRESETS[column])
