"""The model that a run began with, and what its rewards are made of, which their names alone do not say.

RUN/origins.json holds the SHA-256 of the files that the model was read from (`models.files.reading`) and, by reward,
that of what it is made of (`rewards.files.noted`), wherever it runs or is served. A run from before there was such a
file is held to the names alone.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from models.errors import ModelError
from models.files.reading import digest, reading
from models.policy import Policy
from models.registry import load
from t2i_rl.configuration.config import TrainConfig
from t2i_rl.errors import UserError
from t2i_rl.settings import read_settings

RECORD = "origins.json"


@dataclass(frozen=True)
class Origins:
    """model: "" where it was not read, for a checkpoint is enough. rewards: "" for one that is read from nothing."""

    model: str
    rewards: Mapping[str, str]

    def as_record(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    def check(self, run: Path, model: str) -> None:
        """Raise UserError for what is another than the run began with. model: what it is called."""
        path = run / RECORD
        if not path.exists():
            return
        try:
            found = read_settings(path)
            before = Origins(str(found["model"]), {str(name): str(one) for name, one in found["rewards"].items()})
        except (KeyError, AttributeError) as error:
            raise UserError(f"{path} does not say what the run began with: put it back, or start a new run") from error
        _compare(run, f"model {model}", before.model, self.model)
        for name, now in self.rewards.items():
            _compare(run, f"reward {name}", before.rewards.get(name, ""), now)


def origin_of(run: Path, config: TrainConfig, device: str) -> Policy:
    """The model that the run began with. Raises UserError where that is not there any more, or is another one."""
    try:
        with reading() as files:
            policy = load(config.model, getattr(torch, config.dtype), device)
    except ModelError as error:
        raise UserError(f"the reference of {run} is the model that it began with: put it back ({error})") from error
    Origins(digest(files), {}).check(run, config.model)
    return policy


def _compare(run: Path, what: str, before: str, now: str) -> None:
    if before and now and before != now:
        raise UserError(
            f"{run} began with another {what} than there is now (SHA-256 {before[:8]}..., not {now[:8]}...): put it "
            "back, or start a new run with another --out"
        )
