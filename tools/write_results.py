"""Tables of README and the site that are made from records.

``python -m tools.write_results`` in a checkout writes them anew; a test compares them. With ``--measure LIMIT`` it
first measures the main job, and equal time on photographs, on so many images of each dataset.
"""

import gzip
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import chain, groupby
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.base.table import NOT_MEASURED, Table
from harness.cli.entry import main
from harness.records.averages import CLOSE, REFERENCE, tower_of
from harness.records.record import MATCHED, RECORDS, UNREDUCED, Record, halves, read_records
from harness.report.groups import group_records
from harness.report.highlights import standings
from harness.report.writers import markdown
from harness.studies.final import FinalConfig, summarise
from tools import replace_part
from zoo.core.files import write_whole

RESULTS = Path("docs/results")
BEGIN, END = "<!-- --8<-- [start:{}] -->", "<!-- --8<-- [end:{}] -->"
TIMED = {  # records by column
    f"batch {batch}, {dtype}": f"equal_time_{batch}_{dtype}.jsonl.gz"
    for batch in (1, 8)
    for dtype in ("float32", "bfloat16")
}
PHOTOGRAPHS = ("photos", "frames")  # datasets that are split into halves by their detail
Found = Iterator[tuple[float, str, str, float]]  # keep rate of the target, method, column, 1 - cosine


def main_results() -> list[Table]:
    """Return what README shows of the main job."""
    return [one.table() for one in standings(group_records(read_records(RESULTS / "records.jsonl")))]


def final_split() -> list[Table]:
    """Return 1 - cosine on the final split by tower, cost and method."""
    records = read_records(RESULTS / "final.jsonl.gz")
    groups = [list(group) for _, group in groupby(records, key=lambda one: (tower_of(one), one.dataset))]
    parts = [halves(group) if group[0].dataset in PHOTOGRAPHS else (group,) for group in groups]
    return [summarise(list(chain.from_iterable(parts)), FinalConfig.match_to)]


def equal_time() -> list[Table]:
    """Return 1 - cosine on photographs at the measured time of the target; a row that is off has no figure."""
    return [_distances("Photographs, at equal time", _equal_time())]


def _equal_time() -> Found:
    for column, name in TIMED.items():
        batch = int(column.split(",")[0].removeprefix("batch "))
        records = [
            one for one in read_records(RESULTS / name) if one.dataset == "photos" and one.method not in UNREDUCED
        ]
        goals = {one.keep: _ratio(one, batch) for one in records if one.method == REFERENCE}
        for record in records:
            at = record.method_config.get(MATCHED, {"keeps": [record.keep]})["keeps"][0]
            if abs(_ratio(record, batch) / goals[at] - 1) <= CLOSE:
                yield at, record.method, column, _metric(record, "cosine_distance")


def _metric(record: Record, name: str) -> float:
    mean = record.mean(name)
    assert mean is not None
    return float(mean)


def _ratio(record: Record, batch: int) -> float:
    [ratio] = [times.ratio_to_dense for times in record.latency if times.batch == batch]
    assert ratio is not None
    return ratio


def _distances(title: str, found: Found) -> Table:
    """Lay out 1 - cosine by the target's keep rate and the method, nearest first, in columns."""
    rows: dict[tuple[float, str], dict[str, float]] = {}
    for at, method, column, value in found:
        rows.setdefault((at, method), {})[column] = value
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    order = sorted(rows, key=lambda key: (-key[0], min(rows[key].values())))
    cells = []
    for at, method in order:
        row = rows[at, method]
        figures = [format(row[column], ".4f") if column in row else NOT_MEASURED for column in columns]
        cells.append([f"{100 * at:.0f} %", method, *figures])
    return Table.of(title, ("at", "method", *columns), cells, words={"at", "method"})


PARTS: dict[Path, dict[str, Callable[[], list[Table]]]] = {
    Path("README.md"): {"results": main_results},
    Path("docs/results.md"): {"final": final_split, "time": equal_time},
}


def write(page: Path) -> str:
    """Return the text of a page with its tables made anew."""
    text = page.read_text("utf-8")
    for name, make in PARTS[page].items():
        begin, end = (marker.format(name) for marker in (BEGIN, END))
        text = replace_part(text, f"{begin}\n{markdown(make()).strip()}\n{end}\n", begin, end, page)
    return text


def measure(limit: str) -> None:
    """Write the records of the main job with its plot, and those of equal time, on ``limit`` images of a dataset."""
    jobs: dict[str, list[str]] = {"records.jsonl": []}
    for column, name in TIMED.items():
        batch, dtype = column.removeprefix("batch ").split(", ")
        jobs[name] = ["--dataset", "photos", "--match", "time", "--match-batch", batch, "--batches", batch]
        jobs[name] += ["--dtype", dtype]
    for name, flags in jobs.items():
        with TemporaryDirectory() as folder:
            if code := main(["compare", *flags, "--limit", limit, "--no-gallery", "--output", folder]):
                sys.exit(code)
            content = (Path(folder) / RECORDS).read_bytes()
            write_whole(RESULTS / name, gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
            if not flags:
                shutil.copy(Path(folder) / "fidelity_gflops.svg", RESULTS)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2])
    for each in PARTS:
        write_whole(each, write(each).encode())
        sys.stdout.write(f"wrote {each}\n")
