"""The models that stand side by side, sharing one dense tower's weights, and what they make of images."""

import contextlib
import functools
import inspect
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from harness import git_commit
from harness.base.store import BrokenShardError, Shard, ShardKind, ShardProvenance, Store, from_lists, to_lists
from harness.base.terminal import Progress
from harness.datasets import few_shot
from harness.datasets.base import Dataset, Example, Split
from harness.datasets.few_shot import batches
from harness.datasets.images import measure_detail
from harness.records.record import DENSE, GOLDEN, RECOVERY, RESIZE
from zoo.core.digests import digest
from zoo.core.host import Host
from zoo.core.recipes import GoldenConfig
from zoo.core.reducer import METHODS, Pruner, ReducerConfig
from zoo.core.settings import expected
from zoo.core.tokens import Tokens, rank_scores, tokens_of
from zoo.deploy.runtime import RUNTIMES, Prepared
from zoo.loading.adopt import add_prompts, add_recovery, copy_tower, reduce
from zoo.loading.learned_files import PromptFile, RecoveryFile
from zoo.loading.towers import Tower, reduce_tower, require_predictor

if TYPE_CHECKING:
    from harness.golden.store import Rankings

# Arrays per image of an output: values that metrics read, and the token that each patch ended in.
IMAGE_ARRAYS = ("scores", "token", "detail", "patch_distance", "foreground")
MethodRate = tuple[str, float]  # a method and its keep rate
# Takes examples; returns what takes a row's key and its features of all patches, and returns IoUs of foreground (B, 2).
Judge = Callable[[Sequence[Example]], Callable[[str, Tensor], NDArray[np.float32]]]


class Oracle(Pruner):
    """Prune by the golden importance that came along with the tokens."""

    method = GOLDEN

    def importance(self, index: int, tokens: Tokens, block: Any) -> Tensor:
        """Return what ``run_blocks`` put in."""
        assert tokens.importance is not None
        return tokens.importance


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of a comparison."""

    model: str  # timm name; for ``golden`` a name that no model has, since it needs the answer
    method: str  # registered method, ``dense`` or ``golden``
    keep: float
    vit: Host
    config: dict[str, Any]  # settings as JSON values, with the digest of a predictor
    prepared: Prepared | None = None  # what is run in place of ``vit``, whose tokens then can't be seen
    what: str = ""  # tells rows of the same name apart
    rankings: "Rankings | None" = None  # that a golden row prunes by and others are compared with

    @property
    def key(self) -> str:
        """Name that no other row of a comparison has."""
        return f"{self.model} {self.what}".rstrip()

    @property
    def prompted(self) -> bool:
        """Whether learned visual tokens go along."""
        return self.vit.prompts is not None

    @property
    def stands_alone(self) -> bool:
        """Whether tokens, weights or kernels of its own leave nothing to share with other rows."""
        return self.prompted or RECOVERY in self.config or self.method in (RESIZE, *RUNTIMES)

    @property
    def first_block(self) -> int:
        """First block whose computation differs from the dense tower's."""
        return self.vit.depth if self.vit.reducer is None else self.vit.reducer.first_block


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A model with the prompts that were tuned on it."""

    vit: Host  # maps images to the joint space, with learned visual tokens if there are any
    classifier: Tensor  # (classes, D) unit text features
    file: PromptFile

    @classmethod
    def of(cls, vit: Host, file: PromptFile) -> "Tuned":
        """Give a model the prompts of a file; ValueError if they were tuned on another tower."""
        return cls(vit=add_prompts(vit, file, classify=False), classifier=file.load()["classifier"], file=file)

    @property
    def digest(self) -> str:
        """16 hex digits that tell these prompts from others."""
        return digest(self.file.path)


def known_methods() -> tuple[str, ...]:
    """Return what ``--methods`` takes: dense, every registered method, smaller images, golden."""
    return (DENSE, *sorted(METHODS), RESIZE, GOLDEN)


def require_method(name: str) -> None:
    """Refuse a method that nobody has, by a ValueError."""
    if name not in known_methods():
        raise ValueError(f"method {name!r}: {expected(name, known_methods())}")


def usual_methods() -> tuple[str, ...]:
    """Return the known methods that are measured where none are named."""
    return tuple(name for name in known_methods() if (METHODS[name].by_default if name in METHODS else name != RESIZE))


def variants(tower: Tower, methods: Sequence[str], keeps: Sequence[float]) -> list[Variant]:
    """Make the rows of a dense tower, whose weights all share; raise what ``rows_of`` does."""
    return rows_of(tower, [(m, keep) for m in methods for keep in ((1.0,) if m == DENSE else keeps)])


def rows_of(tower: Tower, pairs: Iterable[MethodRate]) -> list[Variant]:
    """Make the rows of a dense tower, each method with keep rates of its own.

    Raises ValueError for an unknown method, keep rates of one name, or one that a method can't do.
    """
    rows = dict[str, Variant]()
    for method, keep in pairs:
        require_method(method)
        row = make_row(tower, method, {"keep": keep})
        if row.model in rows and method != DENSE:
            raise ValueError(
                f"{row.model} twice, for keep rates {rows[row.model].keep:g} and {keep:g}: give each method "
                "once, and rates of different whole percents"
            )
        rows[row.model] = row
    return list(rows.values())


def require_rows(model: str, pairs: Iterable[MethodRate]) -> None:
    """Refuse methods whose predictor is missing before the weights of a tower of ours are fetched.

    Of other towers it is only known once they are loaded. Raises what ``rows_of`` does.
    """
    for method, keep in pairs:
        require_method(method)
        if method in METHODS:
            require_predictor(model, method, keep)


def make_row(
    tower: Tower, method: str, options: Mapping[str, Any], what: str = "", predictor: Path | None = None
) -> Variant:
    """Make a row of a dense tower by a known method with its ``options``, ``keep`` among them.

    A golden row prunes by golden rankings, which come later; a ``resize`` row is dense on smaller images. ``predictor``
    is a file in place of the tower's own.

    Raises ValueError for options that the method can't do or another tower's predictor, FileNotFoundError without one.
    """
    dense = tower.vit
    if method == DENSE:
        return Variant(model=tower.arch, method=DENSE, keep=1.0, vit=dense, config={}, what=what)
    if method == RESIZE:
        vit = shrink(dense, options["keep"])
        keep, size = math.prod(vit.grid) / math.prod(dense.grid), {"image_size": list(vit.input_size)}
        name = f"{tower.arch}_{method}{round(100 * keep)}"
        return Variant(model=name, method=method, keep=keep, vit=vit.eval(), config=size, what=what)
    file = None
    if method == GOLDEN:
        vit, like = reduce(dense, method=None), next(dense.block_modules[0].parameters())
        vit.reducer = Oracle(
            ReducerConfig(**{"reduce_at": (GoldenConfig.block,), **options}),
            dense.spec(device=like.device, dtype=like.dtype),
        )
    else:
        vit, file = reduce_tower(tower, method, options, predictor)
    assert vit.reducer is not None
    keep, config = options["keep"], vit.reducer.config.plain()
    if file is not None:
        config |= {"predictor": digest(file.path)}
    name = f"{tower.arch}_{method}{round(100 * keep)}"
    return Variant(model=name, method=method, keep=keep, vit=vit.eval(), config=config, what=what)


def shrink(dense: Host, keep: float) -> Host:
    """Return a dense tower that makes images smaller, so that they have about a share ``keep`` of the patches.

    Sides keep their proportion to within a patch. Raises ValueError for a tower whose image size can't be set.
    """
    resizable: Any = copy_tower(dense, ["pos_embed"])
    patches = getattr(dense, "patch_embed", None)
    if not hasattr(dense, "set_input_size") or not getattr(patches, "strict_img_size", False):
        kind = type(dense).__name__
        raise ValueError(f"method {RESIZE!r}: the image size of this {kind} can't be set; expected a tower of timm's")
    rows, columns = dense.grid
    sizes = [(round(rows * width / columns) - less, width) for width in range(1, columns + 1) for less in (0, 1)]
    height, width = min((s for s in sizes if s[0] > 0), key=lambda s: (abs(s[0] * s[1] - keep * rows * columns), -s[0]))
    side = [pixels // count for pixels, count in zip(dense.input_size, dense.grid, strict=True)]
    resizable.set_input_size(img_size=(height * side[0], width * side[1]))
    resizable.patch_embed.register_forward_pre_hook(_shrink_images)
    host: Host = resizable
    return host


def _shrink_images(patch_embed: Any, images: tuple[Tensor]) -> tuple[Tensor]:
    """Bring images (B, 3, H, W) to the size that patches are cut from."""
    return (F.interpolate(images[0], tuple(patch_embed.img_size), mode="bicubic", antialias=True),)


def recovered_rows(tower: Tower, paths: Sequence[Path]) -> list[Variant]:
    """Make a row of each recovery of a tower, whose file says method and settings."""
    rows = []
    for file in map(RecoveryFile.read, paths):
        if (file.model, file.tag) == (tower.arch, tower.tag):
            mark = digest(file.path)
            row = make_row(tower, file.method, file.options, f"with recovery {mark}")
            rows.append(replace(row, vit=add_recovery(row.vit, file).eval(), config=row.config | {RECOVERY: mark}))
    return rows


@dataclass(frozen=True, kw_only=True)
class RowOutput:
    """What a row makes of n images, in image order."""

    features: Tensor  # (n, D), unit, float32, on the CPU
    final_tokens: int | None  # patch tokens left at the end; None if each image has a number of its own
    # By `IMAGE_ARRAYS`, see `metrics.PER_IMAGE`; and token (n, N) int16, the position of the token that a patch ended
    # in, -1 if it was dropped. Nothing of these where nothing was reduced.
    per_image: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def part(self, positions: Sequence[int] | NDArray[np.int64]) -> "RowOutput":
        """Return the output for the images at these positions, in this order."""
        at = np.array(positions, dtype=np.int64)
        per_image = {name: values[at] for name, values in self.per_image.items()}
        return replace(self, features=self.features[at], per_image=per_image)

    @classmethod
    def join(cls, parts: Sequence["RowOutput"]) -> "RowOutput":
        """Join outputs of one row for one set of images after the other."""
        names = [name for name in IMAGE_ARRAYS if all(name in part.per_image for part in parts)]
        return cls(
            features=torch.cat([part.features for part in parts]),
            final_tokens=parts[0].final_tokens,
            per_image={name: np.concatenate([part.per_image[name] for part in parts]) for name in names},
        )


@torch.inference_mode()
def run(
    rows: Sequence[Variant],
    images: Tensor,
    golden: Mapping[str, Tensor] = MappingProxyType({}),
    judge: Callable[[str, Tensor], NDArray[np.float32]] | None = None,
) -> dict[str, RowOutput]:
    """Run all rows on a batch (B, C, H, W), the dense one before those that are compared with it.

    ``golden`` is the golden importance (B, N) of the images by a golden row's key; ``judge`` takes a row's key and
    features of all patches (B, N, D), and returns IoUs of foreground (B, 2).
    """
    outputs, dense = dict[str, RowOutput](), None
    for row in rows:
        if row.prepared is not None:
            features = row.prepared.call(images.to(row.prepared.dtype)).float().cpu()
            outputs[row.key] = RowOutput(features=F.normalize(features, dim=-1), final_tokens=math.prod(row.vit.grid))
    for row, tokens in run_blocks([row for row in rows if row.key not in outputs], images, golden):
        cells, per_image = tokens.grid[0] * tokens.grid[1], dict[str, NDArray[Any]]()
        if tokens.history:
            scores = rank_scores(tokens.history, cells)
            token = tokens_of(tokens.history, cells).short()
            per_image = {"scores": scores.cpu().numpy(), "token": token.cpu().numpy()}
        if row.method != RESIZE and (row.method == DENSE or dense is not None or judge is not None):
            patches = patch_features(row.vit, tokens)
            if row.method == DENSE:
                dense = patches
            elif dense is not None:
                distance = (patches - dense).square().sum(dim=2).mean(dim=1, keepdim=True) / 2
                per_image["patch_distance"] = distance.cpu().numpy()
            if judge is not None:
                per_image["foreground"] = judge(row.key, patches)
        features = F.normalize(row.vit.finish(tokens).float(), dim=-1).cpu()
        outputs[row.key] = RowOutput(features=features, final_tokens=tokens.patch_count, per_image=per_image)
    return outputs


def run_blocks(
    rows: Sequence[Variant], images: Tensor, golden: Mapping[str, Tensor] = MappingProxyType({})
) -> Iterator[tuple[Variant, Tokens]]:
    """Yield each row with the tokens that leave its last block; blocks that rows share run once."""
    shared = _shared([row for row in rows if not row.stands_alone], images)
    for row in rows:
        start = 0 if row.stands_alone else row.first_block
        tokens = row.vit.embed(images) if row.stands_alone else shared[start]
        if row.method == GOLDEN:
            tokens = tokens._replace(importance=golden[row.key])
        yield row, row.vit.advance(tokens, start)[0]


def patch_features(vit: Host, tokens: Tokens) -> Tensor:
    """Return unit features of all patches, (B, N, D) float32, of tokens that left the last block."""
    unit = F.normalize(vit.normalise(tokens.x).float(), dim=-1)
    return tokens._replace(x=unit).unmerge()[:, tokens.prefix :]


def _shared(rows: Sequence[Variant], images: Tensor) -> dict[int, Tokens]:
    """Return what enters each block at which one of the rows parts from the dense tower."""
    if not rows:
        return {}
    dense = rows[0].vit if rows[0].vit.reducer is None else reduce(rows[0].vit, method=None)
    entering, done = {0: dense.embed(images)}, 0
    for stop in sorted({row.first_block for row in rows} - {0}):
        entering[stop], _ = dense.advance(entering[done], done, stop)
        done = stop
    return entering


@dataclass(frozen=True, kw_only=True)
class OutputProvenance(ShardProvenance):
    """What stored outputs are of."""

    run: str  # digest of rows and images
    rows: int


def _to_table(outputs: Iterable[RowOutput]) -> Any:
    """Return outputs of several rows for the same images as a table, a line per image."""
    columns = {
        f"{name} {at}": to_lists(np.asarray(values))
        for at, output in enumerate(outputs)
        for name, values in {"features": output.features, **output.per_image}.items()
    }
    return pa.table(columns)


def _from_shard(shard: Shard[OutputProvenance]) -> list[RowOutput]:
    """Return the output of each row for a shard's images; notes are the patch tokens left at the end."""
    names, outputs = shard.table.column_names, []
    for at, final_tokens in enumerate(shard.notes):
        per_image = {name: from_lists(shard.table, f"{name} {at}") for name in IMAGE_ARRAYS if f"{name} {at}" in names}
        features = torch.tensor(from_lists(shard.table, f"features {at}"))
        outputs.append(RowOutput(features=features, final_tokens=final_tokens, per_image=per_image))
    return outputs


def _check(shard: Shard[OutputProvenance]) -> None:
    if len(_from_shard(shard)) != shard.provenance.rows or len(shard.table) != shard.covers:
        raise BrokenShardError(f"doesn't hold {shard.provenance.rows} rows on {shard.covers} images")


OUTPUTS = ShardKind(key="outputs", what="outputs", command="compare", provenance=OutputProvenance, check=_check)


class OutputCache:
    """Outputs of rows of one dense tower, so that no image is run twice."""

    def __init__(
        self,
        preprocess: Any,
        progress: Progress,
        folder: Path | None = None,
        fit_probes: Callable[[], Judge | None] = lambda: None,
    ) -> None:
        """Start empty; ``preprocess`` maps a PIL image to (C, H, W).

        ``folder`` keeps outputs of one dataset, tower and machine for the run that follows a stopped one. Probes are
        fitted when images are first run, and judge the foreground of all images.
        """
        self.preprocess, self.progress, self.folder = preprocess, progress, folder
        self._fit_probes = functools.cache(fit_probes)
        self._outputs: dict[str, RowOutput] = {}
        self._places: dict[str, dict[str, int]] = {}

    def find(self, rows: Sequence[Variant], split: Split, label: str) -> dict[str, RowOutput]:
        """Return the outputs of rows on a split, by key; rows with learned visual tokens are run each time.

        Raises what ``run_split`` does.
        """
        if any(row.prompted for row in rows):
            return self._run(rows, split, label)
        ids = split.image_ids
        known = [self._places.get(row.key, {}) for row in rows]
        if missing := [i for i, name in enumerate(ids) if any(name not in places for places in known)]:
            for key, output in self._run(rows, split.subset(missing), label).items():
                places = self._places.setdefault(key, {})
                new = [at for at, i in enumerate(missing) if ids[i] not in places]
                places |= {ids[missing[at]]: len(places) + place for place, at in enumerate(new)}
                earlier = [self._outputs[key]] if key in self._outputs else []
                self._outputs[key] = RowOutput.join([*earlier, output.part(new)])
        return {row.key: self.of(row.key, ids) for row in rows}

    def of(self, key: str, image_ids: Sequence[str]) -> RowOutput:
        """Return a row's output on these images, in their order; it was run on all of them."""
        places = self._places[key]
        return self._outputs[key].part([places[name] for name in image_ids])

    def forget(self) -> None:
        """Remove what is kept for the next run, which needs it no more."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another run's are there, or none
                self.folder.parent.rmdir()

    def _run(self, rows: Sequence[Variant], split: Split, label: str) -> dict[str, RowOutput]:
        label, count = f"{label}, images", len(split)
        if self.folder is None:
            judge = self._fit_probes()
            with self.progress.task(label, count) as update:
                return run_split(rows, split, self.preprocess, update, judge)
        golden = [_importance(row, split.image_ids).numpy().tobytes() for row in rows if row.method == GOLDEN]
        settings = [git_commit(), *([row.key, row.config, _code(row)] for row in rows)]
        origin = OutputProvenance(run=digest(settings, split.image_ids, *golden), rows=len(rows))
        columns = [f"{name} {at}" for at in range(len(rows)) for name in ("features", *IMAGE_ARRAYS)]
        kind = replace(OUTPUTS, raw=tuple(columns))
        # A shard is a batch, as the last bits of features depend on what else is in it.
        store = Store(self.folder / origin.run, kind, size=few_shot.BATCH, total=count)
        with store.open(self.progress.say):
            todo = store.missing(origin)
            judge = self._fit_probes() if todo else None
            done = count - sum(len(store.positions(index)) for index in todo)
            with self.progress.task(label, count, done) as update:
                for index in todo:
                    batch = split.subset(store.positions(index))
                    outputs = run_split(rows, batch, self.preprocess, judge=judge).values()
                    store.write(index, _to_table(outputs), origin, [output.final_tokens for output in outputs])
                    update(done := done + len(batch))
            shards = [_from_shard(shard) for shard in OUTPUTS.shards(store.folder)]
        return {row.key: RowOutput.join(parts) for row, *parts in zip(rows, *shards, strict=True)}


def _code(row: Variant) -> str | None:
    """Return a digest of the file with a row's method, whose author may stop a run to mend it; None without a file."""
    with contextlib.suppress(OSError, TypeError):  # such as one from a notebook
        return digest(Path(inspect.getfile(type(row.vit.reducer))))
    return None


def run_split(
    rows: Sequence[Variant],
    split: Split,
    preprocess: Any,
    on_batch: Callable[[int], None] = lambda _: None,
    judge: Judge | None = None,
) -> dict[str, RowOutput]:
    """Run variants of one dense tower, on its device and in its precision, over a split.

    ``preprocess`` maps a PIL image to (C, H, W). ``on_batch`` takes the number of images done. With a ``judge`` all
    images have masks. Raises ValueError for a golden row and an image without golden ranking, before any is drawn.
    """
    like, done = next(rows[0].vit.parameters()), 0
    oracle = {row.key: _importance(row, split.image_ids).to(like.device) for row in rows if row.method == GOLDEN}
    parts: dict[str, list[RowOutput]] = {row.key: [] for row in rows}
    dense = {row.key for row in rows if row.method == DENSE}
    for examples, images in batches(split, preprocess):
        batch = {key: values[done : done + len(examples)] for key, values in oracle.items()}
        height, width = images.shape[-2:]
        detail = np.array([[measure_detail(example.image, (width, height))] for example in examples], dtype=np.float32)
        judge_batch = None if judge is None else judge(examples)
        for key, output in run(rows, images.to(like), batch, judge_batch).items():
            per_image = {**output.per_image, **({"detail": detail} if key in dense else {})}
            parts[key].append(replace(output, per_image=per_image))
        on_batch(done := done + len(examples))
    return {key: RowOutput.join(part) for key, part in parts.items()}


def _importance(row: Variant, image_ids: Sequence[str]) -> Tensor:
    """Return the golden importance of some images, (n, N)."""
    assert row.rankings is not None
    importance = row.rankings.of(image_ids)
    if (unranked := np.isnan(importance).any(axis=1)).any():
        raise ValueError(f"no golden ranking for image {image_ids[int(np.flatnonzero(unranked)[0])]!r}")
    return torch.from_numpy(importance)


def captions_of(dataset: Dataset, image_ids: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Return the distinct texts of some images, and pairs (p, 2) of an image and a text that describes it."""
    places: dict[str, int] = {}
    pairs = [
        (image, places.setdefault(text, len(places)))
        for image, name in enumerate(image_ids)
        for text in dict.fromkeys(dataset.captions_of(name))
    ]
    return list(places), np.array(pairs, dtype=np.int64)


def feature_probe(features: Tensor) -> tuple[float, ...]:
    """Return the images' mean unit feature in eight fixed directions of random signs.

    The probe moves where all models get wrong images alike, which no figure relative to the dense model shows.
    """
    signs = np.random.RandomState(0).choice([-1.0, 1.0], size=(features.shape[1], 8))  # frozen by numpy
    mean = features.double().mean(dim=0).numpy() @ signs / math.sqrt(features.shape[1])
    return tuple(mean.tolist())
