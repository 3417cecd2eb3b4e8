"""The settings of `t2i-rl plan`. Nothing here imports torch: `--help` stays fast."""

import math
from dataclasses import dataclass
from typing import Literal

from t2i_rl.settings import check


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What a run would need: parameters, memory per GPU, whether it fits, the least seconds of a step.

    Attributes:
        model: a registered name; nothing is downloaded.
        gpus: that share the run.
        memory_gb: of each, in 10^9 bytes.
        bandwidth_gbs: of its memory, 10^9 bytes a second at peak (an H100 SXM's, if not given).
        tflops: 10^12 operations a second at peak, in the run's precision, without sparsity.
        dtype: of the weights; gradients, moments and the copies that AdamW steps on are float32.
        prompts_per_step: P, prompts in a step.
        group_size: G, images per prompt.
        rollout_batch: prompts sampled at once on a GPU.
        update_batch: images per forward and backward pass on a GPU.
        prompt_tokens: of a prompt with its template.
        reference: whether the method compares with the model that the run began with.
        gradient_checkpointing: as in training.
        lora_rank: of adapters on every linear layer; 0 trains the model itself.
    """

    model: str
    gpus: int = 1
    memory_gb: float = 80
    bandwidth_gbs: float = 3350
    tflops: float = 989
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    prompts_per_step: int = 8
    group_size: int = 8
    rollout_batch: int = 1
    update_batch: int = 4
    prompt_tokens: int = 40
    reference: bool = True
    gradient_checkpointing: bool = False
    lora_rank: int = 0

    def __post_init__(self) -> None:
        for name in ("gpus", "prompts_per_step", "group_size", "rollout_batch", "update_batch", "prompt_tokens"):
            check(name.replace("_", "-"), getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("memory_gb", "bandwidth_gbs", "tflops"):
            check(name.replace("_", "-"), getattr(self, name), getattr(self, name) > 0, "above 0")
        check("lora-rank", self.lora_rank, self.lora_rank >= 0, "0 or more")

    @property
    def prompts_per_gpu(self) -> int:
        return math.ceil(self.prompts_per_step / self.gpus)

    @property
    def images_per_gpu(self) -> int:
        return self.prompts_per_gpu * self.group_size
