"""The tables of a report, whatever they are written as."""

from collections.abc import Iterable, Iterator, Sequence

from harness.averages import Average, judged, uncounted
from harness.protocol import protocol
from harness.records import Record
from harness.report.groups import Group, Grouped, counted, grouped
from harness.report.tables import by_shots, report_columns, shot_tables, table_of
from harness.report.writers import markdown
from harness.tables import Table


def sections(found: Grouped, *, summary: bool = False, marked: bool = False) -> Iterator[Table]:
    """Yield a table per group, and after the last of a dataset its numbers of shots.

    Args:
        found: the groups.
        summary: leave out what a first look doesn't need.
        marked: differences to dense that are clear with all rows judged together have a mark.
    """
    groups = found.groups
    settings = [group.setting for group in groups]
    for at, group in enumerate(groups):
        yield _section(group, summary=summary, marked=marked)
        if settings[at] in settings[at + 1 :]:
            continue
        same = [other for other in groups if other.setting == settings[at]]
        for columns in apart(same):
            yield from shot_tables([group.rows for group in columns], marked=marked)


def apart(groups: Sequence[Group]) -> list[list[Group]]:
    """Return groups of one setting such that none has a number of shots twice.

    Runs may have judged the same shots on other images or with other seeds; those don't share a
    table. One that still would is left out of it.
    """
    if _once(groups):
        return [list(groups)]
    counts = dict.fromkeys(group.first.image_count for group in groups)
    shares = [[g for g in groups if g.first.image_count == count] for count in counts]
    return [share for share in shares if _once(share)]


def _once(groups: Sequence[Group]) -> bool:
    kinds = [(g.first.shots, g.first.tuning, g.first.prompt_tokens) for g in groups]
    return len(set(kinds)) == len(kinds)


def shot_columns(found: Grouped) -> list[list[Sequence[Average]]]:
    """Return what tables of shots are made of, one entry per table, shots rising."""
    every = []
    for setting in dict.fromkeys(group.setting for group in found.groups):
        same = [group for group in found.groups if group.setting == setting]
        for columns in apart(same):
            every += by_shots([group.rows for group in columns])
    return every


def _section(group: Group, *, summary: bool, marked: bool) -> Table:
    family, about = judged(group.rows) if marked else None, _about(group.rows)
    return table_of(
        group.rows,
        report_columns(group.rows, family=family, summary=summary),
        title=group.name,
        caption=about if family is None else f"{about} {family.note}.",
        settings=[row.config for row in group.rows],
    )


def _about(group: Sequence[Average]) -> str:
    """Say what all records of a group have in common."""
    first = group[0].first
    golden = sorted({r.golden_images for row in group for r in row.records if r.golden_images})
    seeds = [str(record.seed) for record in group[0].records]
    lost = uncounted(*(record for row in group for record in row.records))
    return (
        f"{protocol(first)}; {first.image_count} images (revision {first.dataset_revision}, "
        f"{'seed' if len(seeds) == 1 else 'mean of seeds'} {', '.join(seeds)}), "
        f"{first.device_name}, {first.device}, {first.dtype}, "
        f"{counted(first.threads, 'thread')}, torch {first.torch}, timm {first.timm}, "
        f"weights {first.weights_sha256[:12]}; agreement on "
        f"{', '.join(map(str, golden)) or 'no'} images.{f' {lost}.' if lost else ''}"
    )


def markdown_table(records: Iterable[Record], *, summary: bool = False) -> str:
    """Return one Markdown table per group of records, each under its heading.

    Args:
        records: what to show.
        summary: leave out what a first look doesn't need.

    Raises:
        ValueError: no records.
    """
    return markdown(list(sections(grouped(records), summary=summary)))
