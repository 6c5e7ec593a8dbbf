"""Tables of README and the site that are made from records.

``python -m tools.write_results`` in a checkout writes them anew; a test compares them. docs/results.md has the commands
that measured the records.
"""

import functools
import sys
from collections.abc import Callable
from itertools import chain, groupby
from pathlib import Path

from harness.base.table import NOT_MEASURED, Table, figure
from harness.records.averages import averages, levels, tower_of
from harness.records.record import halves, read_records
from harness.report.folder import csv_text, markdown
from harness.report.highlights import standings
from harness.report.tables import group_records
from harness.studies.final import AGAINST, MATCH_TO, SetDistance, distances
from zoo.core.files import write_whole

RESULTS = Path("docs/results")
BEGIN, END = "<!-- --8<-- [start:{}] -->", "<!-- --8<-- [end:{}] -->"
TIMED = {  # records by column
    f"batch {batch}, {dtype}": f"equal_time_{batch}_{dtype}.jsonl.gz"
    for batch in (1, 8, 32)
    for dtype in ("float32", "bfloat16")
}
CAPTION = (
    f"at: keep rate of {MATCH_TO}, whose GFLOPs both have; behind a distance its ratio to that of {AGAINST} on the "
    f"same images and its 95 % paired bootstrap interval over images; {AGAINST} at +X %: it can't go down to this cost"
)
PHOTOGRAPHS = ("photos", "frames")  # datasets that are split into halves by their detail


def main_results() -> list[Table]:
    """Return what README shows of the main job."""
    return [one.table() for one in standings(group_records(read_records(RESULTS / "records.jsonl")))]


@functools.cache
def final_distances() -> list[SetDistance]:
    """Return 1 - cosine of all methods on the final split, on halves of the photographs by their detail."""
    records = read_records(RESULTS / "final.jsonl.gz")
    groups = [list(group) for _, group in groupby(records, key=lambda one: (tower_of(one), one.dataset))]
    parts = [halves(group) if group[0].dataset in PHOTOGRAPHS else (group,) for group in groups]
    return distances(list(chain.from_iterable(parts)), MATCH_TO)


def final_split() -> list[Table]:
    """Return 1 - cosine of rankmerge on the final split by tower and cost, beside ToMe's."""
    ours = [one for one in final_distances() if one.method == "rankmerge"]
    sets = list(dict.fromkeys(one.dataset for one in ours))
    rows: dict[tuple[str, float], dict[str, SetDistance]] = {}
    for one in ours:
        rows.setdefault((one.tower, one.at), {})[one.dataset] = one
    against = {(one.tower, one.at): one.label for one in final_distances() if one.method == AGAINST}
    cells = [
        [tower, f"{100 * at:g} %", against[tower, at], *(line[n].cell if n in line else NOT_MEASURED for n in sets)]
        for (tower, at), line in rows.items()
    ]
    heads = ("tower", "at", "beside", *sets)
    return [Table.of("rankmerge, 1 - cosine to dense", heads, cells, words={*heads[:3]}, caption=CAPTION)]


def final_csv() -> str:
    """Return all distances on the final split as CSV, with the ratio to that of ToMe and its interval."""
    rows = []
    for one in final_distances():
        row = one._asdict()
        names = (f"to_{AGAINST}{part}" for part in ("", "_low", "_high"))
        rows.append(row | dict(zip(names, row.pop("ratio") or (None,) * 3, strict=True)))
    return csv_text(rows)


def equal_time() -> list[Table]:
    """Return 1 - cosine on photographs at the measured time of the target; a row that is off has no figure."""
    rows: dict[tuple[float, str], dict[str, float]] = {}
    for column, name in TIMED.items():
        records = [one for one in read_records(RESULTS / name) if one.dataset == "photos"]
        for level in levels(averages(records)):
            for row in () if level.batch is None else level.rows:
                rows.setdefault((level.target.keep, row.method), {})[column] = row.mean("cosine_distance")
    cells = [
        [f"{100 * at:.0f} %", method, *(figure(rows[at, method].get(column), ".4f") for column in TIMED)]
        for at, method in sorted(rows, key=lambda key: (-key[0], min(rows[key].values())))
    ]
    return [Table.of("Photographs, at equal time", ("at", "method", *TIMED), cells, words={"at", "method"})]


FILES = {RESULTS / "final.csv": final_csv}
PARTS: dict[Path, dict[str, Callable[[], list[Table]]]] = {
    Path("README.md"): {"results": main_results},
    Path("docs/results.md"): {"final": final_split, "time": equal_time},
}


def write(page: Path) -> str:
    """Return the text of a page with its tables made anew."""
    text = page.read_text("utf-8")
    for name, make in PARTS[page].items():
        begin, end = (marker.format(name) for marker in (BEGIN, END))
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{markdown(make()).strip()}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    for each in (*FILES, *PARTS):
        write_whole(each, (FILES[each]() if each in FILES else write(each)).encode())
        sys.stdout.write(f"wrote {each}\n")
