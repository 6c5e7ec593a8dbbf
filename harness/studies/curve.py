"""Measure what cheaper golden rankings cost and are worth: agreement, and accuracy by them."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import zoo
from harness.base.table import FORMS, Cell, Column, Table
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Split, SplitName
from harness.datasets.few_shot import subset
from harness.golden.budget import Curve, Point, Worth
from harness.golden.maps import method_maps
from harness.measure.evaluate import outcomes
from harness.measure.rows import Variant, golden_row
from harness.measure.timing import interleaved
from harness.models.towers import Tower, load_tower, named, text_classifier
from harness.records.agreement import kendall_tau, match_at_k
from harness.records.conditions import DENSE, device_name
from harness.records.metrics import Importance, correct
from harness.records.statistics import Interval, bootstrap_mean
from harness.report.charts import STYLES, Chart, Dot, Style, render
from harness.report.writers import markdown
from zoo.core.digests import fingerprint
from zoo.core.files import cache_folder, digest, write_whole
from zoo.core.messages import expected
from zoo.core.precision import PRECISIONS
from zoo.core.reducer import ReducerConfig, final_count
from zoo.ranking.approximate import Effort
from zoo.ranking.golden import GoldenConfig, GoldenEngine

TIMED_IMAGES = 2
KEEPS = (60, 50, 30)  # percent of the patches
PART = 10  # images whose importance is kept as one file
COARSE = ((2, 2), (3, 2), (4, 2), (3, 3), (4, 4), (5, 5))
FOLLOWED = (0, 1, 2, 4, 8, 16, 32, 64)

# By point and percent kept, for each dataset (images,) 1 where the answer is right, else 0.
Hits = Mapping[tuple[Point, int], Sequence[NDArray[np.float64]]]


@dataclass(frozen=True, kw_only=True)
class CurveConfig:
    """What to measure, and how."""

    model: str = "clip_vit_s14"
    datasets: tuple[str, ...] = ("fashion", "emoji")
    split: SplitName = "val"
    limit: int | None = 60  # images per dataset; None for all
    block: int = GoldenConfig.block  # reduction point
    seeds: int = 3  # number of random orders
    rounds: int = 3  # timings of each way; 0 leaves time out
    dtype: str = "float32"  # of removed windows, the exact ranking excepted, which is float32
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Validate."""
        if self.dtype not in PRECISIONS:
            raise ValueError(f"dtype={self.dtype!r}: {expected(self.dtype, PRECISIONS)}")
        for name, low in (("seeds", 1), ("rounds", 0), ("block", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number from {low}")


def usual_points(effort: Effort, seeds: int) -> list[Point]:
    """List the points of a curve, the exact one first; random orders come last."""
    points = [
        Point(),
        *(Point(window=window, stride=stride) for window, stride in COARSE),
        *(Point(approximate=f"follow:{n}") for n in FOLLOWED),
        Point(method="clsattn", window=None, stride=None),
        *(Point(method="random", window=None, stride=None, seed=seed) for seed in range(seeds)),
    ]
    return [point for point in points if point.fits(effort)]


class Ranker:
    """Rank images by points; removed windows in ``dtype``, the exact point's in float32."""

    def __init__(self, tower: Tower, block: int, dtype: str) -> None:
        """Prepare nothing yet."""
        self.tower, self.block, self.dtype = tower, block, dtype
        self._engines: dict[tuple[Point, str], GoldenEngine] = {}

    def precision(self, point: Point) -> str:
        """Return in what precision a point is computed."""
        return self.dtype if point.approximate is None and point != Point() else "float32"

    def passes(self, points: Sequence[Point]) -> float:
        """Return what points cost per image, all together, as ``Point.passes`` counts it."""
        effort = Effort.of(self.tower.vit, self.block)
        return sum(point.passes(effort) for point in points)

    def importance(self, point: Point, images: Tensor, precision: str | None = None) -> Tensor:
        """Rank images (B, C, H, W) by a point, (B, N) float32 on the CPU, higher = keep."""
        if point.window is None or point.stride is None:
            options: dict[str, Any] = {} if point.seed is None else {"seed": point.seed}
            options |= {"method": point.method, "keep": 0.5, "reduce_at": (self.block,)}
            vit = zoo.reduce(self.tower.vit, **options)
            return method_maps(vit, images.to(next(vit.parameters()).device))[0]
        key = (point, precision or self.precision(point))
        if key not in self._engines:
            options = {name: getattr(point, name) for name in ("window", "stride", "approximate")}
            config = GoldenConfig(block=self.block, **options)
            self._engines[key] = GoldenEngine(self.tower.vit, config, precision=key[1])
        return self._engines[key].importance(images)

    def ranked(
        self, point: Point, images: Split, facts: dict[str, Any], name: str, progress: Progress
    ) -> NDArray[np.float32]:
        """Rank n images by a point, (n, N), or read what an earlier run kept."""
        way = vars(point) | {"block": self.block, "precision": self.precision(point)}
        folder = cache_folder() / "curve" / digest(facts | way)
        folder.mkdir(parents=True, exist_ok=True)
        parts = [images[first : first + PART] for first in range(0, len(images), PART)]
        paths = [folder / f"{digest(part.image_ids)}.npy" for part in parts]
        done = sum(len(part) for part, path in zip(parts, paths, strict=True) if path.is_file())
        label = f"{point.label} on {name}"
        with progress.task(label, len(images), done, "images") as show:
            for part, path in zip(parts, paths, strict=True):
                if path.is_file():
                    continue
                batch = torch.stack([self.tower.preprocess(example.image) for example in part])
                buffer = io.BytesIO()
                np.save(buffer, self.importance(point, batch).numpy())
                write_whole(path, buffer.getvalue())
                done += len(part)
                show(done)
        return np.concatenate([np.load(path, allow_pickle=False) for path in paths])

    def times(self, points: Sequence[Point], images: Tensor, rounds: int, progress: Progress) -> dict[Point, float]:
        """Time points in turn, all in float32; the least of ``rounds`` rounds, in ms."""
        rank = partial(self.importance, precision="float32")
        calls = {str(at): partial(rank, point) for at, point in enumerate(points)}
        with progress.task("times, rounds", rounds) as update:
            timings = interleaved(calls, images, rounds, warmup=1, tick=update).values()
        return {point: min(one.samples_ms) for point, one in zip(points, timings, strict=True)}

    def hits(
        self, split: Split, classifier: Tensor, orders: Mapping[Point, Importance], progress: Progress
    ) -> dict[tuple[Point, int], NDArray[np.float64]]:
        """Judge the dense model on n images, pruned by each ranking (n, N), the exact one first.

        ``classifier`` is (classes, D) unit features. Returns by (point, percent kept) (n,) 1 where
        the answer is right; 100 % is the dense model.
        """
        vit = self.tower.vit
        dense = Variant(model=self.tower.name, method=DENSE, keep=1.0, vit=vit, config={})
        rows, importance = {(Point(), 100): dense}, {}
        for number, (point, order) in enumerate(orders.items()):
            for percent in KEEPS:
                config = ReducerConfig(keep=percent / 100, reduce_at=(self.block,))
                row = golden_row(vit, f"{number} at {percent}", config)
                rows[point, percent], importance[row.key] = row, order
        like = next(vit.parameters())
        with progress.task("accuracy of pruned models, images x rows", len(split) * len(rows)) as update:
            results = outcomes(
                list(rows.values()), split, self.tower.preprocess, device=like.device,
                dtype=like.dtype, importance=importance, on_run=update,
            )  # fmt: skip
        return {
            way: correct(results[row.key].features, classifier, split.labels).astype(np.float64)
            for way, row in rows.items()
        }


def agreement_facts(
    members: Sequence[Sequence[Importance]], exact: Sequence[Importance], datasets: Iterable[str]
) -> dict[str, Any]:
    """Compare rankings with the exact ones, as fields of ``Worth``; images and seeds averaged."""
    taus = [np.mean([kendall_tau(member[i], exact[i]) for member in members], axis=0) for i in range(len(exact))]
    truth = np.concatenate(exact)
    match = {}
    for percent in KEEPS:
        count = final_count(truth.shape[1], percent / 100)
        shares = [match_at_k(truth, np.concatenate(member), count) for member in members]
        match[str(percent)] = float(np.mean(shares))
    return {
        "tau": bootstrap_mean(np.concatenate(taus), seed=0),
        "tau_of": {name: float(tau.mean()) for name, tau in zip(datasets, taus, strict=True)},
        "match": match,
    }


def accuracy_facts(members: Sequence[Point], hits: Hits) -> dict[str, Any]:
    """Compare accuracies with that of the exact ranking, as fields of ``Worth``."""
    if not hits:
        return {}
    top1, difference = {}, {}
    for percent in KEEPS:
        right = np.mean([np.concatenate(hits[point, percent]) for point in members], axis=0)
        top1[str(percent)] = float(right.mean())
        apart = right - np.concatenate(hits[Point(), percent])
        difference[str(percent)] = bootstrap_mean(apart, seed=0)
    return {"top1": top1, "difference": difference}


def measure_curve(config: CurveConfig, progress: Progress, points: Sequence[Point] | None = None) -> Curve:
    """Measure ways to rank on some images; what an earlier run ranked is read from the cache.

    ``points`` are measured beside the exact ranking; None for the usual.

    Raises:
        ValueError: a name or setting that doesn't fit, or fewer than two images.
    """
    tower = load_tower(config.model)
    tower.vit.to(config.device)
    depth = len(tower.vit.blocks)
    if config.block >= depth:
        raise ValueError(f"block={config.block}: this tower has blocks 0 to {depth - 1}")
    ranker = Ranker(tower, config.block, config.dtype)
    effort = Effort.of(tower.vit, config.block)
    usual = usual_points(effort, config.seeds)
    every = usual if points is None else [Point(), *points]
    orders_of: dict[Point, list[Importance]] = {point: [] for point in every}
    hits: dict[tuple[Point, int], list[NDArray[np.float64]]] = {}
    nameable, sample = {}, torch.empty(0)
    classifiers = _classifiers(tower, config.datasets)  # refuses before anything is ranked
    datasets = {name: get_dataset(name) for name in config.datasets}
    splits = {name: subset(dataset.split(config.split), config.limit) for name, dataset in datasets.items()}
    images = {name: len(split) for name, split in splits.items()}
    if sum(images.values()) < 2:
        raise ValueError("a curve needs at least two images")
    ways: dict[Point, list[Point]] = {}
    for point in every:
        ways.setdefault(replace(point, seed=None), []).append(point)
    firsts = [members[0] for members in ways.values()]
    work = sum(images.values()) * ranker.passes(every) + config.rounds * TIMED_IMAGES * ranker.passes(firsts)
    work += sum(images[name] for name in classifiers) * (1 + len(KEEPS) * len(every))
    with progress.overall("study curve", work):
        for name, split in splits.items():
            facts = {"weights": fingerprint(tower.vit), "dataset": name, "revision": datasets[name].revision}
            for point in every:
                orders_of[point].append(ranker.ranked(point, split, facts, name, progress))
            few = split[:TIMED_IMAGES]
            sample = torch.stack([tower.preprocess(example.image) for example in few])
            if (classifier := classifiers.get(name)) is not None:
                known = np.flatnonzero(named(classifier)[split.labels])
                nameable[name] = len(known)
                orders = {point: orders_of[point][-1][known] for point in every}
                right = ranker.hits(split.subset(known), classifier, orders, progress) if len(known) else {}
                for way, answers in right.items():
                    hits.setdefault(way, []).append(answers)
        times = ranker.times(firsts, sample, config.rounds, progress) if config.rounds else {}
    worths = []
    for point, members in ways.items():
        values = agreement_facts([orders_of[one] for one in members], orders_of[Point()], images)
        values |= accuracy_facts(members, hits)
        if times:
            values["seconds"] = times[members[0]] / times[Point()]
        worths.append(Worth(point=point, passes=point.passes(effort), **values))
    return Curve(
        model=tower.name, weights=fingerprint(tower.vit), block=config.block, split=config.split,
        dtype=config.dtype, device=device_name(config.device), images=images, named=nameable,
        effort=effort, dense=float(np.concatenate(hits[Point(), 100]).mean()) if hits else None,
        versions={name: version(name) for name in ("clip-patchrank", "timm", "torch")},
        worths=worths,
    )  # fmt: skip


def _classifiers(tower: Tower, datasets: Sequence[str]) -> dict[str, Tensor]:
    """Return the text classifier of each dataset, none for a tower without text tower."""
    return {} if tower.clip is None else {name: text_classifier(tower.clip, get_dataset(name))[0] for name in datasets}


FAMILIES = ("removal", "follow", "clsattn", "random")
ALONE = ("removal", "clsattn", "random")  # families that are drawn without lines


def family(worth: Worth) -> str:
    """Return what kind of way it is: ``removal`` of windows, or an approximation or method."""
    if worth.point.window is None:
        return worth.point.method
    return (worth.point.approximate or "removal").partition(":")[0]


def _cheapest_first(curve: Curve) -> list[Worth]:
    return sorted(curve.worths, key=lambda worth: (worth.passes, -worth.tau.estimate))


def undominated(curve: Curve) -> list[Worth]:
    """List the ways that no other beats in tau at the same cost or less, cheapest first."""
    kept: list[Worth] = []
    for worth in _cheapest_first(curve):
        if not kept or worth.tau.estimate > kept[-1].tau.estimate:
            kept.append(worth)
    return kept


def curve_table(curve: Curve) -> Table:
    """Lay out a curve, cheapest first."""
    best, (first, *_) = undominated(curve), curve.worths
    rows = []
    for worth in _cheapest_first(curve):
        cells = {
            "": Cell("*" if worth in best else ""),
            "way": Cell(worth.point.label),
            "passes": Cell(f"{worth.passes:.1f}"),
        }
        if worth.seconds is not None:
            cells["time"] = Cell(f"{100 * worth.seconds:.1f} %")
        cells["Kendall tau"] = _interval(worth.tau, 1, 3)
        for keep, match in worth.match.items():
            cells[f"match at keep {keep}"] = Cell(f"{match:.3f}")
        for keep, top1 in worth.top1.items():
            cells[f"top-1 at keep {keep}"] = Cell(f"{100 * top1:.1f}")
        for keep, difference in list(worth.difference.items())[-1:]:
            cells[f"against exact at keep {keep}"] = _interval(difference, 100, 1)
        rows.append(cells)
    images = ", ".join(f"{count} of {name}" for name, count in curve.images.items())
    caption = (
        f"{curve.split} images: {images}. Tau and match are with the exact ranking (window 2, "
        f"stride 1, float32); removed windows of the others in {curve.dtype}. * = no other way is "
        "at least as cheap and closer."
    )
    if curve.dense is not None:
        named = ", ".join(f"{count} of {name}" for name, count in curve.named.items())
        caption += f" Accuracy in %, on the images whose class has a caption ({named}); dense "
        caption += f"{100 * curve.dense:.1f}."
    if first.seconds is not None:
        caption += f" Time against the exact ranking, all in float32, on {curve.device}."
    return Table(
        title=f"{curve.model}, before block {curve.block}, preservation",
        caption=caption,
        columns=[
            Column(heading=head, left=head in ("", "way"), forms=FORMS[: 1 if wide else 3])
            for head in rows[0]
            for wide in [head.startswith(("time", "match", "top-1"))]
        ],
        rows=[list(cells.values()) for cells in rows],
    )


def write_curve(curve: Curve, folder: Path) -> None:
    """Write the curve as JSON, Markdown and SVG, each whole or not at all."""
    curve.write(folder / "curve.json")
    write_whole(folder / "curve.md", markdown([curve_table(curve)]).encode())
    write_whole(folder / "curve.svg", draw_curve(curve, "svg"))


def draw_curve(curve: Curve, form: str) -> bytes:
    """Return tau, and accuracy at the lowest keep rate, against passes, as "png" or "svg" bytes."""
    panels = [_panel(curve, [worth.tau for worth in curve.worths], "Kendall tau to exact")]
    if curve.dense is not None:
        keep = list(curve.worths[0].match)[-1]
        top1 = [Interval(*[100 * worth.top1[keep]] * 3) for worth in curve.worths]
        title = f"top-1 at keep {keep}, %"
        panels.append(_panel(curve, top1, title, level=100 * curve.dense))
    styles = {name: Style(*STYLES[place], "none" if name in ALONE else "-") for place, name in enumerate(FAMILIES)}
    return render(panels, styles, form)


def _panel(curve: Curve, values: Sequence[Interval], title: str, level: float | None = None) -> Chart:
    """Return one quantity against cost."""
    series: dict[str, list[Dot]] = {name: [] for name in FAMILIES}
    for worth, value in zip(curve.worths, values, strict=True):
        cost = Interval(worth.passes, worth.passes, worth.passes)
        series[family(worth)].append(Dot(cost, value))
    return Chart(
        title="", alt="", x_label="passes per image (0 is drawn at the left end)", y_label=title,
        series={n: sorted(own, key=lambda point: point.x) for n, own in series.items() if own},
        level=level, ticks={float(passes): str(passes) for passes in (0, 1, 3, 10, 30, 100)},
        symlog=True,
    )  # fmt: skip


def _interval(value: Interval, factor: float, digits: int) -> Cell:
    middle, low, high = (f"{factor * part:.{digits}f}" for part in value)
    return Cell(f"{middle} [{low}, {high}]", value.estimate)
