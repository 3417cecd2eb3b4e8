"""The settings of a reward server. Without torch: the command line shows them in its help."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from rewards.errors import RewardError

AUTO = "auto"


@dataclass(frozen=True)
class Service:
    """Serve a reward to runs on this machine or others, until Ctrl-C or SIGTERM.

    If T2I_RL_REWARD_TOKEN is set in the environment, only clients that have it set to the same are answered.

    Attributes:
        reward: the name of the reward.
        host: the address to listen on; 0.0.0.0 lets other machines in.
        port: 0 takes any free one.
        device: where the reward runs: auto is cuda where there is one, else cpu.
        batch: images scored at once, of all clients together.
    """

    reward: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="REWARD")]
    host: str = "127.0.0.1"
    port: int = 8100
    device: str = AUTO
    batch: int = 32

    def __post_init__(self) -> None:
        for name, value, holds, wanted in (
            ("port", self.port, 0 <= self.port < 2**16, "in 0..65535"),
            ("batch", self.batch, self.batch >= 1, "at least 1"),
        ):
            if not holds:
                raise RewardError(f"{name} is {value}: it has to be {wanted}")
