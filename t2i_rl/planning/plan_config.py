"""The settings of `t2i-rl plan`. Nothing here imports torch: `--help` stays fast."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import tyro

from models.registry import ANSWERING, MODELS
from t2i_rl.configuration.config import TrainConfig
from t2i_rl.configuration.run_method import run_method
from t2i_rl.parallel.settings import check_groups
from t2i_rl.prompts.reading import QUESTION_SPLITS
from t2i_rl.settings import check

PROMPT = 40  # tokens of a prompt for pictures with its template
QUESTION = 200  # of a question with template and instruction, about; its picture comes on top
CELL = 28  # pixels of a side that are one token of a picture, as the papers' limits count; 32 for Qwen3-VL


def prompt_tokens(config: TrainConfig, model: str) -> int:
    """Of a prompt, or of a question with one picture of the most pixels; the shapes world's are small."""
    if MODELS[model].family not in ANSWERING or config.prompts in QUESTION_SPLITS:
        return PROMPT
    question = config.question
    return min(QUESTION + question.pictures.most // CELL**2, question.max_prompt_tokens)


def as_train(flag: str) -> Any:
    """The flag of t2i-rl train that says the same may be given too."""
    return tyro.conf.arg(aliases=(f"--{flag}",))


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What a run would need: parameters, memory per GPU, whether it fits, the least seconds of a step.

    --preset NAME, --method NAME, --reward NAME: what t2i-rl train would take its settings from; a model of its own has
    those of its first preset, as there. Flags of t2i-rl train that say the same are taken too.

    Attributes:
        model: a registered name; nothing is downloaded.
        gpus: that share the run.
        shard: how many of them share one copy of what is trained, as parallel.shard; 0: all, but for adapters none.
        gpus_per_node: in one machine.
        intra_gbs: 10^9 bytes a second that a GPU receives from others of its machine (an H100's NVLink, if not given).
        inter_gbs: the same from other machines (400 Gbit/s for each GPU, if not given).
        memory_gb: of each, in 10^9 bytes.
        bandwidth_gbs: of its memory, 10^9 bytes a second at peak (an H100 SXM's, if not given).
        tflops: 10^12 operations a second at peak, in the run's precision, without sparsity.
        dtype: of the weights; gradients, moments and the copies that AdamW steps on are float32.
        prompts_per_step: P, prompts in a step.
        group_size: G, images per prompt.
        rollout_batch: prompts sampled at once on a GPU; 0: as many as fit.
        group_batch: images of a prompt sampled at once; 0: the whole group.
        evaluation_batch: held-out images sampled at once; 0: none are.
        update_batch: images per forward and backward pass on a GPU.
        prompt_tokens: of a prompt with its template.
        reference: whether the method compares with the model that the run began with.
        gradient_checkpointing: as in training.
        lora_rank: of adapters on every linear layer; 0 trains the model itself.
        trainable: which parameters the update changes, as t2i-rl train takes it.
    """

    model: str
    gpus: int = 1
    shard: Annotated[int, as_train("parallel.shard")] = 0
    gpus_per_node: int = 8
    intra_gbs: float = 450
    inter_gbs: float = 50
    memory_gb: float = 80
    bandwidth_gbs: float = 3350
    tflops: float = 989
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    prompts_per_step: Annotated[int, as_train("rollout.prompts-per-step")] = 8
    group_size: Annotated[int, as_train("rollout.group-size")] = 8
    rollout_batch: Annotated[int, as_train("rollout.micro-batch")] = 0
    group_batch: Annotated[int, as_train("rollout.group-batch")] = 0
    evaluation_batch: Annotated[int, as_train("evaluation.batch")] = 0
    update_batch: Annotated[int, as_train("update.micro-batch")] = 4
    prompt_tokens: int = PROMPT
    reference: bool = True
    gradient_checkpointing: Annotated[bool, as_train("update.gradient-checkpointing")] = False
    lora_rank: Annotated[int, as_train("lora.rank")] = 0
    trainable: str = ""

    def __post_init__(self) -> None:
        for name in (
            "gpus",
            "gpus_per_node",
            "prompts_per_step",
            "group_size",
            "update_batch",
            "prompt_tokens",
        ):
            check(name.replace("_", "-"), getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("memory_gb", "bandwidth_gbs", "tflops", "intra_gbs", "inter_gbs"):
            check(name.replace("_", "-"), getattr(self, name), getattr(self, name) > 0, "above 0")
        check_groups(self.prompts_per_step, self.gpus)
        check("shard", self.shard, self.shard >= 0 and not self.gpus % self.parts, "a divisor of the GPUs")
        for name in ("lora_rank", "rollout_batch", "group_batch", "evaluation_batch"):
            check(name.replace("_", "-"), getattr(self, name), getattr(self, name) >= 0, "0 or more")

    @classmethod
    def of(cls, config: TrainConfig, model: str, processes: int = 1) -> Self:
        """What a training run comes to, of a model with a name (`models.kin`), in so many processes of a GPU each."""
        rollout, update, judging = config.rollout, config.update, config.evaluation
        return cls(
            model=model,
            gpus=processes,
            shard=config.parallel.shard,
            dtype=config.dtype,
            prompts_per_step=rollout.prompts_per_step,
            group_size=rollout.group_size,
            rollout_batch=rollout.micro_batch,
            group_batch=rollout.group_batch,
            evaluation_batch=judging.batch if judging.every else 0,
            update_batch=update.micro_batch,
            prompt_tokens=prompt_tokens(config, model),
            reference=run_method(config).needs_reference,
            gradient_checkpointing=update.gradient_checkpointing,
            lora_rank=config.lora.rank,
            trainable=config.trainable,
        )

    @property
    def samples(self) -> str:
        return "answers" if MODELS[self.model].family in ANSWERING else "images"

    @property
    def parts(self) -> int:
        """In how many a copy of what is trained is split."""
        return 1 if self.lora_rank else min(self.shard or self.gpus, self.gpus)

    @property
    def prompts_per_gpu(self) -> int:
        return math.ceil(self.prompts_per_step / self.gpus)

    @property
    def rows_at_once(self) -> int:
        """Images that are sampled at once at most; of one prompt, where it is open how many are."""
        return max(self.trained_at_once, self.evaluation_batch)

    @property
    def trained_at_once(self) -> int:
        """The same without what the evaluation samples."""
        group = min(self.group_batch or self.group_size, self.group_size)
        return group * min(self.rollout_batch or 1, self.prompts_per_gpu)

    @property
    def images_per_gpu(self) -> int:
        return self.prompts_per_gpu * self.group_size
