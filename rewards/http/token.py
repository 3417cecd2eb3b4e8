"""The token that reward servers ask for. Both sides have it in their environment: no list of processes shows it."""

import hmac
import os

from rewards.errors import RewardError

VARIABLE = "T2I_RL_REWARD_TOKEN"
HEADER = "x-reward-token"


def secret(variable: str = VARIABLE) -> bytes | None:
    """What the variable holds, as it travels in a header; None where it is not set.

    Raises RewardError for an empty one, which would let everybody in, and for one that no header holds.
    """
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text:
        raise RewardError(f"{variable} is empty, and a token has to be something: unset it, or set it to one")
    if not text.isprintable() or text != text.strip():
        raise RewardError(f"{variable} has blanks at its ends, or signs that cannot be printed: set it to plain signs")
    return text.encode()


def shown(header: str, token: bytes | None) -> bool:
    """Whether a client's header, as its bytes are read in Latin-1, shows the token; all do where there is none."""
    return token is None or hmac.compare_digest(header.encode("latin-1"), token)
