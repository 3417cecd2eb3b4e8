"""Which parameters of a policy an update changes, where it is not the family's own choice."""

import re

import torch

from models.errors import ModelError
from models.policy import Policy


def choose_trainable(policy: Policy, pattern: str) -> None:
    """Let an update change the parameters whose names contain the regular expression, and no others.

    Raises ModelError as `chosen` does.
    """
    names = chosen(policy.module, pattern)
    for name, parameter in policy.module.named_parameters():
        parameter.requires_grad_(name in names)


def chosen(module: torch.nn.Module, pattern: str) -> set[str]:
    """The names of the parameters that contain the regular expression.

    Raises ModelError for a pattern that is none, or that is in no parameter's name.
    """
    try:
        found = {name for name, _ in module.named_parameters() if re.search(pattern, name)}
    except re.error as error:
        raise ModelError(f"trainable is {pattern!r}, which is no regular expression ({error}): mend it") from error
    if not found:
        parts = sorted({".".join(name.split(".")[:2]) for name, _ in module.named_parameters()})
        raise ModelError(
            f"trainable is {pattern!r}, which no parameter's name contains: they are in {', '.join(parts)}"
        )
    return found
