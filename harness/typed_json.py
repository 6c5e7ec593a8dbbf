"""JSON values as dataclasses: every field there, none unknown, each of its annotated type."""

import difflib
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints


def parsed(kind: Any, value: Any, name: str) -> Any:
    """Return the JSON value as the annotated type.

    Args:
        kind: bool, int, float, str, dict, tuple[T, ...], a dataclass of such, or a union of these.
        value: as ``json.loads`` gives it.
        name: of the field, for the message.

    Raises:
        ValueError: names the field that is unknown, missing or of another type.
    """
    for option in get_args(kind) if isinstance(kind, UnionType) else (kind,):
        if is_dataclass(option) and isinstance(value, dict):
            return _dataclass(option, value)
        if get_origin(option) is tuple and isinstance(value, list):
            return tuple(parsed(get_args(option)[0], item, name) for item in value)
        if option is float and type(value) in {int, float}:
            return float(value)
        if type(value) is (get_origin(option) or option):
            return value
    raise ValueError(f"{name} must be {getattr(kind, '__name__', kind)}, got {value!r}")


def _dataclass(kind: Any, values: dict[str, Any]) -> Any:
    kinds = get_type_hints(kind)
    for name in values.keys() - kinds.keys():
        near = "".join(difflib.get_close_matches(name, kinds, n=1)) or "none that is close"
        raise ValueError(f"unknown field {name!r}, did you mean: {near}")
    if missing := [name for name in kinds if name not in values]:
        raise ValueError(f"missing field {missing[0]!r}")
    return kind(**{name: parsed(kinds[name], value, name) for name, value in values.items()})
