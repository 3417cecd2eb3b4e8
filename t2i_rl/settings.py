"""Typed settings: what a file or a few words say, as the types that the fields of a dataclass have.

Files hold JSON's values (`override`); words are spelled out inside a method's name (`from_words`). Both end in `typed`,
the one place that knows which value a type takes.
"""

import dataclasses
import json
import math
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from t2i_rl.errors import UserError


def check(name: str, value: object, holds: bool, wanted: str) -> None:
    """Raise UserError unless what is wanted of the setting holds."""
    if not holds:
        raise UserError(f"{name} is {value}: it has to be {wanted}")


def check_whole(text: str, where: str, fault: str = "half of a character") -> None:
    """Raise UserError for a text that no file and no tokenizer takes: it holds a surrogate, which means a fault.

    JSON may hold one half of a pair of them; Python turns a byte of the command line into one where it is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} holds {fault} (\\u{ord(text[error.start]):04x}): mend the text") from None


def check_choice(where: str, name: str, value: str, literal: Any) -> None:
    """Raise UserError unless the value is one of the `Literal`'s words."""
    if value not in get_args(literal):
        raise UserError(f"{where}: there is no {name} {value!r}: choose one of {', '.join(get_args(literal))}")


def from_home(text: str) -> str:
    """A path that begins with ~/, also behind `--option=`, with the home folder: no shell has seen to it there."""
    option, equals, path = text.partition("=") if text.startswith("--") else ("", "", text)
    if path == "~" or path.startswith("~/"):
        path = os.path.expanduser(path)  # noqa: PTH111 (pathlib's raises where there is no home)
    return option + equals + path


def read_settings(path: Path) -> Any:
    """What a TOML or JSON file holds."""
    kind, parse = ("TOML", tomllib.loads) if path.suffix == ".toml" else ("JSON", json.loads)
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the settings in {path} ({error.strerror}): check the path") from error
    except (ValueError, RecursionError) as error:  # of either parser, or of the decoding
        raise UserError(f"{path} is not valid {kind} ({error}): mend it") from error


def override(config: Any, settings: Any, where: str) -> Any:
    """The configuration with the nested settings in place; unknown keys and wrong types are refused."""
    if not isinstance(settings, Mapping):
        raise UserError(f"{where} has to hold named settings, not {settings!r}")
    hints = get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for key, value in settings.items():
        name = key.replace("-", "_")
        if name not in hints:
            raise UserError(f"{where} has the unknown key {key!r}: it may hold {', '.join(hints)}")
        if dataclasses.is_dataclass(hints[name]):
            changes[name] = override(getattr(config, name), value, f"{where}, {key},")
        else:
            changes[name] = typed(value, hints[name], f"{where.removesuffix(',')}: {key}")
    return dataclasses.replace(config, **changes)


def typed(value: Any, wanted: Any, where: str) -> Any:
    """JSON's `value` as the type that the setting has. Raises UserError, which begins with `where`."""
    choices = get_args(wanted)
    if get_origin(wanted) is Literal:
        if value not in choices:
            raise UserError(f"{where} is {value!r}: choose one of {', '.join(choices)}")
        return value
    if get_origin(wanted) is tuple and choices[-1] is ...:
        if not isinstance(value, list):
            raise UserError(f"{where} is {value!r}: it has to be a list")
        return tuple(typed(item, choices[0], where) for item in value)
    if get_origin(wanted) is tuple:
        if not isinstance(value, list) or len(value) != len(choices):
            raise UserError(f"{where} is {value!r}: it has to be a list of {len(choices)} numbers")
        return tuple(typed(item, kind, where) for item, kind in zip(value, choices, strict=True))
    if get_origin(wanted) is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is {value!r}: it has to hold named numbers")
        return {str(name): typed(item, choices[1], f"{where}, {name}") for name, item in value.items()}
    if is_union(wanted):
        if value is None and NoneType in choices:
            return None
        *others, last = (kind for kind in choices if kind is not NoneType)
        for kind in others:
            try:
                return typed(value, kind, where)
            except UserError:
                continue
        return typed(value, last, where)
    if wanted in (Path, str) and isinstance(value, str):
        check_whole(value, where)
        return wanted(from_home(value))
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise UserError(f"{where} is {value!r}: it has to be of type {wanted.__name__}")
    return value


def from_words(text: str, wanted: Any, where: str) -> Any:
    """The value that a few words stand for: `0.5`, `true`, `none`, `initial+structure`. Raises UserError."""
    return typed(_plain(text, wanted), wanted, where)


def _plain(text: str, wanted: Any) -> Any:
    """The words as JSON would hold what they stand for; words that fit no type stay as they are."""
    if get_origin(wanted) is tuple:
        kinds, items = get_args(wanted), text.split("+")
        each = (kinds[0],) * len(items) if kinds[1:] == (...,) or len(kinds) != len(items) else kinds
        return [_plain(item.strip(), kind) for item, kind in zip(items, each, strict=True)]
    if is_union(wanted):
        found = (_plain(text, kind) for kind in get_args(wanted))
        return next((value for value in found if value != text), text)
    if wanted is NoneType and text == "none":
        return None
    if wanted is bool and text in ("true", "false"):
        return text == "true"
    if wanted in (int, float):
        try:
            return number if math.isfinite(number := wanted(text)) else text
        except ValueError:
            return text
    return text


def is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)
