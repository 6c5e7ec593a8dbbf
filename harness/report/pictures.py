"""Pictures of a run's traces: how rankings agree, and which patches of images are kept."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.datasets import split_words
from harness.records.averages import REFERENCE, protocol, tower_of
from harness.records.conditions import DENSE, GOLDEN
from harness.records.record import Record, differing, in_words
from harness.records.statistics import ImageMean, kendall_tau, over_images
from harness.records.traces import RANKING, TRACES, Facts, RowTraces, Thumbnails, order, read_traces
from harness.report.charts import OPTIONS, encode
from harness.report.patches import IMAGE, PatchRow, PatchSheet, draw
from zoo.core.files import digest

AGREEMENT = (
    "Mean Kendall τ-b between two rankings of the same image's patches, over {images} traced images, with its "
    "95 % bootstrap interval below: 1 is the same order, 0 what unrelated rankings give. A ranking is by when a "
    "patch went, then by how it was judged; methods that merge are ranked by when they merge."
)
IMAGES = 6  # of a gallery
SCALE = 0.62  # of a sheet's 2000 pixels
RIGHT, WRONG = "✓", "✗"
GALLERY = (
    "What is left of the first {count} of {images} traced {split} images, which take turns by class, at the lowest "
    "keep rate, {keeps}. Dropped patches are dimmed to an even blue-grey, patches that share a token have their mean "
    "colour and no line between them. Below a panel is the class that the model answers, ✓ right or ✗ wrong, below "
    "the image what the dense one does. The golden ranking is drawn as the rank of each patch, whatever is kept."
)

Matrix = tuple[Sequence[RowTraces], Mapping[tuple[int, int], ImageMean]]


@dataclass(frozen=True, kw_only=True, eq=False)
class TracedGroup:
    """Rows of one dataset, tower and tuning, on the same images.

    The dense row comes first, then the golden ranking, then methods by name, keep rates falling.
    """

    rows: Sequence[RowTraces]
    thumbnails: Thumbnails  # of some of the images
    apart: str = ""  # what tells it from a group that would be called the same

    @classmethod
    def of(cls, rows: Sequence[RowTraces], thumbnails: Thumbnails) -> "TracedGroup":
        """Put rows side by side; images that one of them lacks are left out.

        Raises:
            ValueError: conditions or patch grids differ.
        """
        conditions = ((row.facts.model, row.facts.conditions | {"grid": row.grid}) for row in rows)
        if mixed := differing(conditions):
            raise ValueError(f"traces of different {', '.join(mixed)} cannot stand side by side: {in_words(mixed)}")
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
        split = split_words(self.facts.dataset, self.facts.split)
        return f"{self.facts.dataset} {split}, {how}, {tower_of(self.facts)}{self.apart}"

    @property
    def slug(self) -> str:
        """Return it as a part of a file's name."""
        words = f"{self.facts.dataset}_{self.facts.split}_{tower_of(self.facts)}"
        return f"{re.sub(r'[^A-Za-z0-9]+', '_', words)}_{digest(self.facts.conditions, length=6)}"

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

        Where methods have keep rates of their own, as with equal cost, by their order instead: each one's highest, then
        each one's second.
        """
        rows = [row for row in self.rows if not row.golden and row.facts.method != DENSE]
        methods: dict[str, list[RowTraces]] = {}
        for row in sorted(rows, key=lambda row: -row.facts.keep):
            methods.setdefault(row.facts.method, []).append(row)
        most = max(map(len, methods.values()), default=0)
        rates = sorted({row.facts.keep for row in rows}, reverse=True)
        if len(rates) <= most:
            return [[row for row in rows if row.facts.keep == rate] for rate in rates]
        names = dict.fromkeys(row.facts.method for row in rows)
        return [[methods[n][at] for n in names if at < len(methods[n])] for at in range(most)]

    @cached_property
    def matrices(self) -> list[Matrix]:
        """Rows whose rankings stand in one matrix, at least two, golden ones first; by level."""
        # A row that prunes by the golden ranking is left out: the ranking itself is there.
        ranked = [
            [r for r in (*self.golden, *level) if r.ranked.any() and r.facts.method != GOLDEN] for level in self.levels
        ]
        return [
            (rows, {(i, j): over_images(taus(rows[i], rows[j])) for i, j in combinations(range(len(rows)), 2)})
            for rows in ranked
            if len(rows) > 1
        ]


def group_traces(
    runs: Sequence[Path | str], records: Sequence[Record] | None = None, left_out: Callable[[str], object] | None = None
) -> list[TracedGroup]:
    """Share the traces of runs out to groups; runs without traces have none.

    A run is a folder of records, or its file; of a row that several have the last counts. Groups are of the rows of
    ``records``, in their order, with the golden rankings beside them; None for all, by name. ``left_out`` is called
    with why a file can't be read; None to raise.

    Raises:
        ValueError: a file is torn, somebody else's, or of a newer version.
        OSError: one can't be opened.
    """
    newest: dict[str, tuple[RowTraces, Path]] = {}
    for folder in dict.fromkeys(run.parent if run.is_file() else run for run in map(Path, runs)):
        if (folder / TRACES).is_dir():
            rows = read_traces(folder, records, left_out)
            newest |= {row.facts.name: (row, folder) for row in rows}
    shares: dict[str, list[tuple[RowTraces, Path]]] = {}
    for record in records or ():
        shares.setdefault(digest(Facts.of(record).conditions), [])
    for row, folder in newest.values():
        shares.setdefault(digest(row.facts.conditions), []).append((row, folder))
    groups = []
    for share in filter(None, shares.values()):
        jpeg: dict[str, bytes] = {}
        for folder in dict.fromkeys(folder for _, folder in share):
            try:
                jpeg |= Thumbnails.read(folder, share[0][0].facts).jpeg
            except (ValueError, OSError) as error:
                if left_out is None:
                    raise
                left_out(str(error))
        rows = sorted((row for row, _ in share), key=order)
        groups.append(TracedGroup.of(rows, Thumbnails(jpeg=jpeg)))
    return _name_apart([group for group in groups if group.image_ids])


def _name_apart(groups: Sequence[TracedGroup]) -> list[TracedGroup]:
    """Tell groups apart that would be called the same."""
    named = []
    for group in groups:
        same = [other for other in groups if other.title == group.title]
        varying = differing((other.slug, other.facts.conditions) for other in same)
        words = ", ".join(f"{name} {getattr(group.facts, name)}" for name in varying)
        named.append(replace(group, apart=f" ({words})" if words else ""))
    return named


def label(row: RowTraces, rows: Sequence[RowTraces]) -> str:
    """Name a row, telling from the others its keep rate and, if need be, a hash of its settings."""
    if row.golden:
        return RANKING
    words, place = row.facts.method, (row.facts.method, row.facts.keep)
    if len({other.facts.keep for other in rows if not other.golden}) > 1:
        words += f" {100 * row.facts.keep:.3g} %"
    same = [other for other in rows if (other.facts.method, other.facts.keep) == place]
    return words if len(same) == 1 else f"{words} {digest(row.facts.method_config, length=4)}"


def keeps(rows: Sequence[RowTraces]) -> str:
    """Say the keep rates of a level."""
    rates = sorted({100 * row.facts.keep for row in rows if not row.golden})
    ends = dict.fromkeys(f"{rate:.3g}" for rate in (rates[0], rates[-1]))
    return f"{' to '.join(ends)} % of the patch tokens kept"


def taus(one: RowTraces, other: RowTraces) -> NDArray[np.float64]:
    """Return Kendall's tau-b of two rankings of each image that both rank; NaN where one is all ties."""
    assert one.image_ids == other.image_ids
    both = one.ranked & other.ranked
    return kendall_tau(one.importance[both], other.importance[both])


def agreement_rows(traced: Sequence[TracedGroup]) -> list[dict[str, Any]]:
    """Return the agreement matrices as rows of numbers, a pair each.

    ``tau_low`` and ``tau_high`` are None for fewer than two images; ``undefined`` counts images without a tau, as one
    of the rankings is all ties.
    """
    return [
        {
            "group": group.title,
            **{name: getattr(group.facts, name) for name in ("dataset", "split", "tag", "shots")},
            "a": label(rows[i], rows),
            "b": label(rows[j], rows),
            "a_model": rows[i].facts.model,
            "b_model": rows[j].facts.model,
            "tau": tau.mean,
            "tau_low": tau.low,
            "tau_high": tau.high,
            "images": tau.counted,
            "undefined": tau.undefined,
        }
        for group in traced
        for rows, agreements in group.matrices
        for (i, j), tau in agreements.items()
    ]


@dataclass(frozen=True, kw_only=True)
class TracePicture:
    """One drawn picture of traces."""

    name: str  # of its files
    title: str
    about: str  # what it shows and how to read it, one paragraph
    alt: str  # for those who can't see it: what it shows, in one or two sentences
    files: Mapping[str, bytes]  # by suffix; the page shows the first


def matrices(traced: Sequence[TracedGroup]) -> list[TracePicture]:
    """Draw the agreement of all pairs of rankings, one picture per dataset, tower and tuning."""
    return [_matrix_picture(group) for group in traced if group.matrices]


def _matrix_picture(group: TracedGroup) -> TracePicture:
    figure = _draw_matrices(group.matrices)
    return TracePicture(
        name=f"agreement_{group.slug}",
        title=f"Agreement of rankings: {group.title}",
        about=AGREEMENT.format(images=len(group.image_ids)),
        alt=" ".join(_describe_matrix(*matrix) for matrix in group.matrices),
        files={form: encode(figure, form) for form in ("svg", "png")},
    )


def _describe_matrix(rows: Sequence[RowTraces], agreements: Mapping[tuple[int, int], ImageMean]) -> str:
    """Say how each pair of rows agrees."""
    names = [label(row, rows) for row in rows]
    pairs = (f"{names[i]} and {names[j]} {_number(tau.mean)}" for (i, j), tau in agreements.items())
    return f"Kendall τ-b with {keeps(rows)}: {', '.join(pairs)}."


def _number(tau: float | None) -> str:
    return "–" if tau is None else f"{tau:.2f}".replace("-0.00", "0.00")


def _draw_matrices(panels: Sequence[Matrix]) -> Any:
    """Draw the pairs of each matrix below its diagonal."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    most = max(len(rows) for rows, _ in panels) - 1
    across = 1 if most > 6 else min(2, len(panels))
    down = -(-len(panels) // across)
    size = (across * (0.98 * most + 1.6) + 0.6, down * (0.62 * most + 1.0))
    with mpl.rc_context(OPTIONS | {"axes.spines.left": False, "axes.spines.bottom": False}):
        figure = Figure(figsize=size, layout="constrained")
        axes = [figure.add_subplot(down, across, i) for i in range(1, len(panels) + 1)]
        for each, matrix in zip(axes, panels, strict=True):
            mesh = _draw_matrix(each, *matrix)
        bar = figure.colorbar(mesh, ax=axes, ticks=[-1, 0, 1], aspect=30, pad=0.02, label="Kendall τ-b")
        bar.outline.set_visible(False)
    return figure


def _draw_matrix(axes: Any, rows: Sequence[RowTraces], agreements: Mapping[tuple[int, int], ImageMean]) -> Any:
    """Draw one and return what the colour bar is of."""
    names = [label(row, rows) for row in rows]
    size = len(rows) - 1
    values = np.full((size, size), np.nan)
    for (i, j), tau in agreements.items():
        values[j - 1, i] = np.nan if tau.mean is None else tau.mean
    # Diverging, its ends told apart with any colour vision.
    mesh = axes.pcolormesh(values, cmap="PuOr_r", vmin=-1, vmax=1, edgecolors="none")
    axes.invert_yaxis()
    axes.set_xticks(np.arange(size) + 0.5, [name.replace(" ", "\n", 1) for name in names[:-1]])
    axes.set_yticks(np.arange(size) + 0.5, names[1:])
    axes.tick_params(length=0)
    axes.set_title(keeps(rows), loc="left")
    for (i, j), tau in agreements.items():
        # Not the colour of the text, which a page changes: cells have their own background.
        ink = "#0b0b0b" if tau.mean is None or abs(tau.mean) < 0.6 else "#ffffff"
        axes.text(i + 0.5, j - 0.53, _number(tau.mean), va="bottom", ha="center", color=ink, fontsize=11)
        if tau.low is not None and tau.high is not None:
            ends = f"{_number(tau.low)} to {_number(tau.high)}"
            axes.text(i + 0.5, j - 0.45, ends, va="top", ha="center", color=ink, fontsize=7)
    return mesh


def galleries(traced: Sequence[TracedGroup]) -> list[TracePicture]:
    """Draw the first images of each dataset, tower and tuning at the lowest keep rate.

    Runs without small copies of the images have no gallery.
    """
    known = [(group, [name for name in group.image_ids if name in group.thumbnails.jpeg]) for group in traced]
    return [_gallery(group, ids[:IMAGES], len(ids)) for group, ids in known if group.levels and ids]


def _gallery(group: TracedGroup, ids: Sequence[str], images: int) -> TracePicture:
    # The method that learns the golden ranking beside it.
    level = sorted(group.levels[-1], key=lambda row: row.facts.method != REFERENCE)
    rows = [row.take(ids) for row in (*group.golden, *level)]
    dense = [row.take(ids) for row in group.rows if row.facts.method == DENSE]
    sheet = PatchSheet(
        rows=[_patch_row(group, rows, dense, i) for i in range(len(ids))],
        grid=rows[0].grid,
        columns={label(row, rows): _head(row, rows) for row in rows},
    )
    answers = [
        f"{DENSE if row in dense else label(row, rows)} {sum(map(bool, row.correct))}"
        for row in (*dense, *rows)
        if not row.golden
    ]
    return TracePicture(
        name=f"gallery_{group.slug}",
        title=f"Kept patches: {group.title}",
        about=GALLERY.format(count=len(ids), images=images, split=group.facts.split, keeps=keeps(level)),
        alt=f"{len(ids)} images ({', '.join(rows[0].labels)}) with their kept patches by method; right "
        f"answers of {len(ids)}: {', '.join(answers)}.",
        files={"jpg": draw(sheet, "jpg", SCALE)},
    )


def _patch_row(group: TracedGroup, rows: Sequence[RowTraces], dense: Sequence[RowTraces], i: int) -> PatchRow:
    name = rows[0].image_ids[i]
    named = {label(row, rows): row for row in rows}
    answers = {key: _answer(row, i) for key, row in named.items() if not row.golden}
    return PatchRow(
        name=name,
        label=rows[0].labels[i],
        view=group.thumbnails.view(name),
        importance={key: row.importance[i] for key, row in named.items() if row.golden and row.ranked[i]},
        tokens={key: row.token[i] for key, row in named.items() if not row.golden},
        captions=answers | ({IMAGE: _answer(dense[0], i)} if dense else {}),
    )


def _answer(row: RowTraces, i: int) -> str:
    return f"{RIGHT if row.correct[i] else WRONG} {row.predicted[i]}"


def _head(row: RowTraces, rows: Sequence[RowTraces]) -> str:
    """Name a column, with the tokens that are left of all."""
    if row.golden:
        return label(row, rows).replace(" ", "\n", 1)
    tokens = sorted({len(set(each) - {-1}) for each in row.token.tolist()})
    return f"{label(row, rows)}\n{' to '.join(map(str, tokens[:1] + tokens[1:][-1:]))} tokens"
