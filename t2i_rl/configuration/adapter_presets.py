"""The papers' columns with adapters, for cards that hold no whole training: NAME-lora beside the preset NAME.

All but what is learned with is the column's. The base runs in bfloat16, layers are checkpointed, groups are sampled in
parts. The papers train whole models: rank, alpha and the tenfold learning rate that adapters are usually given are
ours, and no run has tried them. Which card holds them: `t2i-rl presets --cards`.
"""

from dataclasses import replace

from t2i_rl.configuration.config import LoraConfig, TrainConfig

ADAPTED = "-lora"
RANK = 32
FASTER = 10  # times the column's learning rate
AT_ONCE = 4  # images sampled together


def with_adapters(column: TrainConfig) -> TrainConfig:
    """The column, trained through adapters."""
    update = column.update
    return replace(
        column,
        dtype="bfloat16",
        lora=LoraConfig(rank=RANK, alpha=2.0 * RANK),
        rollout=replace(column.rollout, group_batch=AT_ONCE),
        update=replace(update, learning_rate=FASTER * update.learning_rate, gradient_checkpointing=True),
        evaluation=replace(column.evaluation, batch=min(column.evaluation.batch, AT_ONCE)),
    )
