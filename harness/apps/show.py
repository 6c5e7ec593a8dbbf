"""Show images beside the importance of their patches by several rankings, and what is kept; galleries of `compare`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from harness.base.hints import describe_error
from harness.base.terminal import Progress
from harness.datasets import KINDS, get_dataset
from harness.datasets.images import LEAVE_OUT, read_image
from harness.measure.bench import KeptPatches
from harness.measure.rows import Outcome, Variant, make_row, run
from harness.models.towers import Tower, load_tower, no_text, undo_preprocess
from harness.records.averages import REFERENCE
from harness.records.record import DENSE, GOLDEN, OPTIMIZED, RANDOM
from harness.report.pictures import IMAGE, PatchRow, PatchSheet, draw, gallery_name
from zoo.core.files import write_whole
from zoo.core.messages import expected
from zoo.core.reducer import METHODS, Pruner, final_count
from zoo.core.tokens import top
from zoo.loading.clip import class_features
from zoo.ranking.golden import SCORES, GoldenConfig, GoldenEngine, golden_importance

PLACE = re.compile(rf"(?P<dataset>(?:{'|'.join(KINDS)}):.+|[\w-]+):(?P<split>\w*):(?P<index>-?\w*)")
NO_CLASSES = "its class is not known (images of a dataset have one, such as folder:DIR:val:0)"
PREDICTOR, ATTENTION, PRESERVATION = "patchrank", "clsattn", "preservation"
RANKING = "golden ranking"  # column of a gallery
GALLERY_SCALE = 0.62  # of a sheet's 2000 pixels
NAMES = {score: f"golden {score}" for score in SCORES} | {PREDICTOR: "predictor", ATTENTION: "CLS attention"}


class Subject(NamedTuple):
    """One RGB image with what is known about it."""

    name: str
    image: Image.Image
    label: str = ""  # its class, empty where unknown
    classes: tuple[str, ...] = ()  # of its dataset
    templates: tuple[str, ...] = ()


def find_subject(place: str) -> Subject:
    """Load an image from the path of a file, or ``dataset:split:index``; a file of that name goes first.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no image, or a place that no dataset has.
    """
    match = None if Path(place).exists() else PLACE.fullmatch(place)
    if match is None:
        if not Path(place).is_file():
            raise FileNotFoundError(
                f"image {place!r} does not exist; expected an image file, or dataset:split:index such as fashion:val:3"
            )
        return Subject(Path(place).name, read_image(Path(place), way=LEAVE_OUT))
    dataset, index = get_dataset(match["dataset"]), match["index"]
    try:
        split = dataset.split(match["split"])  # type: ignore[arg-type]  # checked there
    except ValueError as error:
        raise ValueError(f"image {place!r}: {error}") from error
    if not index.isdecimal() or int(index) >= len(split):
        there = f"images 0 to {len(split) - 1}" if len(split) else "no images"
        raise ValueError(f"image {place!r}: index {index!r}: {dataset.name} {match['split']} has {there}")
    example, name = split[int(index)], f"{dataset.name}:{match['split']}:{index}"
    if not dataset.labelled:
        return Subject(name, example.image)
    return Subject(name, example.image, dataset.classes[example.label], dataset.classes, dataset.templates)


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Configure what is shown beside an image.

    Attributes:
        keeps: keep rates, in (0, 1); a column for each of what the predictor keeps, or else the golden ranking.
        methods: registered methods that get a column, beside predictor and CLS attention.
        left: registered methods or ``golden`` (preservation); if any, these columns alone, each with
            what the method leaves, those of one keep rate side by side.
        golden: block and windows; its score is not looked at.
        scale: size of the figure, 1 for about 2000 pixels of width.
    """

    keeps: tuple[float, ...] = (0.6,)
    methods: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    golden: GoldenConfig = field(default_factory=GoldenConfig)
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.keeps or len(set(self.keeps)) < len(self.keeps) or not all(0 < keep < 1 for keep in self.keeps):
            raise ValueError(f"--keeps {self.keeps}: expected fractions in (0, 1), such as 0.6, each once")
        methods = sorted(METHODS)
        for flag, names, known in (("methods", self.methods, methods), ("left", self.left, [*methods, GOLDEN])):
            for name in names:
                if name not in known:
                    raise ValueError(f"--{flag} {name!r}: {expected(name, known)}")
        if self.left and self.methods:
            raise ValueError(f"--left {self.left[0]!r} shows no rankings: expected no --methods with it")
        if not 0.25 <= self.scale <= 8:
            raise ValueError(f"--scale {self.scale:g}: expected a number in [0.25, 8]")


Arrays = dict[str, dict[int, NDArray[Any]]]  # (N,) of each patch, by column and position of the image


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What stands beside the images of a sheet."""

    columns: dict[str, str]  # titles
    importance: Arrays = field(default_factory=dict)
    tokens: Arrays = field(default_factory=dict)
    captions: dict[str, dict[int, str]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def make_sheet(self, names: Sequence[tuple[str, str]], views: NDArray[Any], grid: tuple[int, int]) -> PatchSheet:
        """Lay out images by name and class, as the model sees them, (n, H, W, 3)."""

        def part(kind: Mapping[str, Mapping[int, Any]], i: int) -> dict[str, Any]:
            return {column: own[i] for column, own in kind.items() if i in own}

        rows = [
            PatchRow(
                name=name,
                label=label,
                view=views[i],
                importance=part(self.importance, i),
                tokens=part(self.tokens, i),
                captions=part(self.captions, i),
            )
            for i, (name, label) in enumerate(names)
        ]
        return PatchSheet(rows=rows, grid=grid, columns=self.columns, notes=self.notes)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Images and the dense tower that looks at them."""

    tower: Tower
    subjects: Sequence[Subject]
    images: Tensor  # (B, C, H, W), preprocessed
    config: ShowConfig

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        rows, columns = self.tower.vit.patch_embed.dynamic_feat_size(self.images.shape[-2:])
        return int(rows), int(columns)

    @property
    def patches(self) -> int:
        """The number N of patches."""
        return self.grid[0] * self.grid[1]


def show(
    model: str, subjects: Sequence[Subject], config: ShowConfig, out: Path, *, progress: Progress, device: str = "cpu"
) -> PatchSheet:
    """Draw images beside what a dense tower (see ``towers.load_tower``) makes of them, as a PNG.

    Raises:
        ValueError: a name or setting that doesn't fit, or nothing to decide what is kept.
        FileNotFoundError: weights are missing, or the predictor of a required method.
    """
    if out.suffix.lower() != ".png" or out.is_dir():
        raise ValueError(f"--output {str(out)!r}: expected a file's name that ends in .png")
    tower = load_tower(model)
    tower.vit.to(device)
    images = torch.stack([tower.preprocess(subject.image) for subject in subjects])
    views = _views(tower.preprocess, images)
    scene = Scene(tower=tower, subjects=subjects, images=images.to(device), config=config)
    drawing = _leavings(scene) if config.left else _rankings(scene, progress)
    sheet = drawing.make_sheet([(subject.name, subject.label) for subject in subjects], views, scene.grid)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, draw(sheet, scale=config.scale))
    return sheet


def _views(preprocess: Any, images: Tensor) -> NDArray[np.float32]:
    """Return what the model sees of preprocessed images, (B, H, W, 3) in [0, 1]."""
    views: NDArray[np.float32] = undo_preprocess(preprocess, images).permute(0, 2, 3, 1).numpy()
    return views


def make_rows(tower: Tower, methods: Sequence[str], keep: float, block: int) -> dict[str, Variant]:
    """Give a dense tower methods; those that rank at a block's input prune at ``block``, others at their own points.

    Raises what `rows.make_row` does.
    """
    points = {name: {"reduce_at": (block,)} if issubclass(METHODS[name], Pruner) else {} for name in methods}
    return {name: make_row(tower.vit, tower.arch, tower.tag, name, {"keep": keep, **points[name]}) for name in methods}


def tokens_at_end(outcome: Outcome, patches: int) -> NDArray[np.integer]:
    """Return (n, N) the position of the token that each patch is in at the end, -1 if it was dropped."""
    whole = np.tile(np.arange(patches), (len(outcome.features), 1))
    return whole if outcome.token is None else outcome.token


def most_important(importance: NDArray[np.floating], keep: float) -> NDArray[np.integer]:
    """Return the patches (N,) that a keep rate leaves, each its own position, -1 elsewhere; of equals the first."""
    kept = top(torch.from_numpy(importance)[None], final_count(len(importance), keep))[0].numpy()
    tokens = np.full(len(importance), -1)
    tokens[kept] = kept
    return tokens


Gaps = dict[str, dict[str, list[str]]]  # names of images by reason and ranking, which they lack


def _run_method(scene: Scene, method: str, keep: float) -> Outcome:
    [row] = make_rows(scene.tower, [method], keep, scene.config.golden.block).values()
    return run([row], scene.images)[row.key]


def _rank_by_methods(scene: Scene, importance: Arrays, gaps: Gaps) -> None:
    """Add the importance by each method at the first keep rate; with nothing to reduce all patches tie."""
    config, names = scene.config, [one.name for one in scene.subjects]
    for method in dict.fromkeys((PREDICTOR, ATTENTION, *config.methods)):
        try:
            scores = _run_method(scene, method, config.keeps[0]).scores
        except (FileNotFoundError, ValueError) as error:
            if method in config.methods:
                raise
            gaps.setdefault(describe_error(error), {})[method] = names
        else:
            importance[method] = dict(enumerate(np.ones((len(names), scene.patches)) if scores is None else scores))


def _rank_by_golden(scene: Scene, importance: Arrays, gaps: Gaps, progress: Progress) -> None:
    """Add the golden importance of each image, by all scores where its dataset has classes with words for them."""

    @cache
    def read_text(classes: tuple[str, ...], templates: tuple[str, ...]) -> tuple[Tensor, float]:
        if scene.tower.clip is None:
            raise no_text(scene.tower)
        model, _, tokenizer = scene.tower.clip
        features = class_features(model, tokenizer, classes, templates)
        return features.to(scene.images.device), float(model.logit_scale.detach().exp())

    with progress.task("golden rankings", len(scene.subjects)) as update:
        for i, subject in enumerate(scene.subjects):
            text, scale, label, scores = None, 1.0, 0, [PRESERVATION]
            try:
                if scene.tower.clip is not None and not subject.classes:
                    raise ValueError(NO_CLASSES)
                text, scale = read_text(subject.classes, subject.templates)
                label, scores = subject.classes.index(subject.label), list(SCORES)
            except ValueError as error:
                for score in ("label", "confidence"):
                    gaps.setdefault(str(error), {}).setdefault(score, []).append(subject.name)
            # Each window is removed once for all scores.
            config, image = replace(scene.config.golden, score=scores[0]), scene.images[i : i + 1]
            engine = GoldenEngine(scene.tower.vit, config, text=text, scale=scale)
            labels = torch.tensor([label], device=image.device)
            for score, own in engine.importances(image, scores, labels).items():
                importance.setdefault(score, {})[i] = own[0].cpu().numpy()
            update(i + 1)


def _rankings(scene: Scene, progress: Progress) -> Drawing:
    """Return the importance by each ranking, and what one of them keeps."""
    config, golden, importance, gaps = scene.config, scene.config.golden, Arrays(), Gaps()
    _rank_by_methods(scene, importance, gaps)
    _rank_by_golden(scene, importance, gaps, progress)
    by = PREDICTOR if PREDICTOR in importance else PRESERVATION
    columns, tokens = dict[str, str](), Arrays()
    for ranking in sorted(importance, key=(*SCORES, *importance).index):
        columns[ranking] = NAMES.get(ranking, ranking).replace(" ", "\n")
        if ranking in METHODS and not issubclass(METHODS[ranking], Pruner):
            columns[ranking] += f"\nat keep {100 * config.keeps[0]:g} %"  # ranks otherwise at another
    for keep in config.keeps:
        column = f"kept {100 * keep:g}"
        columns[column] = f"{100 * keep:g} % kept\nby {NAMES[by]}"
        if by == PREDICTOR:
            tokens[column] = dict(enumerate(tokens_at_end(_run_method(scene, by, keep), scene.patches)))
        else:
            tokens[column] = {i: most_important(own, keep) for i, own in importance[by].items()}
    about = (
        f"{scene.tower.name}. Golden scores: windows of {golden.window} × {golden.window} patches, stride "
        f"{golden.stride}, removed before block {golden.block}. Colours show the rank of a patch "
        "within its image and ranking; they don't compare images."
    )
    notes = (about, *_describe_gaps(gaps, [one.name for one in scene.subjects]))
    return Drawing(columns=columns, importance=importance, tokens=tokens, notes=notes)


def _describe_gaps(gaps: Gaps, names: Sequence[str]) -> Iterator[str]:
    """Say what is left out and why, each reason once."""
    for reason, lacking in gaps.items():
        images = [name for name in names if any(name in own for own in lacking.values())]
        where = "" if images == list(names) else f" of {', '.join(images)}"
        yield f"Left out: {' and '.join(NAMES.get(one, one) for one in lacking)}{where}: {reason}."


def _leavings(scene: Scene) -> Drawing:
    """Return the patch tokens that each method leaves, keep rate by keep rate."""
    tower, images, config = scene.tower, scene.images, scene.config
    columns, tokens, merging, patches = dict[str, str](), Arrays(), dict[str, None](), scene.patches
    about, golden = f"{tower.name}. Dropped patches are grey.", np.empty((0, patches))
    if GOLDEN in config.left:
        by = replace(config.golden, score=PRESERVATION)
        golden = torch.cat([golden_importance(tower.vit, image[None], by) for image in images]).cpu().numpy()
        about += f" golden: {config.golden.describe()}."
    for keep in config.keeps:
        rows = make_rows(tower, [name for name in config.left if name != GOLDEN], keep, config.golden.block)
        found = run(list(rows.values()), images) if rows else {}
        for method in config.left:
            column = f"{method} {100 * keep:g}"
            if method == GOLDEN:
                own, count = np.stack([most_important(each, keep) for each in golden]), final_count(patches, keep)
            else:
                outcome = found[rows[method].key]
                own, count = tokens_at_end(outcome, patches), outcome.final_tokens
            if ((own >= 0) & (own != np.arange(patches))).any():
                merging[method] = None
            tokens[column] = dict(enumerate(own))
            columns[column] = f"{column} %\n{count} of {patches} tokens"
    if merging:
        names = ", ".join(merging)
        about += f" {names}: patches that share a token have their mean colour, and no line between neighbours."
    return Drawing(columns=columns, tokens=tokens, notes=(about,))


def write_gallery(kept: KeptPatches, folder: Path) -> None:
    """Draw what rows keep at each method's lowest keep rate, controls left out, for the report of a run's folder."""
    rows = {
        (record.method, record.keep): row
        for row in kept.rows
        if (record := row[0]).method not in (DENSE, GOLDEN, OPTIMIZED, RANDOM) and not record.recovered
    }
    least = {method: min(keep for other, keep in rows if other == method) for method, _ in rows}
    # The method that learns the golden ranking stands beside it.
    lowest = sorted(least.items(), key=lambda row: (row[0] != REFERENCE, row[0]))
    if not lowest:
        return
    same = len(set(least.values())) == 1
    named = {method if same else f"{method} {100 * keep:.3g} %": rows[method, keep] for method, keep in lowest}
    patches = kept.grid[0] * kept.grid[1]
    tokens = {name: tokens_at_end(outcome, patches) for name, (_, outcome, _) in named.items()}
    columns = {name: f"{name}\n{_token_count(own)} tokens" for name, own in tokens.items()}
    if kept.golden is not None:
        columns = {RANKING: RANKING.replace(" ", "\n"), **columns}
    answers = {name: own for name, (_, _, own) in {IMAGE: kept.rows[0], **named}.items() if own is not None}
    examples, labels = [kept.split[i] for i in range(len(kept.split))], kept.split.labels
    names = [(one.image_id, kept.classes[one.label] if kept.classes else "") for one in examples]
    right = {name: own == labels for name, own in answers.items()}
    drawing = Drawing(
        columns=columns,
        importance={}
        if kept.golden is None
        else {RANKING: {i: own for i, own in enumerate(kept.golden) if not np.isnan(own).any()}},
        tokens={name: dict(enumerate(own)) for name, own in tokens.items()},
        captions={
            name: {i: f"{'✓' if right[name][i] else '✗'} {kept.classes[answer]}" for i, answer in enumerate(own)}
            for name, own in answers.items()
        },
    )
    views = _views(kept.preprocess, torch.stack([kept.preprocess(one.image) for one in examples]))
    sheet = drawing.make_sheet(names, views, kept.grid)
    shown = ", ".join(label if answers else name for name, label in names)
    counts = ", ".join(f"{DENSE if name == IMAGE else name} {own.sum()}" for name, own in right.items())
    alt = f"{len(names)} images ({shown}) and what is kept of them by {', '.join(columns)}"
    alt += f"; right answers: {counts}." if counts else "."
    content = draw(sheet, "jpg", GALLERY_SCALE, pil_kwargs={"quality": 80, "comment": alt.encode()})
    write_whole(folder / f"{gallery_name(kept.rows[0][0])}.jpg", content)


def _token_count(tokens: NDArray[np.integer]) -> str:
    """Say how many tokens are left of the patches, the least and the most of all images."""
    counts = sorted({len(set(each) - {-1}) for each in tokens.tolist()})
    return " to ".join(map(str, counts[:1] + counts[1:][-1:]))
