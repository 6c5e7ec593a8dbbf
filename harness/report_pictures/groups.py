"""Traced rows that may stand side by side, on the images that all of them have."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.protocol import protocol, tower_of
from harness.records import Record, differing, in_words
from harness.traces import TRACES, RowTraces, Thumbnails, read_thumbnails, read_traces
from harness.traces.folder import order
from harness.traces.row import RANKING, Facts, digest_of
from harness.variants import DENSE


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Rows of one dataset, tower and tuning, on the same images.

    Attributes:
        rows: the dense one first if it is there, then the golden ranking, then methods by name,
            keep rates falling.
        thumbnails: small copies of some of the images.
        apart: what tells it from a group that would be called the same.
    """

    rows: Sequence[RowTraces]
    thumbnails: Thumbnails
    apart: str = ""

    @classmethod
    def of(cls, rows: Sequence[RowTraces], thumbnails: Thumbnails) -> "Group":
        """Put rows side by side; images that one of them lacks are left out.

        Raises:
            ValueError: conditions or patch grids differ.
        """
        told = ((row.facts.model, row.facts.conditions | {"grid": row.grid}) for row in rows)
        if mixed := differing(told):
            raise ValueError(
                f"traces of different {', '.join(mixed)} cannot stand side by side: "
                f"{in_words(mixed)}"
            )
        shared = set(rows[0].image_ids).intersection(*(row.image_ids for row in rows))
        ids = [name for name in rows[0].image_ids if name in shared]
        return cls(rows=[row.take(ids) for row in rows], thumbnails=thumbnails)

    @property
    def facts(self) -> Any:
        """What all rows have in common, by the first one's, which name what records do."""
        return self.rows[0].facts

    @property
    def title(self) -> str:
        """Say which dataset, split, tuning and tower these are."""
        how = protocol(self.facts) if self.facts.shots else "by text"
        return f"{self.facts.dataset} {self.facts.split}, {how}, {tower_of(self.facts)}{self.apart}"

    @property
    def slug(self) -> str:
        """Return it as a part of a file's name."""
        words = f"{self.facts.dataset}_{self.facts.split}_{tower_of(self.facts)}"
        return f"{re.sub(r'[^A-Za-z0-9]+', '_', words)}_{digest_of(self.facts.conditions)[:6]}"

    @property
    def image_ids(self) -> Sequence[str]:
        """Ids of the images that all rows have."""
        return self.rows[0].image_ids

    @property
    def golden(self) -> list[RowTraces]:
        """The golden ranking, if there is one."""
        return [row for row in self.rows if row.golden]

    @property
    def levels(self) -> list[list[RowTraces]]:
        """Rows of reduced models, side by side by keep rate, falling.

        Where methods have keep rates of their own, as with equal cost, by their order instead:
        each one's highest, then each one's second.
        """
        rows = [row for row in self.rows if not row.golden and row.facts.method != DENSE]
        own = Counter(row.facts.method for row in rows)
        rates = sorted({row.facts.keep for row in rows}, reverse=True)
        if len(rates) <= max(own.values(), default=0):
            return [[row for row in rows if row.facts.keep == rate] for rate in rates]
        found: list[list[RowTraces]] = [[] for _ in range(max(own.values()))]
        for method in own:
            of_it = [row for row in rows if row.facts.method == method]
            for level, row in enumerate(sorted(of_it, key=lambda row: -row.facts.keep)):
                found[level].append(row)
        return found


def groups(
    runs: Sequence[Path | str],
    records: Sequence[Record] | None = None,
    left_out: Callable[[str], object] | None = None,
) -> list[Group]:
    """Share the traces of runs out to groups; runs without traces have none.

    Args:
        runs: folders of records, or the files of records in them. A row that several runs have
            counts once, as the last has it.
        records: rows that are wanted, with the golden rankings beside them; groups come in their
            order. None for all, by name.
        left_out: told of each file that can't be read, which is then left out; None to raise.

    Raises:
        ValueError: a file is torn, somebody else's, or of a newer version.
        OSError: one can't be opened.
    """
    found: dict[str, tuple[RowTraces, Path]] = {}
    for folder in dict.fromkeys(run.parent if run.is_file() else run for run in map(Path, runs)):
        if (folder / TRACES).is_dir():
            rows = read_traces(folder, records, left_out)
            found |= {row.facts.name: (row, folder) for row in rows}
    shares: dict[str, list[RowTraces]] = {}
    for record in records or ():
        shares.setdefault(digest_of(Facts.of(record).conditions), [])
    for row, _ in found.values():
        shares.setdefault(digest_of(row.facts.conditions), []).append(row)
    folders = {name: folder for name, (_, folder) in found.items()}
    made = []
    for rows in filter(None, shares.values()):
        jpeg: dict[str, bytes] = {}
        for folder in dict.fromkeys(folders[row.facts.name] for row in rows):
            try:
                jpeg |= read_thumbnails(folder, rows[0].facts).jpeg
            except (ValueError, OSError) as error:
                if left_out is None:
                    raise
                left_out(str(error))
        made.append(Group.of(sorted(rows, key=order), Thumbnails(jpeg=jpeg)))
    return _named([group for group in made if group.image_ids])


def _named(found: Sequence[Group]) -> list[Group]:
    """Tell groups apart that would be called the same."""
    named = []
    for group in found:
        same = [other for other in found if other.title == group.title]
        varying = differing((other.slug, other.facts.conditions) for other in same)
        told = [f"{name} {getattr(group.facts, name)}" for name in varying]
        named.append(replace(group, apart=f" ({', '.join(told)})" if told else ""))
    return named


def label(row: RowTraces, rows: Sequence[RowTraces]) -> str:
    """Name a row, telling from the others its keep rate and, if need be, a hash of its settings."""
    if row.golden:
        return RANKING
    words = row.facts.method
    if len({other.facts.keep for other in rows if not other.golden}) > 1:
        words += f" {100 * row.facts.keep:.3g} %"
    same = [other for other in rows if _place(other) == _place(row)]
    return words if len(same) == 1 else f"{words} {digest_of(row.facts.method_config)[:4]}"


def keeps(rows: Sequence[RowTraces]) -> str:
    """Say the keep rates of a level."""
    rates = sorted({100 * row.facts.keep for row in rows if not row.golden})
    if len(rates) == 1:
        return f"{rates[0]:.3g} % of the patch tokens kept"
    return f"{rates[0]:.3g} to {rates[-1]:.3g} % of the patch tokens kept"


def _place(row: RowTraces) -> tuple[str, float]:
    return row.facts.method, row.facts.keep
