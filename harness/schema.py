"""Versions of the records' schema, and how a line of an earlier one is read."""

from typing import Any

SCHEMA_VERSION = 6
# Fields that came with a version; None in a line of an earlier one, which didn't measure them.
ADDED = {
    2: ("weighted_tau", "weighted_tau_low", "weighted_tau_high", "border_overlap", "border_low",
        "border_high", "border_chance", "tau_undefined"),
    3: ("cosine_to_dense", "cosine_low", "cosine_high"),
    4: ("match_low", "match_high"),
    5: ("tuning", "prompt_tokens"),
    6: ("images_sha256", "image_size", "activations", "uncounted_operators",
        "margin"),
}  # fmt: skip


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Return a line's values as the present version has them.

    Raises:
        ValueError: a version that is none, or newer than this one.
    """
    found = values.get("schema_version")
    if type(found) is not int or not 1 <= found <= SCHEMA_VERSION:
        raise ValueError(f"schema_version is {found!r}, this version reads 1 to {SCHEMA_VERSION}")
    for version in range(found + 1, SCHEMA_VERSION + 1):
        values = values | dict.fromkeys(ADDED[version])
    shots = values.get("shots")
    if found < 5 and type(shots) is int and shots > 0:  # there was no other way then
        values["tuning"] = "probe"
    return values | {"schema_version": SCHEMA_VERSION}
