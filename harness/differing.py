"""What differs among things that should be alike, in words."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

_NAMED = 3  # owners told of each value


def differing(
    told: Iterable[tuple[str, Mapping[str, Any]]], unknown: Collection[str] = ()
) -> dict[str, dict[Any, list[str]]]:
    """Return each name whose value isn't the same everywhere, with the owners of each value.

    Args:
        told: an owner, and its values by name; names are the same for all.
        unknown: names whose None says that nobody knows, so that it differs from nothing.
    """
    found: dict[str, dict[Any, list[str]]] = {}
    for owner, values in told:
        for name, value in values.items():
            if value is not None or name not in unknown:
                owners = found.setdefault(name, {}).setdefault(value, [])
                if owner not in owners:
                    owners.append(owner)
    return {name: values for name, values in found.items() if len(values) > 1}


def in_words(found: Mapping[str, Mapping[Any, list[str]]]) -> str:
    """Say each name that differs, all its values, and a few owners of each."""
    return "; ".join(
        f"{name} {' and '.join(f'{v!r} ({_some(owners)})' for v, owners in values.items())}"
        for name, values in found.items()
    )


def _some(owners: list[str]) -> str:
    more = len(owners) - _NAMED
    return ", ".join(owners[:_NAMED]) + (f" and {more} more" if more > 0 else "")
