"""Variants of a method, written into its name: `critical[credit.share=0.05,dynamic=none]`.

A setting is named by its dotted path into the method; as everywhere, `-` may stand for `_`. Its value is

- a number, a word of those that the setting knows, `true` or `false`, or `none`;
- several of these joined by `+`: `critical[credit.parts=initial+structure]`;
- for a part of the method (credit, dynamic, objective, objective.surrogate, and scale beside its words) the name of
  another method, whose part is taken: `grpo[dynamic=critical]` weights all tokens, `gspo[credit=cfg]` GSPO's loss.

Parts are put in place first, then the settings below them, so `grpo[dynamic=critical,dynamic.clip=1]` is a variant too.
The text is the variant's name: a run's configuration holds it, and a run resumed from there is the same variant.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from t2i_rl.errors import UserError
from t2i_rl.settings import from_words, is_union

Part = TypeVar("Part")
RENAMED = {"mean-of-rows": "mean-of-images", "rows": "images"}  # words of older run files


def base_name(name: str) -> str:
    """The registered method that a name begins with."""
    return name.partition("[")[0]


def settings_of(name: str) -> dict[str, str]:
    """The settings between the brackets, by dotted path; none for a name without brackets."""
    if base_name(name) == name:
        return {}
    inside, closing, rest = name.partition("[")[2].partition("]")
    if not closing or rest:
        raise UserError(f"the method {name!r} has to end with its settings in brackets, as in cfg[credit.statistic=k3]")
    found: dict[str, str] = {}
    for item in inside.split(","):
        path, equals, value = (word.strip() for word in item.partition("="))
        path = path.replace("-", "_")
        if not (path and equals and value):
            raise UserError(f"the method {name!r} has the setting {item.strip()!r}: write it as PATH=VALUE")
        if path in found:
            raise UserError(f"the method {name!r} sets {path} twice: keep one of the two")
        found[path] = RENAMED.get(value, value) if path == "objective.denominator" else value
    return found


def varied(part: Part, settings: Mapping[str, str], methods: Mapping[str, Any], name: str, path: str = "") -> Part:
    """The part (at first the whole method) with the settings below `path` replaced, all of them at once.

    methods: those whose parts may be taken. name: of the variant, for errors.
    Raises UserError for a path that does not exist, a value of another type, or one that the part refuses.
    """
    hints = get_type_hints(type(part))
    # A method's own name and summary are not settings, and no setting is free text.
    known = [field.name for field in dataclasses.fields(part) if hints[field.name] is not str]  # type: ignore[arg-type]
    below: dict[str, dict[str, str]] = {}
    for below_path, text in settings.items():
        field, _, rest = below_path.partition(".")
        below.setdefault(field, {})[rest] = text
    changes: dict[str, Any] = {}
    for field, texts in below.items():
        if field not in known:
            raise UserError(
                f"the method {name!r} has no setting {path + field}: {path.rstrip('.') or 'it'} "
                f"({type(part).__name__}) has {', '.join(known) or 'none'}"
            )
        value = getattr(part, field)
        if "" in texts:
            value = _value(texts.pop(""), hints[field], path + field, methods, name)
        if texts and not dataclasses.is_dataclass(value):
            raise UserError(
                f"the method {name!r} sets {path + field}.{min(texts)}, but {path + field} is {value} here, "
                "which has no settings"
            )
        changes[field] = varied(value, texts, methods, name, f"{path}{field}.") if texts else value
    return dataclasses.replace(part, **changes)  # type: ignore[type-var]


def _value(text: str, hint: Any, path: str, methods: Mapping[str, Any], name: str) -> Any:
    """The text as what the setting holds."""
    if _is_part(hint) and text in methods:
        return operator.attrgetter(path)(methods[text])
    said = f"the method {name!r} sets {path} to {text!r}"
    try:
        return from_words(text, hint, said)
    except UserError:
        raise UserError(f"{said}: it has to be {_wanted(hint)}") from None


def _is_part(hint: Any) -> bool:
    """Whether a setting may hold an object with settings of its own."""
    if is_union(hint):
        return any(_is_part(kind) for kind in get_args(hint))
    return get_origin(hint) is None and hint not in (bool, int, float, str, NoneType)


def _wanted(hint: Any) -> str:
    """What a setting may hold, for people."""
    kinds = get_args(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(kinds)}"
    if get_origin(hint) is tuple:
        number = "some" if kinds[1:] == (...,) else str(len(kinds))
        return f"{number} values joined by +, each {_wanted(kinds[0])}"
    if is_union(hint):
        # Several kinds of part are all written as a method's name.
        return ", or ".join(dict.fromkeys(_wanted(kind) for kind in kinds))
    plain = {bool: "true or false", int: "a whole number", float: "a number", NoneType: "none"}
    return plain.get(hint, "the name of a method whose part is taken")
