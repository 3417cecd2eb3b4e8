"""Settings that are one of a few words: a word nobody knows is refused when the setting is made."""

from typing import Any, get_args

from t2i_rl.errors import UserError


def check_choice(where: str, name: str, value: str, literal: Any) -> None:
    """Raise UserError unless the value is one of the `Literal`'s words."""
    if value not in get_args(literal):
        raise UserError(f"{where}: there is no {name} {value!r}: choose one of {', '.join(get_args(literal))}")
