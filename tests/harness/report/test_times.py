"""Tables of times: what may stand in one, what stands there, and what newer times stand for."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from harness.latency.record import LatencyRecord
from harness.latency.tables import table_of
from harness.report.times import time_sections, timed_groups
from harness.report.writers import latex, markdown

Make = Callable[..., LatencyRecord]
DENSE_MS = (10.0, 11.0, 10.5, 10.2, 10.1, 10.3)
TOME = {"model": "clip_vit_b16_tome60", "method": "tome", "keep": 0.6}


@pytest.fixture
def times(latency_record: Make) -> list[LatencyRecord]:
    """The model before its dense tower, the larger batch before the smaller."""
    found = []
    for batch in (8, 1):
        faster = tuple(0.7 * ms for ms in DENSE_MS)
        warnings = ("wide spread",) if batch == 8 else ()
        told = {"batch": batch, "warnings": warnings, "peak_mib": 9.5, "saved_gflops": 0.3}
        found.append(latency_record(faster, DENSE_MS, **TOME, **told))
        found.append(latency_record(batch=batch))
    return found


def test_a_table_has_ratio_interval_verdict_and_memory(times: list[LatencyRecord]):
    [section] = time_sections(timed_groups(times))
    assert section.title == table_of(times[0])
    found = [dict(zip(section.heads, row, strict=True)) for row in section.rows]
    assert [(row["model"], row["batch"]) for row in found] == [
        ("dense", "1"), ("tome60", "1"), ("dense", "8"), ("tome60", "8"),
    ]  # fmt: skip
    row = times[2]
    assert found[1]["ratio"] == (
        f"{row.ratio_to_dense:.3f} [{row.ratio_low:.3f}, {row.ratio_high:.3f}]"
    )
    assert found[1]["ratio"].value == row.ratio_to_dense
    assert (found[1]["verdict"], found[3]["verdict"]) == ("faster", "faster !")
    assert found[1]["MiB"] == "2 + 9.5"
    assert found[0]["ratio"].value is None
    assert found[0]["verdict"].value is None
    assert section.notes == ["batch 8, tome60: wide spread"]


def test_conditions_never_share_a_table(times: list[LatencyRecord]):
    for change in ({"dtype": "bfloat16"}, {"way": "compile"}, {"threads": 2}, {"device": "cuda"}):
        groups = timed_groups([*times, *(replace(time, **change) for time in times)])
        assert [len(group.rows) for group in groups] == [4, 4]
        assert len({group.name for group in groups}) == 2


@pytest.mark.parametrize("change", [{"torch_version": "3.0"}, {"cores": 64}])
def test_tables_of_one_title_are_told_apart_by_their_machines(times, change: dict):
    [(name, value)] = change.items()
    other = [replace(time, machine=replace(time.machine, **change)) for time in times]
    first, second = timed_groups([*times, *other])
    assert second.name == f"{table_of(times[0])}; {name} {value}"
    assert first.name == f"{table_of(times[0])}; {name} {getattr(times[0].machine, name)}"


def test_the_newest_time_counts_wherever_it_stands(times: list[LatencyRecord]):
    later = replace(times[0], created="2027-01-01T00:00:00+00:00", ratio_to_dense=0.5)
    for given in ([later, *times], [*times, later]):
        [group] = timed_groups(given)
        assert [row.ratio_to_dense for row in group.rows if row.batch == 8] == [None, 0.5]


def test_markdown_and_latex_have_the_table(times: list[LatencyRecord]):
    groups = timed_groups(times)
    text = markdown(time_sections(groups))
    assert text.count("| tome60 |") == 2
    assert text.endswith("- batch 8, tome60: wide spread\n")
    tex = latex(time_sections(groups, summary=True))
    assert tex.count(r"\begin{tabular}") == 1
    assert r"model & batch & ms & ratio & verdict & arrived" in tex
    assert tex.count(r"\addlinespace") == 1


def test_what_failed_is_said(latency_record: Make):
    failed = latency_record((), failed="out of memory", **TOME)
    [section] = time_sections(timed_groups([latency_record(), failed]))
    row = dict(zip(section.heads, section.rows[1], strict=True))
    assert (row["verdict"], row["ms"], row["ms"].value) == ("not timed", "–", None)
    assert section.notes == ["batch 1, tome60: not timed: out of memory"]
