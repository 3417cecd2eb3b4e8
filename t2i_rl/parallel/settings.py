"""The settings of a run on several processes, and whether there is work for each.

Nothing here imports torch: `--help` stays fast.
"""

import math
from dataclasses import dataclass

from t2i_rl.errors import UserError
from t2i_rl.settings import check


@dataclass(frozen=True)
class Parallel:
    """How several processes hold what is trained (docs/many-gpus.md). Nothing here matters to one process.

    Attributes:
        shard: how many processes share one copy of what is trained, each holding a part; 1: each holds all of it;
            0: all processes share one, but for adapters, which each has whole. Copies are kept equal by summing.
        reshard: let the gathered weights of a layer go between its forward and its backward pass: less memory, and they
            are gathered twice.
        offload: keep the parts, their gradients and moments in the CPU's memory.
        patience: minutes that a process waits for another one before it gives the run up.
    """

    shard: int = 0
    reshard: bool = True
    offload: bool = False
    patience: float = 30

    def __post_init__(self) -> None:
        check("parallel.shard", self.shard, self.shard >= 0, "0 or more")
        check("parallel.patience", self.patience, 0 < self.patience < math.inf, "above 0")


def check_groups(prompts: int, processes: int) -> None:
    """Raise UserError where a process would have no group of a step's prompts."""
    if prompts < processes:
        raise UserError(
            f"rollout.prompts-per-step is {prompts}, which gives {processes} processes no group each, and groups are "
            f"never split: raise it (--rollout.prompts-per-step {processes}, another batch than the paper's: "
            "docs/many-gpus.md), or start fewer processes"
        )
