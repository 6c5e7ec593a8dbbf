"""What the runs of a report hold: records, times, or both."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from harness.latency.record import LATENCIES, LatencyRecord, read_latencies
from harness.records import RECORDS, Record, read_run


def once(runs: Iterable[Path]) -> list[Path]:
    """Return runs without those that are there already, be it as a folder or as its file."""
    found: dict[Path, Path] = {}
    for run in runs:
        found.setdefault((run / RECORDS if run.is_dir() else run).resolve(), run)
    return list(found.values())


def records_in(run: Path) -> list[Record]:
    """Return the records of a run; none of one that holds times alone.

    Raises:
        FileNotFoundError: the run isn't there, or has neither.
        ValueError: no records, or a line that is none.
    """
    only_times = (run / LATENCIES).is_file() and not (run / RECORDS).exists()
    return [] if only_times or _of_times(run) else read_run(run)


def latencies_in(
    runs: Sequence[Path], left_out: Callable[[str], object]
) -> list[tuple[str, LatencyRecord]]:
    """Return the times that runs hold or that lie beside their records, each with its run.

    Args:
        runs: folders, files of records or files of times.
        left_out: told of files beside records that can't be read, which are then left out.

    Raises:
        ValueError: a run of times alone can't be read, or holds none.
        OSError: one can't be opened.
    """
    found: list[tuple[str, LatencyRecord]] = []
    seen = set()
    for run in runs:
        given = _of_times(run)
        file = run if given else (run if run.is_dir() else run.parent) / LATENCIES
        if file.resolve() in seen or not file.is_file():
            continue
        seen.add(file.resolve())
        try:
            read = read_latencies(file)
        except (ValueError, OSError) as error:
            if given or not (file.parent / RECORDS).exists():
                raise
            left_out(str(error))
            continue
        if not read and (given or not (file.parent / RECORDS).exists()):
            raise ValueError(f"run {str(run)!r}: {file.name} holds no times")
        found += [(str(run), record) for record in read]
    return found


def _of_times(run: Path) -> bool:
    """Tell a file of times, whatever it is called, by its first line."""
    if not run.is_file():
        return False
    with run.open("rb") as file:
        line = file.readline()
    try:
        first = json.loads(line)
    except ValueError:
        return run.name == LATENCIES
    return run.name == LATENCIES or (isinstance(first, dict) and "stopwatch" in first)
