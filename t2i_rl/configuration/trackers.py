"""Which trackers a run may be told to tell its numbers (`t2i_rl.training.trackers` does)."""

from typing import Annotated, Literal

import tyro

from t2i_rl.errors import UserError

TRACKERS = ("trackio", "wandb", "swanlab")


def _tracker(words: list[str]) -> str:
    if words[0] not in TRACKERS:
        raise UserError(
            f"there is no tracker {words[0]!r}: choose of {', '.join(TRACKERS)}, or none, for TensorBoard's files are "
            "always written (tensorboard --logdir runs)"
        )
    return words[0]


TrackerName = Annotated[
    Literal["trackio", "wandb", "swanlab"],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{trackio,wandb,swanlab}",
        instance_from_str=_tracker,
        is_instance=TRACKERS.__contains__,
        str_from_instance=lambda value: [value],
    ),
]
