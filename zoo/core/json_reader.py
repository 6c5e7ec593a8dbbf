"""JSON of anybody's file as values of annotated types."""

import difflib
import functools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints


def strict_json(text: str | bytes) -> Any:
    """Read JSON of anybody's file; raise ValueError for numbers that aren't finite and names that come twice."""
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_number, parse_int=_whole
        )
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"field {twice!r} is there twice")
    return values


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]} is no finite number")
    return value


def _whole(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"{text[:40]}... has {len(text)} digits")
    return int(text)


_hints = functools.cache(get_type_hints)  # records ask for theirs a thousand times


def from_json(kind: Any, value: Any, what: str, *, complete: bool = False, **reserved: Any) -> Any:
    """Return a value of ``json.loads`` as the annotated type ``kind``; messages call it ``what``.

    Types are Any, JSON's, lists, tuples and mappings of such, dataclasses, named tuples and unions. ``reserved`` are
    fields of a dataclass that the value may not name. Fields with a default may be missing unless the value must be
    ``complete``.

    Raises:
        ValueError: names the field that is unknown, missing or of another type.
    """
    for option in get_args(kind) if isinstance(kind, UnionType) else (kind,):
        origin, args = get_origin(option) or option, get_args(option)
        if is_dataclass(option) or hasattr(option, "_fields"):
            if isinstance(value, list) and hasattr(option, "_fields") and len(value) <= len(option._fields):
                value = dict(zip(option._fields, value, strict=False))  # as json writes named tuples
            if isinstance(value, dict):
                return _from_object(option, value, complete, reserved)
        elif origin in (tuple, list, Sequence) and isinstance(value, list):
            if len(args) < 2 or args[1] is Ellipsis or len(args) == len(value):
                items = [from_json(args[0], item, what, complete=complete) for item in value]
                return items if origin is list else tuple(items)
        elif origin in (dict, Mapping) and isinstance(value, dict):
            inner = args[1] if args else Any
            return {name: from_json(inner, item, name, complete=complete) for name, item in value.items()}
        elif option is float and type(value) in {int, float}:
            return float(value)
        elif option is Any or type(value) is option:
            return value
    raise ValueError(f"{what} must be {getattr(kind, '__name__', kind)}, got {value!r}")


def _from_object(kind: Any, values: dict[str, Any], complete: bool, reserved: dict[str, Any]) -> Any:
    kinds = {name: hint for name, hint in _hints(kind).items() if name not in reserved}
    for name in values.keys() - kinds.keys():
        near = "".join(difflib.get_close_matches(name, kinds, n=1)) or "none that is close"
        raise ValueError(f"unknown field {name!r}, did you mean: {near}")
    optional = set(getattr(kind, "_field_defaults", ()))
    if is_dataclass(kind):
        optional = {f.name for f in fields(kind) if (f.default, f.default_factory) != (MISSING, MISSING)}
    if missing := [name for name in kinds if name not in values and (complete or name not in optional)]:
        raise ValueError(f"missing field {missing[0]!r}")
    made = {name: from_json(kinds[name], value, name, complete=complete) for name, value in values.items()}
    return kind(**reserved, **made)
