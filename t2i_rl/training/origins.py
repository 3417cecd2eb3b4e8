"""The model that a run began with, and what its rewards are made of, which their names alone do not say.

RUN/origins.json holds the SHA-256 of the files that the model was read from (`models.files.reading`) and, by reward,
that of what it is made of (`rewards.files.noted`), wherever it runs or is served; and that of the code of a model
family and of a method that a person brought along (`rewards.files.sources`). A run from before there was such a file,
or that of code, is held to the names alone.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path

import torch

from models.errors import ModelError
from models.files.reading import digest, reading
from models.lora import LoraPolicy
from models.own import METHODS, MODELS, entry_point
from models.policy import Policy
from models.registry import OWN, load
from rewards.files.sources import sources
from t2i_rl.configuration.config import TrainConfig
from t2i_rl.errors import UserError
from t2i_rl.methods.method import Method
from t2i_rl.methods.variants import base_name
from t2i_rl.settings import read_settings

RECORD = "origins.json"


@dataclass(frozen=True)
class Origins:
    """model: "" where it was not read, for a checkpoint is enough. rewards: "" for one that is read from nothing.

    code: of the `family` of the model and of the `method`; "" for what is shipped.
    """

    model: str
    rewards: Mapping[str, str]
    code: Mapping[str, str] = field(default_factory=dict)

    def as_record(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    def check(self, run: Path, model: str) -> None:
        """Raise UserError for what is another than the run began with. model: what it is called."""
        path = run / RECORD
        if not path.exists():
            return
        try:
            found = read_settings(path)
            parts = found["rewards"], found.get("code", {})  # older runs have none
            named = [{str(name): str(one) for name, one in part.items()} for part in parts]
            before = Origins(str(found["model"]), *named)
        except (KeyError, AttributeError) as error:
            raise UserError(f"{path} does not say what the run began with: put it back, or start a new run") from error
        _compare(run, f"model {model}", before.model, self.model)
        for name, now in self.rewards.items():
            _compare(run, f"reward {name}", before.rewards.get(name, ""), now)
        for name, now in self.code.items():
            _compare(run, f"code of its {name}", before.code.get(name, ""), now)


def origin_of(run: Path, config: TrainConfig, device: str) -> Policy:
    """The model that the run began with. Raises UserError where that is not there any more, or is another one."""
    try:
        with reading() as files:
            policy = load(config.model, getattr(torch, config.dtype), device)
    except ModelError as error:
        raise UserError(f"the reference of {run} is the model that it began with: put it back ({error})") from error
    Origins(digest(files), {}).check(run, config.model)
    return policy


def code_of(config: TrainConfig, policy: Policy, method: Method) -> dict[str, str]:
    """`Origins.code`: of modules that the run names, and of those of the objects that it has, however they came."""
    own, family = re.fullmatch(OWN, config.model), policy.base if isinstance(policy, LoraPolicy) else policy
    modules = {
        "family": {_home(own[1], MODELS) if own else None, type(family).__module__},
        "method": {_home(base_name(config.method), METHODS), *_modules(method)},
    }
    return {what: digest([path for name in names for path in sources(name)]) for what, names in modules.items()}


def _home(name: str, group: str) -> str | None:
    """The module that what goes by a name comes from."""
    found = entry_point(name, group)
    return found.module if found else None


def _modules(part: object) -> set[str | None]:
    """Where the classes, or functions, of a method and of its parts are written."""
    parts = vars(part).values() if is_dataclass(part) else part if isinstance(part, tuple) else ()
    return {getattr(part, "__module__", None)}.union(*map(_modules, parts))


def _compare(run: Path, what: str, before: str, now: str) -> None:
    if before and now and before != now:
        raise UserError(
            f"{run} began with another {what} than there is now (SHA-256 {before[:8]}..., not {now[:8]}...): put it "
            "back, or start a new run with another --out"
        )
