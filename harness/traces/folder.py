"""The traces of a run, read back."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.golden.store import BrokenShardError
from harness.records import Record
from harness.traces.row import Facts, RowTraces
from harness.variants import DENSE

TRACES = "traces"  # folder beside a run's records


def read_traces(
    run: Path | str,
    records: Sequence[Record] | None = None,
    left_out: Callable[[str], object] | None = None,
) -> list[RowTraces]:
    """Read the traces of a run, the dense row of each dataset and tower first.

    Args:
        run: the folder of its records.
        records: rows whose traces are wanted, with the golden rankings beside them; None for all.
        left_out: told of each file that can't be read, which is then left out; None to raise.

    Raises:
        FileNotFoundError: the run has none.
        ValueError: a file is torn, somebody else's, or of a newer version.
        OSError: one can't be opened.
    """
    folder = Path(run) / TRACES
    if not folder.is_dir():
        raise FileNotFoundError(
            f"run {str(run)!r} has no folder {TRACES!r}; `compare --fresh --output {run}` makes it"
        )
    paths = sorted(folder.glob("*.parquet"))
    if records is not None:
        facts = [Facts.of(record) for record in records]
        wanted = {one.name for one in facts} | {one.ranking_name for one in facts}
        paths = [path for path in paths if path.name in wanted]
    found = []
    for path in paths:
        try:
            found.append(read_row(path))
        except (ValueError, OSError) as error:
            if left_out is None:
                raise
            left_out(str(error))
    return sorted(found, key=order)


def lacking(run: Path | str, records: Sequence[Record]) -> list[Record]:
    """Return the records of a run whose rows have no traces, whole or torn."""
    folder = Path(run) / TRACES
    return [record for record in records if not (folder / Facts.of(record).name).is_file()]


def read_row(path: Path) -> RowTraces:
    """Read one file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is torn, somebody else's, of a newer version, or was renamed.
    """
    try:
        traces = RowTraces.decode(path.read_bytes())
    except BrokenShardError as error:
        raise ValueError(
            f"{str(path)!r} is broken ({error}): delete it, or make it again by the same "
            "`compare` command with --fresh"
        ) from error
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error
    if traces.facts.name != path.name:
        raise ValueError(f"{str(path)!r} holds traces of another row: its name was changed")
    return traces


def order(traces: RowTraces) -> tuple[Any, ...]:
    """Return what rows are sorted by: what they share, dense and golden first, keep falling."""
    facts = traces.facts
    place = (facts.dataset, facts.split, facts.tag, facts.weights_sha256)
    how = (facts.shots, facts.tuning or "", facts.prompt_tokens or 0, facts.seed)
    return (*place, *how, facts.method != DENSE, not traces.golden, facts.method, -facts.keep)
