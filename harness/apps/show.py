"""Show images beside the importance of their patches by several rankings, and the patches that are kept."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from harness.base.hints import describe_error
from harness.datasets import KINDS, get_dataset
from harness.datasets.base import Dataset
from harness.datasets.few_shot import BATCH, undo_preprocess
from harness.datasets.images import decode_image, folder_images
from harness.measure.rows import RowOutput, Variant, make_row, run
from harness.measure.settings import Plan
from harness.records.record import GOLDEN
from harness.report.pictures import PatchSheet, draw, read_comment
from zoo.core.files import write_whole
from zoo.core.recipes import GoldenConfig
from zoo.core.reducer import METHODS, Pruner, final_count
from zoo.core.settings import check_fields, expected
from zoo.core.tokens import tokens_of, top
from zoo.deploy.setup import Setup
from zoo.loading.towers import Tower, load_tower, without_folders
from zoo.ranking.golden import golden_importance

PLACE = re.compile(rf"(?P<dataset>(?:{'|'.join(KINDS)}):.+|[\w-]+):(?P<split>\w*):(?P<index>-?\w*)")
PREDICTOR = "patchrank"
NAMES = {GOLDEN: "golden\nranking", PREDICTOR: "predictor", "clsattn": "CLS\nattention"}  # titles of rankings
EVERY = "all"  # index of all images of a split
MOST, PER_ROW = 24, 4  # images of a sheet with budgets, and of its rows
BUDGET = "budget"  # its column
FEW, GALLERY_SCALE = 4, 0.62  # images of a gallery, and its size as a share of a sheet's 2000 pixels


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """The rankings and keep rates that are shown beside an image."""

    keeps: tuple[float, ...] = (0.6,)  # in (0, 1); a column for each of what the predictor, or a golden ranking, keeps
    left: tuple[str, ...] = ()  # methods or ``golden``: what each leaves, without rankings
    golden: GoldenConfig = field(default_factory=GoldenConfig)  # of a score that needs no classes
    scale: float = 1.0  # of the figure, 1 for about 2000 pixels of width

    def __post_init__(self) -> None:
        if not self.keeps or len(set(self.keeps)) < len(self.keeps) or not all(0 < keep < 1 for keep in self.keeps):
            raise ValueError(f"--keeps {self.keeps}: expected fractions in (0, 1), such as 0.6, each once")
        for name in self.left:
            if name not in (known := [*sorted(METHODS), GOLDEN]):
                raise ValueError(f"--left {name!r}: {expected(name, known)}")
        check_fields(self, scale="[0.25, 8]")


class Subject(NamedTuple):
    """One RGB image with its name and class."""

    name: str
    image: Image.Image
    label: str = ""  # its class, empty where unknown


def find_subjects(place: str) -> list[Callable[[], Subject]]:
    """Return what loads each image of a file, a folder, ``dataset:split:index`` or ``dataset:split:all``.

    A file or folder of that name goes first.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder without images, or a place that no dataset has; when it is loaded, a file that is no image.
    """
    path = Path(place)
    match = None if path.exists() else PLACE.fullmatch(place)
    if match is None:
        if path.is_dir():
            return [partial(_read_subject, path / name) for name in folder_images(path, flag="").paths]
        if not path.is_file():
            raise FileNotFoundError(
                f"image {place!r} does not exist; expected an image file, a folder of such, or dataset:split:index "
                "such as fashion:val:3"
            )
        return [partial(_read_subject, path)]
    dataset, index, split = get_dataset(match["dataset"]), match["index"], match["split"]
    try:
        count = len(dataset.split(split))  # type: ignore[arg-type]  # checked there
    except ValueError as error:
        raise ValueError(f"image {place!r}: {error}") from error
    if count and index == EVERY:
        return [partial(make_subject, dataset, split, at) for at in range(count)]
    if not index.isdecimal() or int(index) >= count:
        there = f"images 0 to {count - 1}, or {EVERY}" if count else "no images"
        raise ValueError(f"image {place!r}: index {index!r}: {dataset.name} {split} has {there}")
    return [partial(make_subject, dataset, split, int(index))]


def _read_subject(path: Path) -> Subject:
    return Subject(path.name, decode_image(path.read_bytes(), repr(str(path))))


def make_subject(dataset: Dataset, split: Any, index: int) -> Subject:
    """Take an image of a dataset, with its class if it has one."""
    example = dataset.split(split)[index]
    label = dataset.classes[example.label] if dataset.labelled else ""
    return Subject(f"{dataset.name}:{split}:{index}", example.image, label)


def show(
    setup: Setup, subjects: Sequence[Callable[[], Subject]], config: ShowConfig, out: Path, device: str = "cpu"
) -> PatchSheet:
    """Draw images beside the rankings of a dense tower, or from cheap to costly by a tower with budgets.

    Raises:
        ValueError: a name or setting that doesn't fit, or nothing to decide what is kept.
        FileNotFoundError: weights are missing, or the predictor of a required method.
    """
    form = out.suffix.lower()[1:]
    if form not in ("png", "jpg") or out.is_dir():
        raise ValueError(f"--output {str(out)!r}: expected a file's name that ends in .png or .jpg")
    if setup.budgets is not None:
        if config.left or config.keeps != ShowConfig.keeps:
            raise ValueError("--left or --keeps with --budgets: budgets say what is left; leave the flag out")
        sheet = make_budget_sheet(setup.load(), subjects, device)
    else:
        if setup.method is not None:
            raise ValueError(f"model {setup.name!r}: expected a dense model; --left shows what methods leave")
        if len(subjects) > MOST:
            raise ValueError(f"{len(subjects)} images: expected up to {MOST}, or --budgets, which shows some of many")
        sheet = make_sheet(load_tower(setup.model), [load() for load in subjects], config, device)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, draw(sheet, config.scale, form))
    return sheet


def draw_galleries(plan: Plan, datasets: Iterable[str], folder: Path) -> None:
    """Draw the tokens that the methods of a comparison leave of a few images of each dataset, at its lowest keep rate.

    ``datasets`` have been read, and go by their own names. A picture that is there already stays.
    """
    methods, keep = tuple(name for name in plan.methods if name in METHODS), min(plan.keeps)
    config = ShowConfig(keeps=(keep,), left=methods, scale=GALLERY_SCALE)
    for model in plan.models if methods else ():
        load, name = cache(partial(load_tower, model)), without_folders(model)
        for dataset in map(get_dataset, datasets):
            slug = re.sub(r"[^A-Za-z0-9]+", "_", f"{dataset.name}_{name}")[:120]
            path, whole = folder / f"gallery_{slug}.jpg", len(dataset.split(plan.split))
            count = min(FEW, whole)
            alt = f"What is left of {count} images at keep {100 * keep:g} % by {', '.join(methods)}"
            comment = f"{dataset.name} {plan.split}, {name}\n{alt}"
            if path.is_file() and read_comment(path) == comment:
                continue
            subjects = [make_subject(dataset, plan.split, at * whole // count) for at in range(count)]
            sheet = make_sheet(load(), subjects, config, plan.device)
            jpeg = {"quality": 80, "comment": comment.encode()}
            write_whole(path, draw(sheet, config.scale, "jpg", pil_kwargs=jpeg))


def make_sheet(tower: Tower, subjects: Sequence[Subject], config: ShowConfig, device: str) -> PatchSheet:
    """Lay out images beside their rankings, the golden one first, and the tokens that are left."""
    tower.vit.to(device)
    images = torch.stack([tower.preprocess(subject.image) for subject in subjects])
    with torch.inference_mode():
        grid = tower.vit.embed(images[:1].to(device)).grid
    sheet = PatchSheet(
        names=[subject.name for subject in subjects],
        labels=[subject.label for subject in subjects],
        views=undo_preprocess(tower.preprocess, images).permute(0, 2, 3, 1).numpy(),
        grid=grid,
        notes=[f"{tower.name}. Dropped patches are grey."],
    )
    images, golden, left = images.to(device), config.golden, config.left
    rankings = dict[str, NDArray[np.floating]]()  # (n, N) importance
    if not left or GOLDEN in left:
        rankings[GOLDEN] = golden_importance(tower.vit, images, golden).cpu().numpy()
        sheet.notes[0] += f" Golden rankings: {golden.describe()}."
    if not left:
        rankings |= _rank_by_methods(tower, images, golden.block, sheet.notes)
        sheet.notes[0] += " Colours show the rank of a patch within its image and ranking; they don't compare images."
        sheet.columns, sheet.panels = {name: NAMES[name] for name in rankings}, dict(rankings)
        left = (PREDICTOR if PREDICTOR in rankings else GOLDEN,)
    patches, merges = grid[0] * grid[1], False
    for keep, method in product(config.keeps, left):
        if method != GOLDEN:
            output = _run_method(tower, images, method, keep, golden.block)
            tokens, count = tokens_at_end(output, patches), output.final_tokens
        else:
            tokens, count = find_kept(rankings[GOLDEN], keep), final_count(patches, keep)
        merges |= bool(((tokens >= 0) & (tokens != np.arange(patches))).any())
        column = f"{method} {100 * keep:g}"
        sheet.columns[column], sheet.panels[column] = f"{column} %\n{count} of {patches} tokens", tokens
    if merges:
        sheet.notes[0] += " Patches that share a token have their mean colour and no line between them."
    return sheet


def make_budget_sheet(tower: Tower, subjects: Sequence[Callable[[], Subject]], device: str) -> PatchSheet:
    """Lay out images of a tower with budgets from the least signal to the largest, at most 24, spread evenly."""
    vit, adaptive = tower.vit.to(device), tower.vit.adaptive
    budgets, cost = adaptive.budgets, adaptive.config.cost
    every = list[Tensor]()
    with torch.inference_mode():
        for start in range(0, len(subjects), BATCH):
            images = torch.stack([tower.preprocess(load().image) for load in subjects[start : start + BATCH]])
            every.append(vit.signals(images.to(device)).cpu())
        signals = torch.cat(every)
        taken = budgets.assign(signals, adaptive.penalty)
        count = min(MOST, len(subjects))
        places = signals.argsort(stable=True)[torch.linspace(0, len(subjects) - 1, count).round().long()].tolist()
        shown = [subjects[place]() for place in places]
        images = torch.stack([tower.preprocess(subject.image) for subject in shown])
        trace = vit.trace(images.to(device))
    patches, keeps = math.prod(trace.grid), [budgets.keeps[taken[place]] for place in places]
    tokens = np.tile(np.arange(patches), (count, 1))
    if trace.reductions:
        tokens = tokens_of(trace.reductions, patches).cpu().numpy()
    left = [len(np.unique(row[row >= 0])) for row in tokens]
    shares = Counter(budgets.keeps[budget] for budget in taken.tolist())
    whole = ", ".join(f"{shares[keep]} keep {100 * keep:g} %" for keep in reversed(budgets.keeps) if shares[keep])
    mean = sum(budgets.costs[budget] for budget in taken.tolist()) / len(taken)
    return PatchSheet(
        names=[subject.name for subject in shown],
        labels=[f"keep {100 * keep:g} %: {n}" for keep, n in zip(keeps, left, strict=True)],
        views=undo_preprocess(tower.preprocess, images).permute(0, 2, 3, 1).numpy(),
        grid=trace.grid,
        columns={BUDGET: f"left of {patches}"},
        panels={BUDGET: tokens},
        notes=[
            f"{tower.name} by {adaptive.method}, budgets at cost {cost:.3g}: {count} of {len(subjects)} images, "
            f"evenly from the least detail to the most. Of all {len(subjects)}, {whole}; their mean cost is {mean:.3g} "
            "of dense's multiply-adds. Patches that share a token have their mean colour and no line between them."
        ],
        per_row=PER_ROW,
    )


def make_reduced(tower: Tower, method: str, keep: float, block: int) -> Variant:
    """Give a dense tower a method; one that ranks at a block's input prunes at ``block``, others at their own points.

    Raises what `rows.make_row` does.
    """
    point = {"reduce_at": (block,)} if issubclass(METHODS[method], Pruner) else {}
    return make_row(tower, method, {"keep": keep, **point})


def tokens_at_end(output: RowOutput, patches: int) -> NDArray[np.integer]:
    """Return (n, N) the position of the token that each patch is in at the end, -1 if it was dropped."""
    whole = np.tile(np.arange(patches), (len(output.features), 1))
    return output.per_image.get("token", whole)


def find_kept(importance: NDArray[np.floating], keep: float) -> NDArray[np.integer]:
    """Return the patches (n, N) that a keep rate leaves, each its own position, -1 elsewhere; of equals the first."""
    kept = top(torch.from_numpy(importance), final_count(importance.shape[1], keep)).numpy()
    tokens = np.full(importance.shape, -1)
    np.put_along_axis(tokens, kept, kept, axis=1)
    return tokens


def _run_method(tower: Tower, images: Tensor, method: str, keep: float, block: int) -> RowOutput:
    row = make_reduced(tower, method, keep, block)
    return run([row], images)[row.key]


def _rank_by_methods(tower: Tower, images: Tensor, block: int, notes: list[str]) -> dict[str, NDArray[np.floating]]:
    """Return the importance by predictor and CLS attention at a block, where there are any."""
    rankings = dict[str, NDArray[np.floating]]()
    for method in (PREDICTOR, "clsattn"):
        try:  # at any keep rate, as all rank in the same order
            rankings[method] = _run_method(tower, images, method, 0.5, block).per_image["scores"]
        except (FileNotFoundError, ValueError) as error:
            notes.append(f"Left out: {method}: {describe_error(error)}.")
    return rankings
