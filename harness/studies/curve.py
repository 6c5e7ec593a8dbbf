"""Measure what cheaper golden rankings cost and are worth: agreement, and accuracy by them."""

import hashlib
import io
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

import zoo
from harness.console.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Split, SplitName
from harness.datasets.few_shot import subset
from harness.golden.budget import Curve, Point, Worth
from harness.golden.maps import method_maps
from harness.measure.evaluate import Importance, correct, outcomes
from harness.measure.rows import Variant, golden_row
from harness.models.towers import Tower, load_tower, named, text_classifier
from harness.records.agreement import kendall_tau, match_at_k
from harness.records.conditions import DENSE, GOLDEN, device_name
from harness.records.statistics import Interval, bootstrap_mean
from harness.report import drawing
from harness.report.drawing import STYLES, Chart, Plot, Style
from zoo.approximate import KINDS, SHALLOW, Effort
from zoo.files import write_whole
from zoo.golden import GoldenConfig, GoldenEngine
from zoo.reducer import ReducerConfig, expected, final_count
from zoo.suffix import PRECISIONS
from zoo.weights import cache_folder, fingerprint

TIMED_IMAGES = 2
KEEPS = (0.6, 0.5, 0.3)
PART = 10  # images whose importance is kept as one file
COARSE = ((2, 2), (3, 2), (4, 2), (3, 3), (4, 4), (5, 5))
FOLLOWED = (0, 1, 2, 4, 8, 16, 32, 64)
DIRECTIONS = (4, 8, 16)
SHORTER = (3, 4)  # blocks that are left out at the end

Hits = NDArray[np.float64]  # (images,) 1 where the answer is right, else 0


@dataclass(frozen=True, kw_only=True)
class CurveConfig:
    """What to measure, and how.

    Attributes:
        model: dense timm name.
        datasets: names.
        split: of the datasets.
        limit: images per dataset, see ``evaluate.subset``; None for all.
        block: reduction point.
        seeds: number of random orders.
        rounds: timings of each way; 0 leaves time out.
        dtype: of removed windows, the exact ranking excepted, which is float32.
        device: torch device.
    """

    model: str = "clip_vit_s14"
    datasets: tuple[str, ...] = ("fashion", "emoji")
    split: SplitName = "val"
    limit: int | None = 60
    block: int = GoldenConfig.block
    seeds: int = 3
    rounds: int = 3
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Validate."""
        if self.dtype not in PRECISIONS:
            raise ValueError(f"dtype={self.dtype!r}: {expected(self.dtype, PRECISIONS)}")
        for name, low in (("seeds", 1), ("rounds", 0), ("block", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number from {low}")


def usual_points(effort: Effort, block: int, seeds: int) -> list[Point]:
    """List the points of a curve, the exact one first; random orders come last."""
    specs = [f"follow:{n}" for n in FOLLOWED] + [f"jacobian:{n}" for n in DIRECTIONS]
    specs += [f"{SHALLOW}:{block + effort.blocks - 1 - n}" for n in SHORTER if n < effort.blocks]
    points = [
        Point(),
        *(Point(window=window, stride=stride) for window, stride in COARSE),
        *(Point(approximate=spec) for spec in specs),
        Point(method="clsattn", window=None, stride=None),
        *(Point(method="random", window=None, stride=None, seed=seed) for seed in range(seeds)),
    ]
    return [point for point in points if point.fits(effort, block)]


class Ranker:
    """Rank images by points.

    Args:
        tower: the dense tower, on its device.
        block: reduction point.
        dtype: of removed windows, the exact point excepted, which is float32.
    """

    def __init__(self, tower: Tower, block: int, dtype: str) -> None:
        """Prepare nothing yet."""
        self.tower, self.block, self.dtype = tower, block, dtype
        self._engines: dict[tuple[Point, str], GoldenEngine] = {}

    def precision(self, point: Point) -> str:
        """Return in what precision a point is computed."""
        removes = (
            point.approximate is None or KINDS[point.approximate.partition(":")[0]].run is None
        )
        return self.dtype if removes and point != Point() else "float32"

    def importance(self, point: Point, images: Tensor, precision: str | None = None) -> Tensor:
        """Rank images (B, C, H, W) by a point, (B, N) float32 on the CPU, higher = keep."""
        if point.method != GOLDEN:
            options: dict[str, Any] = {} if point.seed is None else {"seed": point.seed}
            vit = zoo.reduce(
                self.tower.vit, method=point.method, keep=0.5, reduce_at=(self.block,), **options
            )
            return method_maps(vit, images.to(next(vit.parameters()).device))[0]
        assert point.window is not None
        assert point.stride is not None
        precision = precision or self.precision(point)
        engine = self._engines.get((point, precision))
        if engine is None:
            config = GoldenConfig(
                block=self.block,
                window=point.window,
                stride=point.stride,
                approximate=point.approximate,
            )
            engine = GoldenEngine(self.tower.vit, config, precision=precision)
            self._engines[point, precision] = engine
        return engine.importance(images)

    def ranked(
        self,
        point: Point,
        images: Split,
        facts: dict[str, Any],
        name: str,
        progress: Progress,
    ) -> NDArray[np.float32]:
        """Rank images by a point, or read what an earlier run kept.

        Returns:
            (n, N) importance.
        """
        way = vars(point) | {"block": self.block, "precision": self.precision(point)}
        key = json.dumps(facts | way, sort_keys=True)
        folder = cache_folder() / "curve" / hashlib.sha256(key.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        parts = [images[first : first + PART] for first in range(0, len(images), PART)]
        paths = [folder / f"{_digest(part.image_ids)}.npy" for part in parts]
        begun = sum(len(part) for part, path in zip(parts, paths, strict=True) if path.is_file())
        effort = Effort.of(self.tower.vit, self.block)
        passes = point.passes(effort, self.block)
        done = begun
        with progress.long(f"{point.label} on {name}", len(images), begun, passes) as show:
            for part, path in zip(parts, paths, strict=True):
                if path.is_file():
                    continue
                batch = torch.stack([self.tower.preprocess(example.image) for example in part])
                _save(path, self.importance(point, batch).numpy())
                done += len(part)
                show(done)
        return np.concatenate([np.load(path, allow_pickle=False) for path in paths])

    def seconds(self, points: Sequence[Point], images: Tensor, rounds: int) -> dict[Point, float]:
        """Time points in turn, all in float32, the exact one first.

        Returns:
            Point -> least seconds per image of ``rounds`` rounds, one more not counted.
        """
        seconds: dict[Point, list[float]] = {point: [] for point in points}
        for _ in range(rounds + 1):
            for point in points:
                begun = time.perf_counter()
                self.importance(point, images, "float32")
                seconds[point].append((time.perf_counter() - begun) / len(images))
        return {point: min(times[1:]) for point, times in seconds.items()}


def _digest(image_ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(image_ids).encode()).hexdigest()[:16]


def _save(path: Path, values: NDArray[np.float32]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values)
    write_whole(path, buffer.getvalue())


def pruned_hits(
    tower: Tower,
    block: int,
    split: Split,
    classifier: Tensor,
    orders: Mapping[Point, Importance],
    progress: Progress,
) -> dict[tuple[Point, float], Hits]:
    """Prune the dense model by each ranking and see whether it is right.

    Args:
        tower: the dense tower.
        block: reduction point.
        split: n images.
        classifier: (classes, D) unit features.
        orders: rankings as (n, N) importance, the first that of the exact way.
        progress: where to show how far things are.

    Returns:
        (point, keep rate) -> (images,) 1 where the answer is right; keep rate 1 is the dense model.
    """
    dense = Variant(model=tower.name, method=DENSE, keep=1.0, vit=tower.vit, config={})
    rows, importance = {(next(iter(orders)), 1.0): dense}, {}
    for number, (point, order) in enumerate(orders.items()):
        for keep in KEEPS:
            config = ReducerConfig(keep=keep, reduce_at=(block,))
            row = golden_row(tower.vit, f"{number} at {keep:g}", config)
            rows[point, keep], importance[row.key] = row, order
    like = next(tower.vit.parameters())
    with progress.task("accuracy of pruned models", len(split)) as update:
        results = outcomes(
            list(rows.values()),
            split,
            tower.preprocess,
            device=like.device,
            dtype=like.dtype,
            importance=importance,
            on_batch=update,
        )
    return {
        way: correct(results[row.key].features, classifier, split.labels).astype(np.float64)
        for way, row in rows.items()
    }


def agreement_facts(
    members: Sequence[Sequence[NDArray[np.float32]]],
    exact: Sequence[NDArray[np.float32]],
    datasets: Iterable[str],
) -> dict[str, Any]:
    """Compare rankings with the exact ones, as fields of ``Worth``; images and seeds averaged."""
    taus = [
        np.mean([kendall_tau(member[i], exact[i]) for member in members], axis=0)
        for i in range(len(exact))
    ]
    truth = np.concatenate(exact)
    match = {}
    for keep in KEEPS:
        count = final_count(truth.shape[1], keep)
        shares = [match_at_k(truth, np.concatenate(member), count) for member in members]
        match[_percent(keep)] = float(np.mean(shares))
    return {
        "tau": bootstrap_mean(np.concatenate(taus), seed=0),
        "tau_of": {name: float(tau.mean()) for name, tau in zip(datasets, taus, strict=True)},
        "match": match,
    }


def accuracy_facts(
    members: Sequence[Point], exact: Point, hits: Mapping[tuple[Point, float], list[Hits]]
) -> dict[str, Any]:
    """Compare accuracies with that of the exact ranking, as fields of ``Worth``."""
    if not hits:
        return {}
    top1, difference = {}, {}
    for keep in KEEPS:
        right = np.mean([np.concatenate(hits[point, keep]) for point in members], axis=0)
        top1[_percent(keep)] = float(right.mean())
        apart = right - np.concatenate(hits[exact, keep])
        difference[_percent(keep)] = bootstrap_mean(apart, seed=0)
    return {"top1": top1, "difference": difference}


def _percent(keep: float) -> str:
    return f"{100 * keep:.0f}"


def measure_curve(
    config: CurveConfig, progress: Progress, points: Sequence[Point] | None = None
) -> Curve:
    """Measure ways to rank on some images; what an earlier run ranked is read from the cache.

    Args:
        config: tower, images, conditions.
        progress: where to show how far things are.
        points: what to measure beside the exact ranking; None for the usual.

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
    usual = usual_points(effort, config.block, config.seeds)
    every = usual if points is None else [Point(), *points]
    orders_of: dict[Point, list[Importance]] = {point: [] for point in every}
    hits: dict[tuple[Point, float], list[Hits]] = {}
    images, nameable, sample = {}, {}, torch.empty(0)
    for name in config.datasets:
        dataset = get_dataset(name)
        split = subset(dataset.split(config.split), config.limit)
        images[name] = len(split)
        facts = {"weights": fingerprint(tower.vit), "dataset": name, "revision": dataset.revision}
        for point in every:
            orders_of[point].append(ranker.ranked(point, split, facts, name, progress))
        few = [split[i] for i in range(min(TIMED_IMAGES, len(split)))]
        sample = torch.stack([tower.preprocess(example.image) for example in few])
        if tower.clip is not None:
            classifier, _ = text_classifier(tower.clip, dataset)
            known = np.flatnonzero(named(classifier)[split.labels])
            nameable[name] = len(known)
            orders = {point: orders_of[point][-1][known] for point in every}
            judged = split.subset(known)
            right = pruned_hits(tower, config.block, judged, classifier, orders, progress)
            for pruned, answers in right.items():
                hits.setdefault(pruned, []).append(answers)
    if sum(images.values()) < 2:
        raise ValueError("a curve needs at least two images")
    ways: dict[Point, list[Point]] = {}
    for point in every:
        ways.setdefault(replace(point, seed=None), []).append(point)
    firsts = [members[0] for members in ways.values()]
    seconds = ranker.seconds(firsts, sample, config.rounds) if config.rounds else {}
    worths = []
    for way, members in ways.items():
        values = agreement_facts(
            [orders_of[point] for point in members], orders_of[every[0]], images
        )
        values |= accuracy_facts(members, every[0], hits)
        if seconds:
            values["seconds"] = seconds[members[0]] / seconds[every[0]]
        worths.append(Worth(point=way, passes=way.passes(effort, config.block), **values))
    dense = np.concatenate(hits[every[0], 1.0]).mean() if hits else None
    return Curve(
        model=tower.name,
        weights=fingerprint(tower.vit),
        block=config.block,
        split=config.split,
        dtype=config.dtype,
        device=device_name(config.device),
        images=images,
        named=nameable,
        effort=effort,
        dense=None if dense is None else float(dense),
        versions={name: version(name) for name in ("clip-patchrank", "timm", "torch")},
        worths=worths,
    )


FAMILIES = ("removal", "follow", "jacobian", "shallow", "clsattn", "random")
ALONE = ("clsattn", "random")


def family(worth: Worth) -> str:
    """Return what kind of way it is: ``removal`` of windows, or an approximation or method."""
    if worth.point.window is None:
        return worth.point.method
    return (worth.point.approximate or "removal").partition(":")[0]


def undominated(curve: Curve) -> list[Worth]:
    """List the ways that no other beats in tau at the same cost or less, cheapest first."""
    best, kept = -1.0, []
    for worth in sorted(curve.worths, key=lambda w: (w.passes, -w.tau.estimate)):
        if worth.tau.estimate > best:
            kept.append(worth)
            best = worth.tau.estimate
    return kept


def cells(curve: Curve) -> tuple[list[str], list[list[str]]]:
    """Return the head of the table and its rows, cheapest first."""
    keeps = list(curve.worths[0].match)
    timed = curve.worths[0].seconds is not None
    named = bool(curve.named)
    head = ["", "way", "passes", *(["time"] if timed else []), "Kendall tau"]
    head += [f"match at keep {keep}" for keep in keeps]
    if named:
        head += [f"top-1 at keep {keep}" for keep in keeps]
        head += [f"against exact at keep {keeps[-1]}"]
    best = undominated(curve)
    rows = []
    for worth in sorted(curve.worths, key=lambda w: (w.passes, -w.tau.estimate)):
        row = ["*" if worth in best else "", worth.point.label, f"{worth.passes:.1f}"]
        row += [f"{100 * worth.seconds:.1f} %"] if worth.seconds is not None else []
        row += [_interval(worth.tau, 1, 3)]
        row += [f"{worth.match[keep]:.3f}" for keep in keeps]
        if named:
            row += [f"{100 * worth.top1[keep]:.1f}" for keep in keeps]
            row += [_interval(worth.difference[keeps[-1]], 100, 1)]
        rows.append(row)
    return head, rows


def caption(curve: Curve) -> str:
    """Say what was measured on what."""
    images = ", ".join(f"{count} of {name}" for name, count in curve.images.items())
    text = (
        f"{curve.model}, before block {curve.block}, preservation; {curve.split} images: {images}. "
        "Tau and match are with the exact ranking (window 2, stride 1, float32); removed windows "
        f"of the others in {curve.dtype}. * = no other way is at least as cheap and closer."
    )
    if curve.named:
        named = ", ".join(f"{count} of {name}" for name, count in curve.named.items())
        text += f" Accuracy in %, on the images whose class has a caption ({named}); dense "
        text += f"{100 * (curve.dense or 0):.1f}."
    if curve.worths[0].seconds is not None:
        text += f" Time against the exact ranking, all in float32, on {curve.device}."
    return text


def curve_table(curve: Curve) -> Table:
    """Return the curve for a terminal."""
    head, rows = cells(curve)
    table = Table(caption=caption(curve), caption_justify="left")
    for name in head:
        table.add_column(name, justify="left" if name in ("", "way") else "right")
    for row in rows:
        table.add_row(*row)
    return table


def curve_markdown(curve: Curve) -> str:
    """Return the curve as a Markdown table with its caption."""
    head, rows = cells(curve)
    ruler = ["---" if name in ("", "way") else "---:" for name in head]
    lines = [f"| {' | '.join(row)} |" for row in (head, ruler, *_starred(rows))]
    return "\n".join([*lines, "", caption(curve).replace("*", "\\*")]) + "\n"


def write_curve(curve: Curve, folder: Path) -> None:
    """Write the curve as JSON, Markdown and SVG, each whole or not at all."""
    curve.write(folder / "curve.json")
    write_whole(folder / "curve.md", curve_markdown(curve).encode())
    write_whole(folder / "curve.svg", draw_curve(curve, "svg"))


def draw_curve(curve: Curve, form: str) -> bytes:
    """Return tau, and accuracy at the lowest keep rate, against passes, as "png" or "svg" bytes."""
    keep = list(curve.worths[0].match)[-1]
    panels = [_panel(curve, [w.tau for w in curve.worths], "Kendall tau to exact")]
    if curve.named:
        top1 = [Interval(*[100 * worth.top1[keep]] * 3) for worth in curve.worths]
        dense = 100 * (curve.dense or 0)
        panels.append(_panel(curve, top1, f"top-1 at keep {keep}, %", level=dense))
    styles = {
        name: Style(*STYLES[place], "none" if name in ("removal", *ALONE) else "-")
        for place, name in enumerate(FAMILIES)
    }
    return Plot(name="curve", title="", about="", panels=panels).draw(styles, form)


def _panel(
    curve: Curve, values: Sequence[Interval], title: str, level: float | None = None
) -> Chart:
    """Return one quantity against cost."""
    series: dict[str, list[drawing.Point]] = {name: [] for name in FAMILIES}
    for worth, value in zip(curve.worths, values, strict=True):
        cost = Interval(worth.passes, worth.passes, worth.passes)
        series[family(worth)].append(drawing.Point(x=cost, y=value))
    return Chart(
        title="",
        alt="",
        x_label="passes per image (0 is drawn at the left end)",
        y_label=title,
        series={name: sorted(own, key=_cost) for name, own in series.items() if own},
        level=level,
        ticks={float(passes): str(passes) for passes in (0, 1, 3, 10, 30, 100)},
        symlog=True,
    )


def _cost(point: drawing.Point) -> float:
    return point.x.estimate


def _interval(value: Interval, factor: float, digits: int) -> str:
    middle, low, high = (f"{factor * part:.{digits}f}" for part in value)
    return f"{middle} [{low}, {high}]"


def _starred(rows: list[list[str]]) -> list[list[str]]:
    """Escape the stars, which Markdown would read as emphasis."""
    return [[cell.replace("*", "\\*") for cell in row] for row in rows]
