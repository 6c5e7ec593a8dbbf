"""Tables of accuracy and cost, with a column for each of `metrics.METRICS`, and tables of latency."""

import functools
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby, pairwise

from harness.base.table import FORMS, NOT_MEASURED, UNMEASURED, Cell, Column, Table, count_of, estimate_cell, figure
from harness.records.averages import (
    CLOSE,
    Average,
    Judgement,
    averages,
    describe_uncounted,
    judge_rows,
    judged_on,
    labels,
    levels,
    matched,
    nearness,
    protocol,
    tower_of,
    training_free,
    with_recovery,
)
from harness.records.metrics import METRICS, Metric
from harness.records.record import CONDITIONS, DENSE, MATCHED, UNREDUCED, Record, Times, differing
from harness.records.statistics import Interval
from harness.records.times import LEAST_QUERIES, OPEN, LatencyRecord, Load, Percentiles
from zoo.deploy.runtime import EAGER, OPTIMIZED, RUNTIMES

# Conditions that every heading names; it names others in which tables of equal headings differ.
_NAMED = ("dataset", "split", "classes_judged", "tag", "shots", "tuning", "prompt_tokens")
_UNNAMED = (*(name for name in CONDITIONS if name not in _NAMED), "version")
_OVER_SEEDS = (
    "top-1: mean over seeds with 95 % t interval over seeds, the difference to dense with 95 % paired bootstrap "
    "interval over images"
)
_ABOUT = {
    "top1": "top-1 with 95 % Wilson interval",
    "diff_to_dense": "to dense: points on the same images, with 95 % paired bootstrap interval",
    "cosine_distance_95": "1 - cosine, 95 %: what 95 % of images stay below, with its interval by order statistics",
    "gflops": "GFLOPs: 1e9 multiply-adds per image",
}
_AFTER_TIMES = "tau"  # the first metric whose column stands behind those of times
# How many of a terminal's forms, the widest first, have a metric's column, and how many of these its interval. A report
# has all columns of the widest form, its summary those of the narrowest.
_FORMS = {
    **dict.fromkeys(("top1", "gflops"), (3, 1)),
    **dict.fromkeys(("tau", "dense_agreement", "final_tokens"), (2, 1)),
    **dict.fromkeys(("recall_image_1", "recall_image_1_diff", "recall_text_1", "recall_text_1_diff"), (3, 2)),
    "cosine_distance": (3, 2),
    "cosine_distance_95": (2, 1),
    "diff_to_dense": (3, 3),
}
RATIO = "× dense"
_TIMES: dict[str, tuple[Callable[[Times], Cell], str]] = {  # cells of times, and their caption, by heading
    "ms [IQR]": (
        lambda times: estimate_cell((times.median_ms, times.q1_ms, times.q3_ms), "{:.1f}".format),
        "ms: median and quartiles",
    ),
    RATIO: (
        lambda times: estimate_cell(times.ratio, "{:.2f}".format),
        f"{RATIO}: time by the dense model's, median over rounds with its 95 % interval",
    ),
    "images/s": (lambda times: figure(times.images_per_s, ".1f"), ""),
}
FilledColumn = tuple[Column, Callable[[Average], Cell]]  # a column, and the function of a row that fills it


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows measured under the same conditions."""

    name: str  # heading; no other group has it
    short: str  # the dataset, or the heading if several groups are of one dataset
    rows: Sequence[Average]  # dense first, keep rates falling

    @property
    def first(self) -> Record:
        """A record, for fields that all records have in common."""
        return self.rows[0].first


def group_records(records: Iterable[Record]) -> list[Group]:
    """Share records out to groups, in their order, so that no table mixes conditions; ValueError without records.

    Of a row that was measured several times under the same conditions the last measurement counts. Means over seeds are
    of the same seeds in all rows of a group.
    """
    newest: dict[tuple[Hashable, str], dict[int, Record]] = {}  # by row and seed
    for record in records:
        by_seed = newest.setdefault((conditions_of(record), Average(records=(record,)).identity), {})
        known = by_seed.setdefault(record.seed, record)
        if datetime.fromisoformat(record.created) >= datetime.fromisoformat(known.created):
            by_seed[record.seed] = record
    if not newest:
        raise ValueError("there are no records to report")
    shares: dict[Hashable, list[Record]] = {}
    for (conditions, _), by_seed in newest.items():
        shares.setdefault((conditions, frozenset(by_seed)), []).extend(by_seed.values())
    parts = [part for share in shares.values() for part in training_free(share)]
    groups = [sorted(averages(part), key=lambda row: (row.method != DENSE, -row.keep)) for part in parts]
    datasets = [rows[0].first.dataset for rows in groups]
    return [
        Group(name=name, short=name if datasets.count(dataset) > 1 else dataset, rows=rows)
        for name, dataset, rows in zip(_name_groups(groups), datasets, groups, strict=True)
    ]


def conditions_of(record: Record) -> tuple[Hashable, ...]:
    """Return the values that are equal in all rows of a table: without the seed of shots, which is averaged over."""
    return tuple(None if name == "seed" and record.shots else getattr(record, name) for name in (*_NAMED, *_UNNAMED))


def _name_groups(groups: Sequence[Sequence[Average]]) -> list[str]:
    """Return headings, with the conditions in which groups of the same heading differ."""
    alike: dict[str, list[dict[str, str]]] = {}  # conditions in words by heading
    named = []
    for rows in groups:
        first = rows[0].first
        judged_by = "by text" if first.labelled and not first.shots else protocol(first)
        heading = f"{first.dataset} {judged_on(first)}, {judged_by}, {tower_of(first)}{with_recovery(rows)}"
        named.append((heading, {name: _describe(rows, name) for name in _UNNAMED}))
        alike.setdefault(heading, []).append(named[-1][1])
    return [
        "; ".join(filter(None, (heading, ", ".join(conditions[name] for name in differing(alike[heading])))))
        for heading, conditions in named
    ]


def _describe(rows: Sequence[Average], condition: str) -> str:
    value = getattr(rows[0].first, condition)
    if condition == "seed":
        value = ", ".join(str(record.seed) for record in rows[0].records)
    value = "unknown" if value is None else str(value)
    name, hashed, _ = condition.partition("_sha256")
    return f"{name.replace('_', ' ')} {value[:8] if hashed else value}"


def sections(groups: Sequence[Group]) -> Iterator[Table]:
    """Yield a table per group, and a table of rows whose keep rate was searched for the time of a row beside them."""
    for group in groups:
        searched = [row for row in group.rows if MATCHED in row.first.method_config]
        plain = [row for row in group.rows if row not in searched]
        caption = _describe_group(group)
        if plain:
            yield rows_table(plain, group.name, caption, settings=True)
        if searched:
            targets = [target for target in group.rows if any(matched(row, target) for row in searched)]
            rows = [*(row for row in group.rows if row.method in UNREDUCED), *targets, *searched]
            yield rows_table(rows, f"{group.name}, at equal time", caption, settings=True)


def _describe_group(group: Group) -> str:
    """Describe the conditions that all records of a group have in common."""
    first = group.first
    records = [record for row in group.rows for record in row.records]
    golden = sorted({record.golden_images for record in records if record.golden_images})
    seeds = [str(record.seed) for record in group.rows[0].records]
    uncounted = describe_uncounted(*records)
    return (
        f"{protocol(first)}; {first.image_count} images (revision {first.dataset_revision}, "
        f"{'seed' if len(seeds) == 1 else 'mean of seeds'} {', '.join(seeds)}), "
        f"{first.device_name}, {first.device}, {first.precision}, "
        f"{count_of(first.threads, 'thread')}, torch {first.torch}, timm {first.timm}, "
        f"weights {first.weights_sha256[:12]}; agreement on "
        f"{', '.join(map(str, golden)) or 'no'} images.{f' {uncounted}.' if uncounted else ''}"
    )


def rows_table(
    every: Sequence[Average],
    title: str,
    caption: str,
    *,
    reference: str | None = None,
    batches: Collection[int] = (),
    settings: bool = False,
) -> Table:
    """Lay rows out, a section per cost or keep rate, without rows that miss the time that they were searched for.

    Fidelity is compared with that of the method ``reference`` at equal cost, see `averages.levels`. ``batches`` have a
    column of times even if none could be taken. ``caption`` ends the caption.
    """
    rows, starts, missing = _sort_rows(every, reference)
    family = judge_rows(rows, reference)
    columns = _columns_of(rows, family, batches)
    return Table(
        title=title,
        columns=[column for column, _ in columns],
        rows=[[cell(row) for _, cell in columns] for row in rows],
        models=[row.first.model for row in rows],
        settings=[row.config for row in rows] if settings else None,
        legend=family.legend if family else "",
        caption="; ".join(filter(None, [describe_runtimes(rows), family.note if family else "", caption])),
        sections=starts,
        notes=missing,
    )


def comparison_table(records: Sequence[Record], reference: str | None = None, batches: Collection[int] = ()) -> Table:
    """Lay out for the terminal the `averages` of records, one row per model, see `rows_table`."""
    rows, record = averages(records), records[0]
    seeds = f"; mean of {count} seeds" if (count := len(rows[0].records)) > 1 else ""
    title = (
        f"{record.dataset} ({judged_on(record)}, {record.image_count} images; {protocol(record)}"
        f"{seeds}{with_recovery(rows)}), {tower_of(record)}, {record.precision}, {record.device_name}, "
        f"{count_of(record.threads, 'thread')}"
    )
    uncounted = describe_uncounted(*(row.first for row in rows))
    return rows_table(rows, title, uncounted, reference=reference, batches=batches)


def describe_runtimes(rows: Sequence[Average]) -> str:
    """Explain rows of the dense model by other runtimes; an empty string without one."""
    notes = []
    for row in rows:
        if row.method in RUNTIMES:
            runtime = "zoo.optimize" if row.method == OPTIMIZED else row.method
            recipe = f" by recipe {row.config['recipe']}" if "recipe" in row.config else ""
            notes.append(
                f"{row.first.label}: the dense model by {runtime} in {row.config['precision']}{recipe}, nothing reduced"
            )
    return "; ".join(notes)


def _sort_rows(rows: Sequence[Average], reference: str | None) -> tuple[list[Average], frozenset[int], list[str]]:
    """Sort rows, unreduced ones first, then costs falling, at each the nearest to dense first.

    Return the rows that meet their time, the places where sections begin, and a note on methods that miss a time.
    """
    level_of, missing = dict[str, float](), list[str]()
    for level in levels(rows, reference):
        level_of |= {row.identity: level.target.keep for row in level.rows}
        if level.missing and level.batch is not None:
            goal = f"the time of {level.target.method} at keep {100 * level.target.keep:.3g} %"
            missing.append(f"more than {100 * CLOSE:.0f} % off {goal}: {', '.join(level.missing)}")

    def level_keep(row: Average) -> float:
        return 2.0 if row.method in UNREDUCED else level_of.get(row.identity, row.keep)

    shown = [row for row in rows if row.identity in level_of or MATCHED not in row.first.method_config]
    shown.sort(key=lambda row: (-level_keep(row), row.method != DENSE, *nearness(row)))
    starts = (at for at, (above, row) in enumerate(pairwise(shown), 1) if level_keep(above) != level_keep(row))
    return shown, frozenset(starts), missing


def _columns_of(rows: Sequence[Average], family: Judgement | None, batches: Collection[int]) -> list[FilledColumn]:
    """Return the columns that some row fills, two of a heading if narrower forms are without interval."""
    names = labels(rows)
    columns: list[FilledColumn] = [
        (Column(heading="Method", left=True), lambda row: Cell(names[row.identity], names[row.identity])),
        (Column(heading="Keep"), lambda row: Cell(f"{100 * row.keep:.3g} %", row.keep)),
    ]
    for metric in METRICS.values():
        if metric.name == _AFTER_TIMES:
            columns += _time_columns(rows, batches)
        if metric.heading and any(row.measured(metric.name) is not None for row in rows):
            about = f"{metric.title}: {metric.fidelity}" if metric.fidelity else _ABOUT.get(metric.name, "")
            if metric.name == "top1" and len(rows[0].records) > 1:
                about = _OVER_SEEDS
            shown, whole = _FORMS.get(metric.name, (1, 1))
            for forms, ends in ((FORMS[:whole], True), (FORMS[whole:shown], False)):
                cell = functools.partial(_show_metric, metric=metric, family=family, ends=ends)
                columns += [(Column(heading=metric.heading, forms=forms, about=about), cell)] if forms else []
    return columns


def _time_columns(rows: Sequence[Average], asked: Collection[int]) -> Iterator[FilledColumn]:
    entries = [entry for row in rows for entry in row.latency]
    batches = sorted({entry.batch for entry in entries}.union(asked))
    for batch in batches:
        timed = [entry for entry in entries if entry.batch == batch]
        for heading, (show, about) in _TIMES.items():
            ratio = heading == RATIO
            if any(entry.ratio for entry in timed) or not timed if ratio else timed:
                forms = FORMS[:1] if not ratio else FORMS if batch == batches[-1] else FORMS[:2]
                cell = functools.partial(_show_time, batch=batch, show=show)
                yield Column(heading=f"Batch {batch}, {heading}", forms=forms, about=about), cell


def _show_time(row: Average, batch: int, show: Callable[[Times], Cell]) -> Cell:
    return next((show(entry) for entry in row.latency if entry.batch == batch), UNMEASURED)


def _show_metric(row: Average, metric: Metric, family: Judgement | None, *, ends: bool) -> Cell:
    """Show a row's metric, with the number of patches that are compared and the value of chance."""
    if (value := row.measured(metric.name)) is None:
        return UNMEASURED
    cell = estimate_cell(value.interval or value.mean, metric.text, ends=ends)
    at = "" if value.at is None else f" at {value.at}"
    chance = "" if value.chance is None else f" ({metric.text(value.chance)})"
    return Cell(f"{cell}{at}{chance}", cell.value, "" if family is None else family.mark(row, metric.name))


_CALLS_LEGEND = "ratio: to the time of the dense model in the same round, with its 95 % interval"
_SERVER_LEGEND = "verdict: whether p99 stays within {:g} ms, by its 95 % interval over runs of {} queries or more"
_WORDS = ("model", "verdict")
_NARROW = ("batch", "ms", "ratio", "queries/s", "x dense", "p99, ms")  # figures that a narrow terminal shows
_ABOUT_LATENCY = {  # columns, for captions
    "ms": "ms: median [quartiles] of whole calls",
    "p99": "p90, p99: ms that 90 and 99 % of the calls did not exceed",
    "MiB": "MiB: the most that a call holds beside weights and images",
    "first, s": "first: preparing, compiling and the first call",
    "off": "off: largest difference of features from eager's, by their length",
    "queries/s": "queries/s: arrivals per second; batch: queries that share a call, at most",
    "p99, ms": "p50, p90, p99: ms from the scheduled arrival, medians over runs",
    "a call": "a call: queries that shared a call, on average",
}


def latency_title(row: LatencyRecord) -> str:
    """Return the title of the table that a record belongs to."""
    weights = "random weights" if row.random_weights else row.tag or "its own weights"
    side = "x".join(map(str, row.image_size))
    server = "" if row.bound_ms is None else f", server with p99 within {row.bound_ms:g} ms"
    dense = row.model if row.method == DENSE else row.model.rpartition("_")[0]
    return (
        f"{dense} ({weights}, {side} px), {row.precision}, {row.runtime}{server}, {row.device}: "
        f"{row.machine['device_name']}, threads: {row.threads}, by {row.stopwatch}"
    )


def latency_table(rows: Sequence[LatencyRecord]) -> Table:
    """Lay out records of one title, those of a batch together, with what failed or is open as notes."""
    bound_ms = rows[0].bound_ms
    legend = _CALLS_LEGEND if bound_ms is None else _SERVER_LEGEND.format(bound_ms, LEAST_QUERIES)
    dense = {row.cell: row.load for row in reversed(rows) if row.method == DENSE}
    cells = [_latency_cells(row, dense.get(row.cell)) for row in rows]
    columns = []
    for heading in cells[0]:
        forms = FORMS if heading in (*_WORDS, *_NARROW) else FORMS[:1]
        about = _ABOUT_LATENCY.get(heading, "")
        columns.append(Column(heading=heading, left=heading in _WORDS, forms=forms, about=about))
    return Table(
        title=latency_title(rows[0]),
        legend=legend,
        caption=legend,
        columns=columns,
        rows=[list(row.values()) for row in cells],
        models=[row.model for row in rows],
        sections=frozenset(i for i, (a, b) in enumerate(pairwise(rows), 1) if a.cell != b.cell),
        notes=_latency_notes(rows),
    )


def _latency_notes(rows: Sequence[LatencyRecord]) -> list[str]:
    notes = []
    for cell, group in groupby(rows, key=lambda row: row.cell):
        together = list(group)
        for reason in dict.fromkeys(row.failed for row in together if row.failed):
            names = [_short_name(row) for row in together if row.failed == reason]
            models = "" if len(names) == len(together) else f", {', '.join(names)}"
            notes.append(f"{cell}{models}: {reason}")
    if unclear := [f"{_short_name(row)} at {row.cell}" for row in rows if row.verdict == OPEN]:
        conclusion, interval = ("no difference to dense", "the ratio includes 1")
        if rows[0].bound_ms is not None:
            conclusion, interval = ("nothing about the bound", "p99 includes it")
        notes.append(f"{conclusion} can be concluded, as the interval of {interval}: {', '.join(unclear)}")
    return notes


def _short_name(row: LatencyRecord) -> str:
    """Return a model's name without its tower's, which the title has, or the name of its exported file."""
    if "file" in row.method_config:
        return str(row.method_config["file"])
    return row.method if row.method == DENSE else row.model.rpartition("_")[2]


def _latency_cells(row: LatencyRecord, dense: Load | None) -> dict[str, Cell]:
    """Fill a row by heading: how long calls took, or how a server fared, beside the load of the dense model's."""
    times, load = row.times, row.load
    cells = {
        "batch": figure(row.batch, "d"),
        "model": Cell(_short_name(row)),
        "tokens": figure(row.final_tokens, "d"),
        "GFLOPs": figure(row.gflops, ".2f"),
    }
    verdict = Cell("not timed" if row.failed else row.verdict or NOT_MEASURED)
    if row.bound_ms is None:
        spread = None if times is None else Interval(times.median_ms, times.q1_ms, times.q3_ms)
        cells |= {
            "ms": estimate_cell(spread, ("{:.2f}" if times and times.median_ms < 100 else "{:.0f}").format),
            "p90": figure(row.percentile_ms(90), ".2f"),
            "p99": figure(row.percentile_ms(99), ".2f"),
            "images/s": figure(None if times is None else times.images_per_s, ".1f"),
            "ratio": estimate_cell(row.ratio, "{:.3f}".format),
            "verdict": verdict,
            "MiB": figure(row.peak_mib, ".1f"),
        }
        if row.runtime != EAGER:
            cells |= {"first, s": figure(row.first_call_s, ".1f"), "off": figure(row.deviation, ".0e")}
        return cells
    cells["queries/s"] = figure(None if load is None else load.rate, ".1f")
    if row.rate is None:
        cells["x dense"] = figure(None if load is None or dense is None else load.rate / dense.rate, ".2f")
    p50, p90, p99 = map(load.summary, Percentiles._fields) if load else (None, None, None)
    return cells | {
        "p50": figure(p50 and p50.estimate, ".1f"),
        "p90": figure(p90 and p90.estimate, ".1f"),
        "p99, ms": estimate_cell(p99, "{:.1f}".format),
        "a call": figure(None if load is None else load.batch_mean, ".1f"),
        "verdict": verdict,
    }
