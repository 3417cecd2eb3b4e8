"""The processes of one run, as torchrun or Slurm starts them: how they find each other, and what they do when one ends.

Each of them reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Numbers on CPUs travel by gloo, those on
GPUs by NCCL.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from t2i_rl.errors import UserError
from t2i_rl.parallel.ranks import ALONE, Ranks

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
# What gloo and NCCL say when another process has ended or has been silent for too long.
LOST = re.compile(
    r"Connection closed|Connection reset|Connection refused|Broken pipe|Timed out|timed out|Timeout|aborted|Socket"
)


class Processes(Ranks):
    """One of several processes; the process group is there."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def each(self, value: Any) -> list[Any]:
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        return [json.loads(bytes(part.tolist())) for part in self._all(text)]

    def gather(self, rows: Float[Tensor, "R ..."]) -> Float[Tensor, "S ..."]:
        return torch.cat(self._all(rows.detach().cpu())).to(rows.device)

    def sum(self, values: Tensor) -> Tensor:
        return torch.stack(self._all(values.detach().cpu().double())).sum(0).to(values)

    def add(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            dist.all_reduce(tensor)

    def _all(self, rows: Tensor) -> list[Tensor]:
        """What each process gives, of any number of rows, on the CPU."""
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(rows)]))
        lengths = [int(size) for size in sizes]
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(found, padded)
        return [part[:length] for part, length in zip(found, lengths, strict=True)]


@contextmanager
def joined(patience: timedelta, environment: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """This process and the others that were started with it. All but the first are silent on stdout.

    patience: how long one waits for another. Raises UserError where the others are not to be had, or are lost on the
    way: whoever ended first has said why.
    """
    if (environment.get("WORLD_SIZE") or "1") == "1":
        yield ALONE
        return
    rank, world, local = numbers(environment)
    if local < torch.cuda.device_count():
        torch.cuda.set_device(local)
    where = f"{environment.get('MASTER_ADDR', '?')}:{environment.get('MASTER_PORT', '?')}"
    if rank == 0:
        print(f"waiting for {world - 1} other process(es) at {where}", flush=True)
    try:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=world, timeout=patience)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"process {rank} of {world} does not find the others at {where} ({reason}): start all of them, by torchrun "
            "or scripts/slurm.sbatch"
        ) from error
    if rank:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    with told(rank):
        yield Processes()
    dist.destroy_process_group()


def numbers(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """RANK, WORLD_SIZE and LOCAL_RANK. Raises UserError."""
    said = [environment.get(name, "") for name in VARIABLES]
    if not all(value.isdecimal() for value in said) or int(said[0]) >= int(said[1]):
        told = ", ".join(f"{name} {value!r}" for name, value in zip(VARIABLES, said, strict=True))
        raise UserError(f"the surroundings say {told}: start the run by torchrun, or unset WORLD_SIZE for one process")
    rank, world, local = map(int, said)
    return rank, world, local


@contextmanager
def told(rank: int) -> Iterator[None]:
    """Raises UserError where torch says in its own words that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or LOST.search(str(error))):
            raise
        raise UserError(
            f"process {rank} lost another one, which was ended, had an error of its own or was silent for too long: "
            "t2i-rl train --resume goes on from the last checkpoint, on any number of processes"
        ) from error
