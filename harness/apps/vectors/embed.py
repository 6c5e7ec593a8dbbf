"""Embed pictures or texts, shard by shard and resumable, in this process or on Ray."""

import dataclasses
import re
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from itertools import chain, groupby, islice, product
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from harness.apps.vectors.decode import DecodedChunk, Decoders, Item, Transform, join
from harness.apps.vectors.lanes import EmbeddedBatch, LaneRing, Route, pool_budgets, split_preprocessing
from harness.apps.vectors.settings import IMAGES, STORAGES, TEXTS, EmbedJob
from harness.apps.vectors.source import PictureFile, PictureSource, TextSource, open_source
from harness.base.store import (
    BrokenShardError,
    Shard,
    ShardKind,
    ShardProvenance,
    Store,
    from_lists,
    shard_path,
    to_lists,
)
from harness.base.terminal import Progress
from harness.base.workers import Make, make_shards, require_same
from harness.measure.server import call_in_sizes
from zoo.core.adaptive import Adaptive
from zoo.core.digests import digest, fingerprint, weights_digest
from zoo.core.files import write_whole
from zoo.deploy.export import ExportedModel, load_exported
from zoo.deploy.runtime import EAGER, OPTIMIZED, Prepared, find_runtime, run_groups
from zoo.deploy.setup import Setup
from zoo.loading.clip import ClipParts, CompactText
from zoo.loading.preprocessing import build_preprocessing
from zoo.loading.towers import load_tower

NAMES = {IMAGES: "path", TEXTS: "text"}  # columns
# Fields of a setup that a provenance has, too.
SETUP = (
    *("model", "method", "options", "recovery", "budgets", "cost"),
    *("precision", "recipe", "exported", "exported_sha256"),
)
CHUNK = 16  # pictures that a process decodes at a time, or that threads share
DECODING = ".decoding"  # file in a folder while pictures are decoded
*_, INT8, BINARY = STORAGES
CODE_TYPES = dict(zip(STORAGES, (np.float32, np.float16, np.int8, np.uint8), strict=True))
LETTERS = 20  # per token of a text that are tokenized at most
CONTEXT = 512  # tokens of a text, for a tokenizer that doesn't say
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in the description of a function


class Codes(NamedTuple):
    """Embeddings as they are stored, each by itself, so that shards don't depend on one another.

    int8: the largest coordinate is 127, and ``codes`` times their ``scale`` have unit length. binary: bits tell which
    coordinates are above 0, eight to a byte, the first in the highest bit, as `numpy.packbits` has them; an embedding
    is 1 or -1 in each coordinate, by the root of the width.
    """

    storage: str
    width: int  # D
    codes: NDArray[Any]  # (n, D) or, of bits, (n, D / 8 rounded up)
    scale: NDArray[np.float32] | None = None  # (n,) of int8

    @classmethod
    def of(cls, embeddings: NDArray[np.float32], storage: str) -> Self:
        """Encode unit vectors (n, D)."""
        scale, width = None, embeddings.shape[1]
        if storage == BINARY:
            return cls(storage, width, np.packbits(embeddings > 0, axis=1))
        if storage == INT8:
            step = np.abs(embeddings).max(axis=1, keepdims=True) / np.float32(127)
            embeddings = np.rint(embeddings / np.where(step > 0, step, 1))
            scale = 1 / np.maximum(np.linalg.norm(embeddings, axis=1), 1)  # 0 stays 0
        return cls(storage, width, embeddings.astype(CODE_TYPES[storage]), scale)

    @classmethod
    def from_table(cls, table: pa.Table, storage: str, width: int) -> Self:
        """Read the columns of a table."""
        scale = table["scale"].to_numpy() if storage == INT8 else None
        return cls(storage, width, from_lists(table, "embedding"), scale)

    def columns(self) -> dict[str, Any]:
        """Return the columns of a table."""
        columns = {"embedding": to_lists(self.codes)}
        return columns if self.scale is None else columns | {"scale": self.scale}

    def decode(self, rows: Any = slice(None)) -> NDArray[np.float32]:
        """Return embeddings of some rows, or of all, (n, D): those in float32 as they are, others at unit length."""
        codes = self.codes[rows]
        if self.storage == BINARY:
            codes = 2 * np.unpackbits(codes, axis=1, count=self.width).astype(np.int8) - 1
        floats: NDArray[np.float32] = codes.astype(np.float32)
        return floats if self.storage == "float32" else F.normalize(torch.from_numpy(floats), dim=1).numpy()


@dataclass(frozen=True, kw_only=True)
class VectorsProvenance(ShardProvenance):
    """The source, model and settings of embeddings. Two are equal whatever their versions."""

    kind: str  # images or texts
    source: tuple[str, ...]  # as asked for, with absolute paths
    column: str | None = None  # of images in Parquet
    revision: str  # of the source
    count: int  # pictures or texts in it
    model: str  # dense, as `load_tower` takes it, with absolute paths
    method: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    recovery: str | None = None  # its file
    budgets: str | None = None  # their file; column ``keep`` then says what keep rate a picture took
    cost: float | None = None  # mean multiply-adds by the dense tower's that these are to take
    random_weights: bool = False
    weights: str  # `zoo.core.digests.fingerprint` of the image tower
    reducer: str | None = None  # digest of the method's own weights and of budgets, None without
    text_weights: str | None = None  # digest of the text tower's; None of images
    preprocessing: str  # of pictures, in words
    runtime: str  # that ran the image tower
    precision: str  # of the computation
    recipe: str | None = None  # by which the tower was made int8
    exported: str | None = None  # the file that the runtime had the tower in
    exported_sha256: str | None = None
    batch: int  # pictures per pass decide the last bits
    storage: str  # of ``STORAGES``
    width: int

    @property
    def setup(self) -> Setup:
        """The model as it was run."""
        return Setup(runtime=self.runtime, **{name: getattr(self, name) for name in SETUP})


class Bad(NamedTuple):
    """A picture or text without an embedding: its position in the source, its name, why, and its digest if it has."""

    id: int
    name: str
    reason: str
    digest: str = ""


class Vectors(NamedTuple):
    """The embeddings of consecutive pictures or texts."""

    ids: NDArray[np.int64]  # (n,) positions in the source, ascending; of the bad ones there is no row
    names: Sequence[str]  # (n,) paths or texts
    codes: Codes  # of n embeddings, in the provenance's storage
    provenance: VectorsProvenance
    bad: Sequence[Bad]
    digests: Sequence[str]  # (n,), 16 hex digits over a picture's bytes as they were read; "" of a text

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """(n, D), of unit length but for rounding."""
        return self.codes.decode()


def _from_shard(shard: Shard[VectorsProvenance]) -> Vectors:
    provenance, columns = shard.provenance, shard.table
    codes = Codes.from_table(columns, provenance.storage, provenance.width)
    ids, names = columns["id"].to_numpy(), columns[NAMES[provenance.kind]].to_pylist()
    digests = columns["digest"].to_pylist() if provenance.kind == IMAGES else [""] * len(names)
    return Vectors(ids, names, codes, provenance, [Bad(*note) for note in shard.notes], digests)


def _check(shard: Shard[VectorsProvenance]) -> None:
    """Refuse a shard with missing rows, or with rows that aren't embeddings of its storage and width."""
    vectors = _from_shard(shard)
    covered = sorted([*vectors.ids.tolist(), *(bad.id for bad in vectors.bad)])
    if covered != list(range(shard.first, shard.first + shard.covers)):
        raise BrokenShardError(f"doesn't hold the {shard.covers} from {shard.first} on")
    storage, width, codes, scale = vectors.codes
    if codes.dtype != CODE_TYPES[storage] or codes.shape[1] != (-(-width // 8) if storage == BINARY else width):
        raise BrokenShardError("its columns aren't as they were written")
    if not np.isfinite(codes if scale is None else scale).all():
        raise BrokenShardError("an embedding is not finite")


VECTORS = ShardKind(
    key="vectors", what="embeddings", command="embed", provenance=VectorsProvenance, check=_check, raw=("embedding",)
)


def read_vectors(folder: Path, say: Callable[[str], object] = warnings.warn) -> Iterator[Vectors]:
    """Yield the shards of a folder, one in memory at a time; ``say`` in the end how much is missing, if any.

    Raises as `ShardKind.shards`.
    """
    covered = 0
    try:
        for shard in VECTORS.shards(folder):
            covered += shard.covers
            yield _from_shard(shard)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; make them with: patchrank embed SOURCE --output DIR") from error
    if covered < shard.provenance.count:
        say(
            f"{str(folder)!r} covers {covered:,} of {shard.provenance.count:,} {shard.provenance.kind}: the "
            f"`{VECTORS.command}` command isn't finished; the same command goes on"
        )


def errors_path(folder: Path) -> Path:
    """Return the file that lists the bad items of a folder: beside the folder, whose files readers take for shards."""
    folder = folder.absolute()
    return folder.with_name(f"{folder.name}.errors.parquet")


def _write_errors(folder: Path, kind: str) -> int:
    """List the bad pictures or texts of all shards in one file, if there are any, and return their number."""
    bad = [Bad(*note) for metadata in VECTORS.facts(folder) for note in metadata["notes"]]
    if not bad:
        errors_path(folder).unlink(missing_ok=True)
        return 0
    ids, names, reasons, _ = zip(*bad, strict=True)
    pq.write_table(pa.table({"id": ids, NAMES[kind]: names, "reason": reasons}), sink := pa.BufferOutputStream())
    write_whole(errors_path(folder), bytes(sink.getvalue()))
    return len(bad)


class Encoder:
    """A model as a setup says, on a device; its text tower, if any, stays eager and in float32.

    ``transform`` is what is done picture by picture; ``forward`` does the rest. Other attributes are as of
    `VectorsProvenance`.
    """

    reducer: str | None = None
    why_eager = ""  # why `zoo.optimize` refuses the tower
    prepared: Prepared | None

    def __init__(
        self,
        setup: Setup,
        *,
        random_weights: bool = False,
        device: str = "cpu",
        batch: int = 1,
        sizes: Sequence[int] = (),
    ) -> None:
        """Load the model, for batches of so many pictures where the runtime fixes them.

        With ``sizes``, ascending up to ``batch``, every batch is run in these, see `call_in_sizes`, and each has run
        once. Raise what ``Setup.load``, ``Setup.prepare`` and ``load_exported`` do.
        """
        self.setup, self.device, self.runtime = setup, device, setup.runtime
        if setup.file is not None and random_weights:
            raise ValueError(f"--random-weights with {setup.name}: an exported file has weights; leave the flag out")
        preprocess = self._load_tower(random_weights, batch) if setup.file is None else self._load_file(setup.file)
        self.preprocessing = " ".join(_ADDRESS.sub("", repr(preprocess)).split())
        self.transform, self._scale = split_preprocessing(preprocess, device)
        assert self.prepared is not None
        self.adaptive, parts = self.prepared.adaptive, _parts(self.prepared)
        self.budgets = range(len(parts))
        self._calls = [dict.fromkeys(sizes, part.call) for part in parts]
        if parts[0].batch is not None:
            for size in sizes:
                again = parts if size == batch else _parts(self._prepare(size))
                for calls, part in zip(self._calls, again, strict=True):
                    calls[size] = part.call
        for size, budget in product(sizes or (1,), self.budgets):
            self.width = self.forward(torch.zeros(size, 3, *self._size, device=device), budget).shape[1]

    def _load_tower(self, random_weights: bool, batch: int) -> Transform:
        """Load a tower by name, and return its preprocessing."""
        tower = self.setup.load(random_weights=random_weights)
        learned = {name: value for name, value in tower.vit.state_dict().items() if name.startswith("reducer.")}
        self.weights = fingerprint(tower.vit)
        self.reducer = weights_digest(learned) if learned else None
        if isinstance(adaptive := tower.vit.reducer, Adaptive):
            self.reducer = digest(self.reducer, adaptive.config.plain())
        self._vit, self._size, self._text = tower.vit.to(self.device).eval(), tower.vit.input_size, tower.require_clip
        self.has_text = tower.clip is not None
        self.prepared = self._prepare(batch)
        if self.why_eager:
            self.runtime = EAGER
        return tower.preprocess

    def _prepare(self, batch: int) -> Prepared:
        """Prepare the tower for batches of so many pictures where the runtime fixes them."""
        example = torch.zeros(batch, 3, *self._size, device=self.device)
        prepared, self.why_eager = self.setup.prepare(self._vit, example)
        return prepared

    def _load_file(self, file: Path) -> Transform:
        """Load an exported file, and return its preprocessing."""
        find_runtime(self.runtime).require(self.setup.precision, self.device, loading=True)
        model = load_exported(file)
        if model.preprocessing is None or model.image_size is None:
            lack = f"{file.name}.json doesn't say how pictures are prepared"
            raise ValueError(f"{lack}; write it with `patchrank export`")
        self.weights, self._size, self.prepared = model.digest[:16], model.image_size, model.prepared
        self.has_text, self._text = model.text_weights is not None, partial(_text_tower, model)
        return build_preprocessing(model.preprocessing)

    def release(self) -> None:
        """Take the image tower off the device; nothing is embedded any more."""
        self.prepared = self.adaptive = None
        self._calls.clear()
        if self.setup.file is None:
            self._vit.cpu()

    @cached_property
    def clip(self) -> ClipParts:
        """The text tower on the device, with its tokenizer; ValueError without one."""
        clip = self._text()
        clip.model.text.to(self.device)
        return clip

    @property
    def text_weights(self) -> str:
        """Digest of the text tower's weights."""
        return weights_digest(self.clip.model.text.state_dict())

    def pictures(self, pixels: Tensor, budget: int | None = None) -> NDArray[np.float32]:
        """Embed pictures as ``transform`` makes them as unit vectors (n, D); raise what ``forward`` and ``unit`` do."""
        return self.unit(self.forward(pixels.to(self.device), budget).cpu())

    def _scaled(self, pixels: Tensor) -> Tensor:
        if pixels.dtype != torch.uint8:
            return pixels
        assert self._scale is not None
        return self._scale(pixels)

    @torch.inference_mode()
    def assign(self, pixels: Tensor) -> Tensor:
        """Return the budget of each picture (n, ...) as ``transform`` makes them, (n,); 0 if all have one keep rate."""
        if self.adaptive is None:
            return torch.zeros(len(pixels), dtype=torch.long)
        return self.adaptive.assign(self._scaled(pixels.to(self.device)))

    @torch.inference_mode()
    def forward(self, pixels: Tensor, budget: int | None = None) -> Tensor:
        """Map pictures on the device, preprocessed or as ``transform`` makes them, to features (n, D) float32 there.

        All are of a ``budget``, or take their own. Raise ValueError for too little memory.
        """
        assert self.prepared is not None
        pixels = self._scaled(pixels)
        if budget is None and self.adaptive is not None:
            return run_groups(self.adaptive.assign(pixels), pixels, lambda number, some: self.forward(some, number))
        part, calls = _parts(self.prepared)[budget or 0], self._calls[budget or 0]
        count, pixels = len(pixels), pixels.to(part.dtype)
        try:
            features = call_in_sizes(calls, pixels) if calls else part.call(pixels)
        except torch.OutOfMemoryError as error:
            less = max(1, count // 2)
            raise ValueError(f"out of memory on {self.device} with --batch {count}: try {less}") from error
        return features.float()

    def unit(self, features: Tensor) -> NDArray[np.float32]:
        """Return features (n, D) at unit length; raise ValueError if the tower overflowed."""
        if not features.isfinite().all():
            raise ValueError(f"embeddings overflowed in {self.setup.precision}; use --precision bfloat16 or float32")
        return F.normalize(features, dim=-1).numpy()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> tuple[NDArray[np.float32] | None, dict[int, str]]:
        """Embed texts in the joint space, cut to what the tower reads; raise ValueError if there is none.

        Return unit vectors (n, D), None if none can be embedded, and why some rows mean nothing, by position.
        """
        clip = self.clip
        rows, wrong = dict[int, Tensor](), dict[int, str]()
        most = LETTERS * (getattr(clip.tokenizer, "context_length", None) or CONTEXT)
        for place, text in enumerate(texts):
            try:
                if not text:
                    raise ValueError("the text is empty")
                tokens = clip.tokenizer([text[:most]]).to(self.device)
                if isinstance(clip.model.text, CompactText):
                    clip.model.text.rows(tokens)
                rows[place] = tokens
            except ValueError as error:
                wrong[place] = str(error)
        if not rows:
            return None, wrong
        some = next(iter(rows.values()))  # fills the places of the others: the size of a batch moves the last bits
        features = clip.model.encode_text(torch.cat([rows.get(place, some) for place in range(len(texts))]))
        return self.unit(features.float().cpu()), wrong


def _parts(prepared: Prepared) -> tuple[Prepared, ...]:
    """Return the models of all budgets; of a model with one keep rate, itself."""
    return (prepared,) if prepared.adaptive is None else prepared.adaptive.each


def _text_tower(model: ExportedModel) -> ClipParts:
    """Load the text tower that belongs to an exported file; ValueError if there is none, or if its weights changed."""
    if model.tower is None or model.text_weights is None:
        raise ValueError(f"{model.path.name} has no text tower, so it takes no words; embed pictures")
    clip = load_tower(model.tower).require_clip()
    if weights_digest(clip.model.text.state_dict()) != model.text_weights:
        raise ValueError(f"{model.tower} has other text weights now than when {model.path.name} was written")
    return clip


class Embedded(NamedTuple):
    """The result of a job."""

    path: Path
    total: int  # pictures or texts in the source
    bad: int  # of them, without an embedding
    errors: Path | None  # the list of these, if there are any
    # Pictures per second of this run that all decoding processes can read, the models embed, or be copied to these.
    rates: dict[str, float]
    binds: str | None  # the slowest of the three; None if nothing was left to do


def embed(job: EmbedJob, progress: Progress) -> Embedded:
    """Embed and write shards; go on where an earlier call with the same job stopped.

    However a process ends, at most the shards in work are lost, and those that are made in their place are equal to the
    last byte, on the same machine with as many threads.

    Raises:
        ValueError: a setting that doesn't fit, a folder with other embeddings, no picture that can be read, pictures
            that change meanwhile, or a failure of a worker.
        FileNotFoundError: no weights.
        OSError: a shard can't be written, for instance for lack of room.
    """
    mark = job.out.absolute() / DECODING
    if job.decoders is None and job.processes == 0 and mark.exists():
        progress.say("the last run crashed or was killed: another process decodes, so that no picture can end this one")
        job = dataclasses.replace(job, decoders=1)
    embedder = Embedder(job)
    total, store = len(job.source), embedder.store
    if why := embedder.encoder.why_eager:
        progress.say(f"{job.setup.name} runs as it is: {why}")
    spent = defaultdict[str, float](float)
    with store.open(progress.say):
        embedder.take_revision(progress)
        todo = store.missing(embedder.provenance)
        begun = total - sum(len(store.positions(index)) for index in todo)
        if todo:
            start = partial(_start, embedder.job, embedder.provenance)
            parts = make_shards(embedder.job, todo, embedder.make, start=start, release=embedder.encoder.release)
            title = f"embeddings by {job.setup.name}"
            with progress.task(title, total, begun, job.kind) as show, embedder.decoders, _mark(mark):
                for part in parts:
                    for name, value in part.items():
                        spent[name] += value
                    show(begun + spent["count"])
        bad = _write_errors(job.out, job.kind)
        if todo:
            _require_unchanged(job)
    errors = errors_path(job.out) if bad else None
    if bad == total:
        raise ValueError(f"none of the {total} {job.kind} can be embedded; {str(errors)!r} says why")
    workers = job.workers or 1
    at_a_time = {"decoding": max(1, job.processes) * workers, "copying": workers, "model": workers}
    seconds = {name: spent[f"{name}_s"] / count for name, count in at_a_time.items()}
    rates = {name: spent["count"] / value for name, value in seconds.items() if value > 0}
    return Embedded(job.out, total, bad, errors, rates, min(rates, key=rates.__getitem__, default=None))


@contextmanager
def _mark(path: Path) -> Iterator[None]:
    """Leave a file behind if the process ends without an exception of Python's, as a damaged picture may make it."""
    path.touch()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _require_unchanged(job: EmbedJob) -> None:
    """Refuse pictures that have changed since the job began."""
    if isinstance(job.source, TextSource):  # read at once
        return
    if open_source(job.source.words, column=job.source.column).revision != job.source.revision:
        remedy = "the same command says what changed, or goes on if nothing but times did"
        raise ValueError(f"the pictures changed while they were embedded, and finished shards are kept; {remedy}")


def _find_change(store: Store[VectorsProvenance], count: int, source: PictureSource, progress: Progress) -> str | None:
    """Say where pictures differ from the ``count`` that whole shards were made of; None if nothing but times does."""
    changes = [] if len(source) == count else [f"{count:,} then, {len(source):,} now"]
    with progress.task("comparing pictures", count) as update:
        for index in store.present:
            vectors = _from_shard(VECTORS.read(shard_path(store.folder, index), index))
            rows = [*zip(vectors.ids.tolist(), vectors.names, vectors.digests, strict=True)]
            rows = sorted(rows + [(bad.id, bad.name, bad.digest) for bad in vectors.bad])
            places = range(rows[0][0], rows[-1][0] + 1)
            for (_, name, known), picture in zip(rows, source.pictures(places), strict=False):
                if picture.path != name:
                    return ", ".join([*changes, f"{picture.path!r} is in the place of {name!r}"])
                if not changes and picture.digest() != known:
                    return f"{name!r} has other content"
            update(places.stop)
    return "".join(changes) or None


class Embedder:
    """A tower, on the job's device, that makes any shard of a job and writes it to its ``store``."""

    def __init__(self, job: EmbedJob) -> None:
        """Load the tower; raise what ``Encoder`` does."""
        self.job = job = dataclasses.replace(job, setup=job.setup.absolute(), out=job.out.absolute())
        self.encoder = encoder = Encoder(
            job.setup, random_weights=job.random_weights, device=job.device, batch=job.batch
        )
        self.provenance = VectorsProvenance(
            **{name: getattr(job.setup, name) for name in SETUP},
            **{name: getattr(encoder, name) for name in ("weights", "reducer", "preprocessing", "runtime", "width")},
            **{name: getattr(job, name) for name in ("kind", "random_weights", "batch", "storage")},
            **{name: getattr(job.source, name) for name in ("column", "revision")},
            source=job.source.words,
            count=len(job.source),
            text_weights=encoder.text_weights if job.kind == TEXTS else None,
            versions={name: version(name) for name in ("clip-patchrank", "timm", "torch")},
        )
        self.store = Store(job.out, VECTORS, size=job.shard_size, total=len(job.source))
        self.decoders = Decoders(job.processes, encoder.transform)
        route = Route.to(torch.device(job.device))
        if encoder.runtime not in (EAGER, OPTIMIZED):  # others capture or compile by themselves
            route = route._replace(graph=None)
        forwards = [partial(encoder.forward, budget=budget) for budget in encoder.budgets]
        self.ring = LaneRing(forwards, encoder.unit, route, batch=job.batch, width=encoder.width)

    def take_revision(self, progress: Progress) -> None:
        """Go on with shards of pictures whose times changed; ValueError names a picture whose bytes changed."""
        wanted, source = self.provenance, self.job.source
        earlier = next((shard.provenance for shard in self.store.present.values()), wanted)
        same = dataclasses.replace(wanted, revision=earlier.revision, count=earlier.count) == earlier
        if earlier.revision == wanted.revision or isinstance(source, TextSource) or not same:
            return  # of other settings the store tells
        if change := _find_change(self.store, earlier.count, source, progress):
            lack = f"the pictures of {str(self.job.out)!r} have changed since they were embedded: {change}"
            raise ValueError(f"{lack}. Use another --output, or delete that folder")
        progress.say("files of the source have other times than when it was embedded, and the same content")
        self.job = dataclasses.replace(self.job, source=dataclasses.replace(source, revision=earlier.revision))
        self.provenance = dataclasses.replace(wanted, revision=earlier.revision)

    def make(self, indices: Sequence[int]) -> Iterator[dict[str, float]]:
        """Embed the pictures or texts of some shards, and write each shard when it is whole.

        Yield of each batch the ``count`` in it, and its seconds as ``LaneRing.run`` names them.
        """
        batches = (self._texts if self.job.kind == TEXTS else self._pictures)(indices)
        for index in indices:
            count, good, bad = len(self.store.positions(index)), list[tuple[int, int, Item]](), list[Bad]()
            parts = [np.empty((0, self.encoder.width), np.float32)]
            while len(good) + len(bad) < count:
                batch = next(batches)
                rows = list(zip(batch.places, batch.items, strict=True))
                bad += [Bad(place, item.name, item.wrong, item.digest) for place, item in rows if item.wrong]
                good += [(place, batch.budget, item) for place, item in rows if not item.wrong]
                if batch.vectors is not None:
                    parts.append(batch.vectors[[not item.wrong for item in batch.items]])
                yield {"count": len(rows), **batch.seconds}
            order = sorted(range(len(good)), key=lambda row: good[row][0])
            good = [good[row] for row in order]
            columns: dict[str, Any] = {
                "id": np.array([place for place, *_ in good], dtype=np.int64),
                NAMES[self.job.kind]: pa.array([item.name for *_, item in good], pa.string()),
            }
            if self.job.kind == IMAGES:
                columns["digest"] = pa.array([item.digest for *_, item in good], pa.string())
            if (adaptive := self.encoder.adaptive) is not None and self.job.kind == IMAGES:
                columns["keep"] = np.array([adaptive.budgets.keeps[budget] for _, budget, _ in good], np.float32)
            columns |= Codes.of(np.concatenate(parts)[order], self.job.storage).columns()
            self.store.write(index, pa.table(columns), self.provenance, sorted(bad))

    def _groups(self, index: int) -> Iterator[range]:
        """Yield the positions of each batch of a shard."""
        positions, size = self.store.positions(index), self.job.batch
        for start in range(0, len(positions), size):
            yield positions[start : start + size]

    def _pictures(self, indices: Sequence[int]) -> Iterator[EmbeddedBatch]:
        """Yield the batches of shards; pictures are decoded ahead of the model, across shards.

        Those of an adaptive tower have one budget each, and no batch has pictures of two shards, so that a shard
        depends on no other.
        """
        plan = [list(self._groups(index)) for index in indices]
        chunks = [
            min(CHUNK, len(group) - start)
            for groups in plan
            for group in groups
            for start in range(0, len(group), CHUNK)
        ]
        files = self._files(indices)
        prepared = self.decoders.prepare(list(islice(files, chunk)) for chunk in chunks)

        def read(groups: Sequence[range]) -> Iterator[DecodedChunk]:
            for group in groups:
                yield join(islice(prepared, -(-len(group) // CHUNK)))._replace(places=group)

        shards: Iterator[Iterator[DecodedChunk]] = map(read, plan)
        if self.encoder.adaptive is not None:
            shards = (pool_budgets(batches, self.encoder.assign, self.job.batch) for batches in shards)
        yield from self.ring.run(chain.from_iterable(shards))

    def _files(self, indices: Sequence[int]) -> Iterator[PictureFile]:
        """Yield the pictures of shards, of consecutive ones at once: a start may read much of a Parquet file."""
        assert not isinstance(self.job.source, TextSource)
        for _, run in groupby(enumerate(indices), lambda pair: pair[1] - pair[0]):
            places = [self.store.positions(index) for _, index in run]
            yield from self.job.source.pictures(range(places[0].start, places[-1].stop))

    def _texts(self, indices: Sequence[int]) -> Iterator[EmbeddedBatch]:
        assert isinstance(self.job.source, TextSource)
        for index in indices:
            for group in self._groups(index):
                start, texts = time.perf_counter(), self.job.source.texts(group)
                vectors, wrong = self.encoder.texts(texts)
                items = [Item(text, wrong=wrong.get(place, "")) for place, text in enumerate(texts)]
                yield EmbeddedBatch(items, vectors, {"model_s": time.perf_counter() - start}, group)


def _start(job: EmbedJob, wanted: VectorsProvenance) -> Make:
    """Load the tower in a worker, and return the function that makes shards."""
    embedder = Embedder(job)
    require_same(embedder.provenance.differences(wanted))
    return embedder.make
