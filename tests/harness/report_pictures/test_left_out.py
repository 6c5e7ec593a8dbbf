"""Files that can't be read are told and left out of a report; groups come as the tables do."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.report_pictures import galleries, matrix, table
from harness.report_pictures.agreement import table_of
from harness.report_pictures.gallery import galleries_of
from harness.report_pictures.groups import groups
from harness.report_pictures.matrix import matrices
from harness.traces import read_traces
from harness.traces.row import Facts


def path_of(run, method: str) -> Path:
    [row] = [r for r in read_traces(run.run) if (r.facts.method, r.facts.keep) == (method, 0.25)]
    return run.run / "traces" / row.facts.name


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"PAR1 torn", "is broken"), (b"", "is broken"), (b"PAR1 not of ours PAR1", "is broken")],
)
def test_a_torn_row_is_told_and_the_others_are_drawn(content: bytes, why: str, run):
    path = path_of(run, "evit")
    path.write_bytes(content)
    told: list[str] = []
    traced = groups([run.run], None, told.append)
    [reason] = told
    assert str(path) in reason
    assert why in reason
    assert [row.facts.method for row in traced[0].levels[-1]] == ["patchrank", "random"]
    assert len(matrices(traced)) == 1
    assert len(galleries_of(traced)) == 2
    assert {p["b"] for p in table_of(traced)} >= {"patchrank", "random"}
    for strict in (matrix, galleries, table):
        with pytest.raises(ValueError, match=why):
            strict(run.run)


def test_a_file_of_somebody_else_s_and_one_that_was_renamed_are_told(run):
    foreign, renamed = path_of(run, "evit"), path_of(run, "patchrank")
    small = next((run.run / "thumbnails").glob("*.parquet"))
    content = foreign.read_bytes()
    foreign.write_bytes(small.read_bytes())
    renamed.write_bytes(content)
    told: list[str] = []
    [group] = groups([run.run], None, told.append)
    assert len(told) == 2
    assert any("a Parquet file, but not of traces" in reason for reason in told)
    assert any("holds traces of another row" in reason for reason in told)
    assert [row.facts.method for row in group.levels[-1]] == ["random"]


def test_a_folder_in_the_place_of_a_file_is_told(run):
    path = path_of(run, "evit")
    path.unlink()
    path.mkdir()
    told: list[str] = []
    assert len(groups([run.run], None, told.append)) == 1
    assert str(path) in told[0]


def test_without_thumbnails_that_can_be_read_there_is_a_matrix_and_no_gallery(run):
    [small] = (run.run / "thumbnails").glob("*.parquet")
    small.write_bytes(small.read_bytes()[:-5])
    told: list[str] = []
    traced = groups([run.run], None, told.append)
    assert [str(small) in reason for reason in told] == [True]
    assert (len(matrices(traced)), galleries_of(traced)) == (1, [])


def test_groups_come_in_the_order_of_the_records(written):
    made = written()
    rows = [
        made.row(method, 0.5, dataset=dataset)
        for dataset in ("aardvark", "zebra")
        for method in ("evit", "patchrank")
    ]
    for given in (rows, rows[::-1]):
        records = [SimpleNamespace(**vars(row.facts)) for row in given]
        wanted = list(dict.fromkeys(record.dataset for record in records))
        assert [group.facts.dataset for group in groups([made.run], records)] == wanted
        pictures = matrix(made.run, records=records)
        assert [picture.title.split()[3] for picture in pictures] == wanted
        assert list(dict.fromkeys(p["dataset"] for p in table(made.run, records=records))) == wanted
    assert [group.facts.dataset for group in groups([made.run])] == ["aardvark", "zebra"]


def test_a_run_given_twice_is_read_once(run, monkeypatch: pytest.MonkeyPatch):
    from harness.report_pictures import groups as module

    read = []
    monkeypatch.setattr(
        module, "read_traces", lambda *given: read.append(given[0]) or read_traces(*given)
    )
    file = run.run / "records.jsonl"
    file.touch()
    assert len(groups([run.run, file, run.run])) == 1
    assert len(read) == 1


def test_facts_without_traces_make_no_group(run):
    [row] = [r for r in read_traces(run.run) if r.facts.method == "dense"]
    other = SimpleNamespace(**vars(replace(row.facts, dataset="other")))
    assert Facts.of(other).dataset == "other"
    assert groups([run.run], [other]) == []
