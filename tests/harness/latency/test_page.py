"""docs/latency.md says what records of latency say, and its bounds are the code's."""

import re
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from harness.latency import verdict
from harness.latency.cell import ALLOWED, CHECKED
from harness.latency.machine import Machine, Surroundings
from harness.latency.plan import CPU_BATCHES, CUDA_BATCHES, LatencyPlan
from harness.latency.record import CONDITIONS, LatencyRecord
from harness.latency.timing import MOST_ROUNDS
from harness.latency.ways import WAYS

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "latency.md").read_text("utf-8")
ROW = re.compile(r"^\| `([\w-]+)` \| ([^|]+) \| ([^|]*)\| ([^|]+) \|$")
JSON = {
    str: "string", int: "integer", float: "number", bool: "boolean", dict: "object",
    Machine: "object", Surroundings: "object",
}  # fmt: skip


def rows(heading: str) -> dict[str, tuple[str, str]]:
    part = re.split(r"^##+ ", TEXT.split(f"## {heading}\n")[1], maxsplit=1, flags=re.M)[0]
    table = [line for line in part.splitlines() if line.startswith("| `")]
    found = [ROW.fullmatch(line) for line in table]
    assert None not in found, table[found.index(None)]
    return {row[1]: (row[2], row[3].strip()) for row in found if row}


def json_name(kind: Any) -> str:
    if isinstance(kind, UnionType):
        [own] = [part for part in get_args(kind) if part is not type(None)]
        return f"{json_name(own)} or null"
    if get_origin(kind) is tuple:
        return f"array of {json_name(get_args(kind)[0])}s"
    return JSON[get_origin(kind) or kind]


@pytest.mark.parametrize(
    ("heading", "kind"),
    [("Fields", LatencyRecord), ("Of `machine`", Machine), ("Of `surroundings`", Surroundings)],
)
def test_every_field_is_there_in_order_with_its_type(heading: str, kind: Any):
    types = get_type_hints(kind)
    expected = {field.name: json_name(types[field.name]) for field in fields(kind)}
    documented = {name: row[0] for name, row in rows(heading).items()}
    assert list(documented.items()) == list(expected.items())


@pytest.mark.parametrize("heading", ["Fields", "Of `machine`", "Of `surroundings`"])
def test_units_in_names_are_the_units_of_the_table(heading: str):
    units = {
        "_ms": "ms", "_s": "s", "_mhz": "MHz", "_mib": "MiB", "_per_s": "images per second",
        "_mj_per_image": "mJ per image",
    }  # fmt: skip
    for name, (_, unit) in rows(heading).items():
        [*_, end] = [e for e in sorted(units, key=len) if name.endswith(e)] or [None]
        if end is not None:
            assert unit == units[end], name


def test_the_conditions_are_those_that_the_page_says():
    names = list(rows("Fields"))
    between = names[names.index("version") : names.index("machine") + 1]
    assert tuple(name for name in between if name != "git_commit") == CONDITIONS
    assert "from `version` to `machine`, without `git_commit`, are the conditions" in TEXT


def test_every_way_and_every_verdict_is_explained():
    assert re.findall(r"^- `([\w-]+)`: ", TEXT, re.M) == list(WAYS)
    for word in verdict.VERDICTS:
        assert f"**{word}**" in TEXT


def test_bounds_and_defaults_are_the_codes():
    for text in (
        f"more than {100 * verdict.SPREAD:.0f} % of the median apart",
        f"differ by more than {100 * verdict.DRIFT:.0f} %",
        f"more than {100 * verdict.OTHERS:.0f} % of the cores",
        f"changed by more than {100 * verdict.CLOCK:.0f} %",
        f"at least {LatencyPlan.rounds} rounds",
        f"{LatencyPlan.seconds:g} seconds",
        f"{MOST_ROUNDS} rounds at most",
        f"{verdict.LEAST_ROUNDS} rounds",
        f"{CHECKED} images",
        " ".join(map(str, CPU_BATCHES)),
        " ".join(map(str, CUDA_BATCHES)),
        *(
            f"{allowed:g} in {str(dtype).removeprefix('torch.')}"
            for dtype, allowed in ALLOWED.items()
        ),
    ):
        assert text in " ".join(TEXT.split()), text
