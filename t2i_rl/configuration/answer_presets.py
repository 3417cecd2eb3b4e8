"""Full runs of models that answer in text, as data: of the tiny one, and as arXiv:2605.29198 and its release have them.

Of the paper's table 6: 202 rollouts of 384 questions (two epochs of ViRL39K), eight answers to each, no KL, AdamW's
betas of 0.99 and 0.999. Its learning rate is lost in our copy: the scripts' 1e-6. The rest is the scripts': three
optimizer steps on each rollout, answers of 2,048 tokens from the 7B model and of 8,192 from the 8B one, weight decay,
130 rollouts for the 8B model. The released scripts draw with top-p 0.99 and score without: here 1 but in their own
presets. They draw whole batches until 384 groups teach something, without limit; ours draw what is missing, a few
times. They choose checkpoints by the questions of MM12K, a benchmark; these by one in 40 of ViRL39K, which training
leaves out. Micro-batches and the evaluation's batch are ours: what 8 GPUs of 80 GB hold by the plan, with answers that
run to their limit.
Nothing here imports torch.
"""

from dataclasses import replace

from t2i_rl.configuration.config import (
    CheckpointConfig,
    EvaluationConfig,
    QuestionConfig,
    RolloutConfig,
    TrainConfig,
    UpdateConfig,
)
from t2i_rl.prompts.questions import INSTRUCTION
from t2i_rl.rollout.sampling import Sampling

ON_TEXT = "objective=cfg-text,filter_zero_std=resample"
METHODS = {
    "cfg": f"cfg[{ON_TEXT}]",
    "grpo": "grpo[objective=cfg-text]",  # without the KL of `grpo`, and every question counts, also where all are right
    "dapo": "dapo[objective=cfg-text]",
    "vppo": f"vppo[{ON_TEXT}]",
}

# Questions about pictures of the shapes world. The warm-up is long, for Adam's first steps are full-size in a direction
# that is mostly noise.
TINY_VLM = TrainConfig(
    model="tiny-vlm",
    reward="math",
    prompts="questions:train",
    heldout="questions:heldout",
    steps=40,
    question=QuestionConfig(max_tokens=40),
    rollout=RolloutConfig(prompts_per_step=32, group_size=8, micro_batch=32, resample_rounds=1),
    update=UpdateConfig(learning_rate=1e-4, warmup_steps=10, schedule="constant", micro_batch=64),
    evaluation=EvaluationConfig(every=10, images_per_tag=100, batch=100),
    checkpoint=CheckpointConfig(every=10),
)

QWEN_7B = TrainConfig(
    model="qwen2.5-vl-7b",
    reward="math",
    prompts="virl39k-train",
    heldout="virl39k-heldout",
    steps=202,
    dtype="bfloat16",
    device="cuda",
    question=QuestionConfig(INSTRUCTION, max_tokens=2048),
    rollout=RolloutConfig(prompts_per_step=384, group_size=8, micro_batch=4),
    update=UpdateConfig(
        learning_rate=1e-6,
        betas=(0.99, 0.999),
        weight_decay=1e-2,
        schedule="constant",
        mini_batches=3,
        micro_batch=4,
        gradient_checkpointing=True,
    ),
    evaluation=EvaluationConfig(every=5, images_per_tag=100, batch=32),
    checkpoint=CheckpointConfig(every=5),
)
QWEN_8B = replace(
    QWEN_7B,
    model="qwen3-vl-8b",
    steps=130,
    question=replace(QWEN_7B.question, max_tokens=8192),
    rollout=replace(QWEN_7B.rollout, micro_batch=1),
    update=replace(QWEN_7B.update, micro_batch=2),
    evaluation=replace(QWEN_7B.evaluation, batch=8),
)


def released(column: TrainConfig, nll: float) -> TrainConfig:
    """The column as its script ran it: its likelihood term, and the note for a wrong answer inside two instructions."""
    return replace(
        column,
        method=f"cfg-text-released[objective.nll={nll}]",
        contrast="wrong-answer-released",
        rollout=replace(column.rollout, sampling=Sampling(top_p=0.99)),
        update=replace(column.update, betas=(0.9, 0.999)),
    )


def by_method(column: TrainConfig) -> dict[str, TrainConfig]:
    """The column with each of the paper's methods; VPPO compares with a masked picture."""
    found = {name: replace(column, method=method) for name, method in METHODS.items()}
    return found | {"vppo": replace(found["vppo"], contrast="masked-image")}


ANSWERS: dict[str, TrainConfig] = {
    **{f"tiny-vlm-math-{name}": config for name, config in by_method(TINY_VLM).items()},
    **{f"qwen2.5-vl-7b-math-{name}": config for name, config in by_method(QWEN_7B).items()},
    "qwen2.5-vl-7b-math-cfg-text-released": released(QWEN_7B, 0.02),
    **{f"qwen3-vl-8b-math-{name}": config for name, config in by_method(QWEN_8B).items()},
    "qwen3-vl-8b-math-cfg-text-released": released(QWEN_8B, 0.16),
}
