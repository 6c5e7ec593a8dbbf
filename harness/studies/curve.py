"""Measure what cheaper golden rankings cost and are worth: agreement, and accuracy by them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.base.table import Table
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Split, SplitName
from harness.datasets.few_shot import subset
from harness.golden.budget import Curve, Point, Worth
from harness.golden.maps import method_maps
from harness.measure.evaluate import outcomes
from harness.measure.rows import Variant, golden_row
from harness.measure.timing import interleave
from harness.models.towers import Tower, load_tower, named, text_classifier
from harness.records.agreement import kendall_tau, match_at_k
from harness.records.conditions import DENSE, device_name
from harness.records.metrics import Importance, correct
from harness.records.statistics import Interval, bootstrap_mean
from harness.report.charts import STYLES, Chart, Dot, Style, render
from harness.report.writers import markdown
from zoo.core.digests import fingerprint
from zoo.core.files import write_whole
from zoo.core.messages import expected
from zoo.core.precision import PRECISIONS
from zoo.core.reducer import ReducerConfig, final_count
from zoo.loading.adopt import reduce
from zoo.ranking.approximate import Effort
from zoo.ranking.golden import GoldenConfig, GoldenEngine

TIMED_IMAGES = 2
KEEPS = (60, 50, 30)  # percent of the patches
PART = 10  # images per call
COARSE = ((2, 2), (3, 2), (4, 2), (3, 3), (4, 4), (5, 5))
FAMILIES = ("removal", "follow", "clsattn", "random")  # that are drawn
FOLLOWED = (0, 1, 2, 4, 8, 16, 32, 64)

# By point and percent kept, (images,) 1 where the answer is right, else 0.
Hits = Mapping[tuple[Point, int], NDArray[np.float64]]


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

    def importance(self, point: Point, images: Tensor, precision: str | None = None) -> Tensor:
        """Rank images (B, C, H, W) by a point, (B, N) float32 on the CPU, higher = keep."""
        if point.window is None or point.stride is None:
            options: dict[str, Any] = {} if point.seed is None else {"seed": point.seed}
            vit = reduce(self.tower.vit, method=point.method, keep=0.5, reduce_at=(self.block,), **options)
            return method_maps(vit, images.to(next(vit.parameters()).device))[0]
        own = self.dtype if point.approximate is None and point != Point() else "float32"
        key = (point, precision or own)
        if key not in self._engines:
            options = {name: getattr(point, name) for name in ("window", "stride", "approximate")}
            config = GoldenConfig(block=self.block, **options)
            self._engines[key] = GoldenEngine(self.tower.vit, config, precision=key[1])
        return self._engines[key].importance(images)

    def rank(self, points: Sequence[Point], split: Split, progress: Progress) -> dict[Point, Importance]:
        """Rank n images by each point, (n, N)."""
        found: dict[Point, list[Importance]] = {point: [] for point in points}
        with progress.task("rankings, images x ways", len(split) * len(points)) as update:
            for first in range(0, len(split), PART):
                part = split[first : first + PART]
                images = torch.stack([self.tower.preprocess(example.image) for example in part])
                for done, point in enumerate(points, start=1):
                    found[point].append(self.importance(point, images).numpy())
                    update(first * len(points) + done * len(part))
        return {point: np.concatenate(parts) for point, parts in found.items()}

    def times(self, points: Sequence[Point], images: Tensor, rounds: int, progress: Progress) -> dict[Point, float]:
        """Time points in turn, all in float32; the least of ``rounds`` rounds, in ms."""
        calls = {str(at): partial(self.importance, point, precision="float32") for at, point in enumerate(points)}
        with progress.task("times, rounds", rounds) as update:
            timings = interleave(calls, images, rounds, warmup=1, tick=update).values()
        return {point: min(one.samples_ms) for point, one in zip(points, timings, strict=True)}

    def hits(self, split: Split, classifier: Tensor, orders: Mapping[Point, Importance], progress: Progress) -> Hits:
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
        like, every = next(vit.parameters()), list(rows.values())
        with progress.task("accuracy of pruned models, images x rows", len(split) * len(rows)) as update:
            how: dict[str, Any] = {"device": like.device, "dtype": like.dtype, "importance": importance}
            found = outcomes(every, split, self.tower.preprocess, on_run=update, **how)
        return {
            way: correct(found[row.key].features, classifier, split.labels).astype(np.float64)
            for way, row in rows.items()
        }


def _worth(members: Sequence[Point], orders: Mapping[str, Mapping[Point, Importance]], hits: Hits) -> dict[str, Any]:
    """Compare a way, from one or more seeds, with the exact ranking, as fields of ``Worth``."""
    exact = {name: every[Point()] for name, every in orders.items()}
    taus = {
        name: np.mean([kendall_tau(every[point], exact[name]) for point in members], axis=0)
        for name, every in orders.items()
    }
    truth = np.concatenate(list(exact.values()))
    own = [np.concatenate([every[point] for every in orders.values()]) for point in members]
    facts: dict[str, Any] = {
        "tau": bootstrap_mean(np.concatenate(list(taus.values())), seed=0),
        "tau_of": {name: float(tau.mean()) for name, tau in taus.items()},
        "match": {},
    }
    for percent in map(str, KEEPS):
        count = final_count(truth.shape[1], int(percent) / 100)
        facts["match"][percent] = float(np.mean([match_at_k(truth, one, count) for one in own]))
        if hits:
            right = np.mean([hits[point, int(percent)] for point in members], axis=0)
            facts.setdefault("top1", {})[percent] = float(right.mean())
            apart = right - hits[Point(), int(percent)]
            facts.setdefault("difference", {})[percent] = bootstrap_mean(apart, seed=0)
    return facts


def measure_curve(config: CurveConfig, progress: Progress, points: Sequence[Point] | None = None) -> Curve:
    """Measure ways to rank on some images.

    ``points`` are measured beside the exact ranking; None for the usual.

    Raises:
        ValueError: a name or setting that doesn't fit, or fewer than two images.
    """
    tower = load_tower(config.model)
    tower.vit.to(config.device)
    if config.block >= tower.vit.depth:
        raise ValueError(f"block={config.block}: this tower has blocks 0 to {tower.vit.depth - 1}")
    ranker, effort = Ranker(tower, config.block, config.dtype), Effort.of(tower.vit, config.block)
    every = usual_points(effort, config.seeds) if points is None else [Point(), *points]
    datasets = {name: get_dataset(name) for name in config.datasets}
    classifiers = {} if tower.clip is None else {n: text_classifier(tower.clip, d)[0] for n, d in datasets.items()}
    splits = {name: subset(dataset.split(config.split), config.limit) for name, dataset in datasets.items()}
    if sum(map(len, splits.values())) < 2:
        raise ValueError("a curve needs at least two images")
    ways: dict[Point, list[Point]] = {}
    for point in every:
        ways.setdefault(replace(point, seed=None), []).append(point)
    orders, answers, nameable = {}, [], {}
    with progress.task("study curve, datasets", len(splits)) as update:
        for done, (name, split) in enumerate(splits.items(), start=1):
            orders[name] = ranker.rank(every, split, progress)
            if name in classifiers:
                known = np.flatnonzero(named(classifiers[name])[split.labels])
                nameable[name] = len(known)
                if len(known):
                    own = {point: order[known] for point, order in orders[name].items()}
                    answers.append(ranker.hits(split.subset(known), classifiers[name], own, progress))
            update(done)
    hits = {way: np.concatenate([one[way] for one in answers]) for way in answers[0]} if answers else {}
    sample = torch.stack([tower.preprocess(example.image) for example in split[:TIMED_IMAGES]])
    firsts = [members[0] for members in ways.values()]
    times = ranker.times(firsts, sample, config.rounds, progress) if config.rounds else {}
    worths = []
    for point, members in ways.items():
        facts = _worth(members, orders, hits)
        if times:
            facts["seconds"] = times[members[0]] / times[Point()]
        worths.append(Worth(point=point, passes=point.passes(effort), **facts))
    return Curve(
        model=tower.name, weights=fingerprint(tower.vit), block=config.block, split=config.split,
        dtype=config.dtype, device=device_name(config.device), images={n: len(split) for n, split in splits.items()},
        named=nameable, effort=effort, dense=float(hits[Point(), 100].mean()) if hits else None,
        versions={name: version(name) for name in ("clip-patchrank", "timm", "torch")}, worths=worths,
    )  # fmt: skip


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
    best, rows = undominated(curve), []
    timed = curve.worths[0].seconds is not None
    for worth in _cheapest_first(curve):
        cells = {"": "*" if worth in best else "", "way": worth.point.label, "passes": f"{worth.passes:.1f}"}
        if worth.seconds is not None:
            cells["time"] = f"{100 * worth.seconds:.1f} %"
        cells["Kendall tau"] = "{:.3f} [{:.3f}, {:.3f}]".format(*worth.tau)
        cells |= {f"match at keep {keep}": f"{match:.3f}" for keep, match in worth.match.items()}
        cells |= {f"top-1 at keep {keep}": f"{100 * top1:.1f}" for keep, top1 in worth.top1.items()}
        for keep, apart in list(worth.difference.items())[-1:]:
            cells[f"against exact at keep {keep}"] = "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * part for part in apart))
        rows.append(list(cells.values()))
        heads = list(cells)
    images = ", ".join(f"{count} of {name}" for name, count in curve.images.items())
    caption = (
        f"{curve.split} images: {images}. Tau and match are with the exact ranking (window 2, stride 1, float32); "
        f"removed windows of the others in {curve.dtype}. * = no other way is at least as cheap and closer."
    )
    if curve.dense is not None:
        named = ", ".join(f"{count} of {name}" for name, count in curve.named.items())
        caption += f" Accuracy in %, on the images whose class has a caption ({named}); dense {100 * curve.dense:.1f}."
    if timed:
        caption += f" Time against the exact ranking, all in float32, on {curve.device}."
    wide = {head for head in heads if head.startswith(("time", "match", "top-1"))}
    title = f"{curve.model}, before block {curve.block}, preservation"
    return Table.of(title, heads, rows, words={"", "way"}, wide=wide, caption=caption)


def write_curve(curve: Curve, folder: Path) -> None:
    """Write the curve as JSON, Markdown and SVG, each whole or not at all."""
    curve.write(folder / "curve.json")
    write_whole(folder / "curve.md", markdown([curve_table(curve)]).encode())
    write_whole(folder / "curve.svg", draw_curve(curve, "svg"))


def draw_curve(curve: Curve, form: str) -> bytes:
    """Return tau, and accuracy at the lowest keep rate, against passes, as "png" or "svg" bytes."""
    taus = [worth.tau for worth in curve.worths]
    panels: list[tuple[str, float | None, list[Interval]]] = [("Kendall tau to exact", None, taus)]
    if curve.dense is not None:
        keep = list(curve.worths[0].match)[-1]
        top1 = [Interval(*[100 * worth.top1[keep]] * 3) for worth in curve.worths]
        panels.append((f"top-1 at keep {keep}, %", 100 * curve.dense, top1))
    charts = []
    for label, level, values in panels:
        series: dict[str, list[Dot]] = {name: [] for name in FAMILIES}
        for worth, value in sorted(zip(curve.worths, values, strict=True), key=lambda pair: pair[0].passes):
            family = worth.point.method
            if worth.point.window is not None:
                family = (worth.point.approximate or "removal").partition(":")[0]
            series[family].append(Dot(x=Interval(*[worth.passes] * 3), y=value))
        chart = Chart(
            title="", alt="", x_label="passes per image (0 is drawn at the left end)", y_label=label,
            series={name: own for name, own in series.items() if own}, level=level, symlog=True,
            ticks={float(passes): str(passes) for passes in (0, 1, 3, 10, 30, 100)},
        )  # fmt: skip
        charts.append(chart)
    styles = {name: Style(*STYLES[place], "-" if name == "follow" else "none") for place, name in enumerate(FAMILIES)}
    return render(charts, styles, form)
