"""The prompts of a run, which stay the same for as long as it goes on, whatever becomes of the file that they are from.

RUN/prompts.json says of the training prompts and of the held-out ones how many they were when the run began, and the
SHA-256 of their content; also how many training questions were left out for being too long, if any were. A run from
before there was such a file is held to the names alone.
"""

import json
from collections.abc import Sequence
from typing import Literal

from t2i_rl.configuration.config import TrainConfig
from t2i_rl.errors import UserError
from t2i_rl.prompts.prompt import Prompt, prompts_digest
from t2i_rl.prompts.reading import load_prompts
from t2i_rl.settings import read_settings

RECORD = "prompts.json"
TITLES = {"prompts": "prompts", "heldout": "held-out prompts"}


def as_record(prompts: Sequence[Prompt], heldout: Sequence[Prompt], left_out: int) -> str:
    """What the file holds. left_out: of the prompts, as they were read."""
    each = {"prompts": prompts, "heldout": heldout}
    found = {name: {"number": len(some), "sha256": prompts_digest(some)} for name, some in each.items()}
    if left_out:
        found["prompts"]["left_out"] = left_out
    return json.dumps(found, indent=2) + "\n"


def prompts_of(config: TrainConfig, which: Literal["prompts", "heldout"]) -> list[Prompt]:
    """The prompts that the configuration names. Raises UserError where they are not those that its run began with."""
    source: str = getattr(config, which)
    prompts, record = load_prompts(source), config.out / RECORD
    if not record.exists():
        return prompts
    try:
        before = str(read_settings(record)[which]["sha256"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{record} has no SHA-256 of the {TITLES[which]}: put it back, or start a new run") from error
    if (now := prompts_digest(prompts)) != before:
        raise UserError(
            f"{config.out} began with other {TITLES[which]} than {source} holds now (SHA-256 {before[:8]}..., not "
            f"{now[:8]}...): put them back, or start a new run with another --out"
        )
    return prompts
