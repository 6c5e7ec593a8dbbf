"""The models that stand side by side, sharing one dense tower's weights, and what they make of images."""

import contextlib
import functools
import inspect
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from harness.records.record import DENSE, GOLDEN, OPTIMIZED, RECOVERY
from zoo.core.digests import digest
from zoo.core.host import Host
from zoo.core.recipes import GoldenConfig
from zoo.core.reducer import METHODS, Pruner, ReducerConfig
from zoo.core.settings import best_precision, expected
from zoo.core.tokens import Tokens, rank_scores, tokens_of
from zoo.deploy.optimized import optimize
from zoo.loading.adopt import add_prompts, reduce
from zoo.loading.learned_files import PromptFile
from zoo.loading.recovery_file import RecoveryFile, add_recovery
from zoo.loading.towers import Tower, reduce_tower, require_predictor

if TYPE_CHECKING:
    from harness.golden.store import Rankings

# Of an outcome, where there is any: a row of values per image.
PATCHWISE = ("scores", "token", "detail", "patch_distance", "foreground")
COLUMNS = ("features", *PATCHWISE)
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
    what: str = ""  # tells rows of the same name apart
    rankings: "Rankings | None" = None  # that a golden row prunes by and others are compared with

    @property
    def key(self) -> str:
        """What no other row of a comparison is called."""
        return f"{self.model} {self.what}".rstrip()

    @property
    def prompted(self) -> bool:
        """Whether learned visual tokens go along."""
        return self.vit.prompts is not None

    @property
    def stands_alone(self) -> bool:
        """Whether tokens or weights of its own leave nothing to share with other rows."""
        return self.prompted or RECOVERY in self.config or self.method == OPTIMIZED

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
    """Return what ``--methods`` takes: dense, every registered method, golden."""
    return (DENSE, *sorted(METHODS), GOLDEN)


def require_method(name: str) -> None:
    """Refuse a method that nobody has, by a ValueError."""
    if name not in known_methods():
        raise ValueError(f"method {name!r}: {expected(name, known_methods())}")


def usual_methods() -> tuple[str, ...]:
    """Return the known methods that are measured where none are named."""
    return tuple(name for name in known_methods() if name not in METHODS or METHODS[name].by_default)


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
    pairs = list(pairs)
    for method, _ in pairs:
        require_method(method)
    for method, keep in pairs:
        if method in METHODS:
            require_predictor(model, method, keep)


def make_row(
    tower: Tower, method: str, options: Mapping[str, Any], what: str = "", predictor: Path | None = None
) -> Variant:
    """Make a row of a dense tower by a known method with its ``options``, ``keep`` among them.

    A golden row prunes by golden rankings, which come later. ``predictor`` is a file in place of the tower's own.
    Raises ValueError for options that the method can't do or another tower's predictor, FileNotFoundError without one.
    """
    dense = tower.vit
    if method == DENSE:
        return Variant(model=tower.arch, method=DENSE, keep=1.0, vit=dense, config={}, what=what)
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


def optimized_row(dense: Variant) -> Variant:
    """Make a row of the dense tower by `zoo.optimize` in the fastest precision of its device; raise what that does."""
    dtype = best_precision(next(dense.vit.parameters()).device)
    vit = optimize(dense.vit, dtype=dtype)
    return replace(dense, method=OPTIMIZED, vit=vit, config={"dtype": dtype}, what=OPTIMIZED)


def recovered_rows(tower: Tower, paths: Sequence[Path]) -> list[Variant]:
    """Make a row of each recovery of a tower, whose file says method and settings."""
    rows = []
    for file in map(RecoveryFile.read, paths):
        if (file.model, file.tag) == (tower.arch, tower.tag):
            row, mark = make_row(tower, file.method, file.options), digest(file.path)
            vit, config = add_recovery(row.vit, file).eval(), row.config | {RECOVERY: mark}
            rows.append(replace(row, vit=vit, config=config, what=f"with recovery {mark}"))
    return rows


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A variant on a set of n images, in image order; None where nothing was reduced."""

    features: Tensor  # (n, D), unit, float32, on the CPU
    scores: NDArray[np.float32] | None = None  # (n, N), higher = kept longer
    final_tokens: int  # patch tokens left at the end
    token: NDArray[np.int16] | None = None  # (n, N) position of the token that a patch ended in, -1 if dropped
    detail: NDArray[np.float32] | None = None  # (n, 1) of the images, see `measure_detail`; of the dense row alone
    # (n, 1), 1 - cosine of each patch's features to the dense row's, mean over patches; none without a dense row
    patch_distance: NDArray[np.float32] | None = None
    foreground: NDArray[np.float32] | None = None  # (n, 2), see `Judge`; none without probes

    def part(self, positions: Sequence[int] | NDArray[np.int64]) -> "Outcome":
        """Return the outcome on the images at these positions, in this order."""
        at = np.array(positions, dtype=np.int64)
        values: dict[str, Any] = {name: own[at] for name in COLUMNS if (own := getattr(self, name)) is not None}
        return replace(self, **values)

    @classmethod
    def join(cls, parts: Sequence["Outcome"]) -> "Outcome":
        """Join outcomes of one variant on one set of images after the other."""
        every = {name: [getattr(part, name) for part in parts] for name in PATCHWISE}
        patchwise = {name: np.concatenate(own) for name, own in every.items() if all(v is not None for v in own)}
        features = torch.cat([part.features for part in parts])
        return cls(features=features, final_tokens=parts[0].final_tokens, **patchwise)


@torch.inference_mode()
def run(
    rows: Sequence[Variant],
    images: Tensor,
    golden: Mapping[str, Tensor] = MappingProxyType({}),
    judge: Callable[[str, Tensor], NDArray[np.float32]] | None = None,
) -> dict[str, Outcome]:
    """Run all rows on a batch (B, C, H, W), the dense one before those that are compared with it.

    ``golden`` is the golden importance (B, N) of the images by a golden row's key; ``judge`` takes a row's key and its
    features of all patches, and returns ``Outcome.foreground``.
    """
    found, dense = dict[str, Outcome](), None
    for row, tokens in run_blocks(rows, images, golden):
        cells, patchwise = tokens.grid[0] * tokens.grid[1], {}
        if tokens.history:
            scores = rank_scores(tokens.history, cells)
            token = tokens_of(tokens.history, cells).short()
            patchwise = {"scores": scores.cpu().numpy(), "token": token.cpu().numpy()}
        if row.method == DENSE or dense is not None or judge is not None:
            patches = patch_features(row.vit, tokens)
            if row.method == DENSE:
                dense = patches
            elif dense is not None:
                distance = (patches - dense).square().sum(dim=2).mean(dim=1, keepdim=True) / 2
                patchwise["patch_distance"] = distance.cpu().numpy()
            if judge is not None:
                patchwise["foreground"] = judge(row.key, patches)
        features = F.normalize(row.vit.finish(tokens).float(), dim=-1).cpu()
        found[row.key] = Outcome(features=features, final_tokens=tokens.patch_count, **patchwise)
    return found


def run_blocks(
    rows: Sequence[Variant], images: Tensor, golden: Mapping[str, Tensor] = MappingProxyType({})
) -> Iterator[tuple[Variant, Tokens]]:
    """Yield each row with the tokens that leave its last block; what rows without their own weights share runs once."""
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
class OutcomeProvenance(ShardProvenance):
    """What stored outcomes are of."""

    run: str  # digest of rows and images
    rows: int


def _to_table(found: Iterable[Outcome]) -> Any:
    """Return outcomes of several rows on the same images as a table, a line per image."""
    columns = {f"{name} {at}": getattr(one, name) for at, one in enumerate(found) for name in COLUMNS}
    return pa.table({name: to_lists(np.asarray(own)) for name, own in columns.items() if own is not None})


def _from_shard(shard: Shard[OutcomeProvenance]) -> list[Outcome]:
    """Return the outcome of each row on a shard's images; notes are the patch tokens left at the end."""
    names, found = shard.table.column_names, []
    for at, final_tokens in enumerate(shard.notes):
        own = {name: from_lists(shard.table, f"{name} {at}") for name in COLUMNS if f"{name} {at}" in names}
        features = torch.tensor(own.pop("features"))
        found.append(Outcome(features=features, final_tokens=final_tokens, **own))
    return found


def _check(shard: Shard[OutcomeProvenance]) -> None:
    if len(_from_shard(shard)) != shard.provenance.rows or len(shard.table) != shard.covers:
        raise BrokenShardError(f"doesn't hold {shard.provenance.rows} rows on {shard.covers} images")


OUTCOMES = ShardKind(key="outcomes", what="outcomes", command="compare", provenance=OutcomeProvenance, check=_check)


class OutcomeCache:
    """Outcomes of rows of one dense tower, so that no image is run twice."""

    def __init__(
        self,
        preprocess: Any,
        progress: Progress,
        folder: Path | None = None,
        fit_probes: Callable[[], Judge | None] = lambda: None,
    ) -> None:
        """Start empty; ``preprocess`` maps a PIL image to (C, H, W).

        ``folder`` keeps outcomes for the next run if this one is stopped; it is of one dataset, tower and machine.
        Probes are fitted when images are first run, and judge the foreground of all of them.
        """
        self.preprocess, self.progress, self.folder = preprocess, progress, folder
        self._fit_probes = functools.cache(fit_probes)
        self._outcomes: dict[str, Outcome] = {}
        self._places: dict[str, dict[str, int]] = {}

    def find(self, rows: Sequence[Variant], split: Split, label: str) -> dict[str, Outcome]:
        """Return the outcomes of rows on a split, by key; rows with learned visual tokens are run each time.

        Raises what ``outcomes`` does.
        """
        if any(row.prompted for row in rows):
            return self._run(rows, split, label)
        ids = split.image_ids
        known = [self._places.get(row.key, {}) for row in rows]
        if missing := [i for i, name in enumerate(ids) if any(name not in places for places in known)]:
            for key, outcome in self._run(rows, split.subset(missing), label).items():
                places = self._places.setdefault(key, {})
                new = [at for at, i in enumerate(missing) if ids[i] not in places]
                places |= {ids[missing[at]]: len(places) + place for place, at in enumerate(new)}
                earlier = [self._outcomes[key]] if key in self._outcomes else []
                self._outcomes[key] = Outcome.join([*earlier, outcome.part(new)])
        return {row.key: self.of(row.key, ids) for row in rows}

    def of(self, key: str, image_ids: Sequence[str]) -> Outcome:
        """Return a row's outcome on these images, in their order; it was run on all of them."""
        places = self._places[key]
        return self._outcomes[key].part([places[name] for name in image_ids])

    def forget(self) -> None:
        """Remove what is kept for the next run, which needs it no more."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another run's are there, or none
                self.folder.parent.rmdir()

    def _run(self, rows: Sequence[Variant], split: Split, label: str) -> dict[str, Outcome]:
        label, count = f"{label}, images", len(split)
        if self.folder is None:
            judge = self._fit_probes()
            with self.progress.task(label, count) as update:
                return outcomes(rows, split, self.preprocess, update, judge)
        golden = [_importance(row, split.image_ids).numpy().tobytes() for row in rows if row.method == GOLDEN]
        settings = [git_commit(), *([row.key, row.config, _code(row)] for row in rows)]
        origin = OutcomeProvenance(run=digest(settings, split.image_ids, *golden), rows=len(rows))
        kind = replace(OUTCOMES, raw=tuple(f"{name} {at}" for at in range(len(rows)) for name in COLUMNS))
        # A shard is a batch, as the last bits of features depend on what else is in it.
        store = Store(self.folder / origin.run, kind, size=few_shot.BATCH, total=count)
        with store.open(self.progress.say):
            todo = store.missing(origin)
            judge = self._fit_probes() if todo else None
            done = count - sum(len(store.positions(index)) for index in todo)
            with self.progress.task(label, count, done) as update:
                for index in todo:
                    batch = split.subset(store.positions(index))
                    found = outcomes(rows, batch, self.preprocess, judge=judge).values()
                    store.write(index, _to_table(found), origin, [one.final_tokens for one in found])
                    update(done := done + len(batch))
            shards = [_from_shard(shard) for shard in OUTCOMES.shards(store.folder)]
        return {row.key: Outcome.join(parts) for row, *parts in zip(rows, *shards, strict=True)}


def _code(row: Variant) -> str | None:
    """Return a digest of the file with a row's method, whose author may stop a run to mend it; None without a file."""
    with contextlib.suppress(OSError, TypeError):  # such as one from a notebook
        return digest(Path(inspect.getfile(type(row.vit.reducer))))
    return None


def outcomes(
    rows: Sequence[Variant],
    split: Split,
    preprocess: Any,
    on_batch: Callable[[int], None] = lambda _: None,
    judge: Judge | None = None,
) -> dict[str, Outcome]:
    """Run variants of one dense tower, on its device and in its precision, over a split.

    ``preprocess`` maps a PIL image to (C, H, W). ``on_batch`` takes the number of images done. With a ``judge`` all
    images have masks. Raises ValueError for a golden row and an image without golden ranking, before any is drawn.
    """
    like, done = next(rows[0].vit.parameters()), 0
    oracle = {row.key: _importance(row, split.image_ids).to(like.device) for row in rows if row.method == GOLDEN}
    parts: dict[str, list[Outcome]] = {row.key: [] for row in rows}
    dense = {row.key for row in rows if row.method == DENSE}
    for examples, images in batches(split, preprocess):
        batch = {key: values[done : done + len(examples)] for key, values in oracle.items()}
        height, width = images.shape[-2:]
        detail = np.array([[measure_detail(example.image, (width, height))] for example in examples], dtype=np.float32)
        own = None if judge is None else judge(examples)
        for key, output in run(rows, images.to(like), batch, own).items():
            parts[key].append(replace(output, detail=detail) if key in dense else output)
        on_batch(done := done + len(examples))
    return {key: Outcome.join(part) for key, part in parts.items()}


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

    Unlike what is told relative to the dense model it moves when all models' images are wrong alike.
    """
    signs = np.random.RandomState(0).choice([-1.0, 1.0], size=(features.shape[1], 8))  # frozen by numpy
    mean = features.double().mean(dim=0).numpy() @ signs / math.sqrt(features.shape[1])
    return tuple(mean.tolist())
