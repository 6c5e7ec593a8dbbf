"""What settings may be: precisions by name, the check of fields, and phrases that refusals share."""

import dataclasses
import difflib
from collections.abc import Collection, Iterable
from typing import Any

import torch

AUTO = "auto"  # the precision that is fastest on the device
PRECISIONS = ("float32", "bfloat16", "float16")  # that torch computes in; a runtime may have others


def expected(value: str, allowed: Iterable[str]) -> str:
    """Phrase what was allowed instead of ``value``, the nearest first."""
    names = list(allowed)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"{hint}expected one of {', '.join(names[:12])}{more}"


def tower_name(model: str, tag: str) -> str:
    """Return the name of a tower, with its weight tag if it has one."""
    return f"{model}.{tag}" if tag else model


def check_fields(config: Any, **allowed: Collection[str]) -> None:
    """Refuse, by ValueError, fields of a dataclass that are not among the names, or in the interval, allowed.

    Of a tuple each value is to be among the names. An interval is a text such as ``[1, inf)``. Fields annotated as int
    take integers alone; None passes where it is the default.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    for name, values in allowed.items():
        value, field = getattr(config, name), fields[name]
        if value is None and field.default is None:
            continue
        if not isinstance(values, str):
            for entry in value if isinstance(value, tuple) else (value,):
                if entry not in values:
                    raise ValueError(f"{name}={entry!r}: {expected(entry, values)}")
            continue
        whole = field.type in (int, int | None, "int", "int | None")
        number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        low, high = map(float, values[1:-1].split(","))
        inside = number and low <= value <= high and (value, values[0]) != (low, "(")
        if not inside or (value, values[-1]) == (high, ")"):
            raise ValueError(f"{name}={value!r}: expected {'an integer' if whole else 'a number'} in {values}")


def torch_dtype(precision: str) -> torch.dtype:
    """Return torch's type of a precision; raise ValueError for a name that is not of ``PRECISIONS``."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: {expected(precision, PRECISIONS)}")
    dtype: torch.dtype = getattr(torch, precision)
    return dtype


def best_precision(device: str | torch.device) -> str:
    """Return the precision that is fastest on a device: bfloat16 where its hardware has it."""
    kind = torch.device(device).type
    fast = kind == "cuda" and torch.cuda.is_bf16_supported()
    if kind == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if fast else "float32"


def precision_on(device: str | torch.device, precision: str) -> str:
    """Return ``precision`` itself, or the precision that is fastest on the device where it is ``auto``."""
    return best_precision(device) if precision == AUTO else precision
