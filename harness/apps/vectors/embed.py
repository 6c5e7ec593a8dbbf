"""Embed pictures or texts, shard by shard and resumable, in this process or on Ray."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from harness.apps.setup import Setup
from harness.apps.vectors.decode import CHUNK, DecodedChunk, Decoders, processes_beside
from harness.apps.vectors.encoder import Encoded, Encoder
from harness.apps.vectors.source import PictureSource, TextSource
from harness.apps.vectors.store import (
    DTYPES,
    IMAGES,
    TEXTS,
    VECTORS,
    Bad,
    Vectors,
    VectorsProvenance,
    absolute,
    errors_path,
    write_errors,
)
from harness.base.store import Store
from harness.base.terminal import Progress
from harness.base.workers import Make, ShardJob, make_shards, require_same
from zoo.core.messages import expected

DECODING, MODEL = "decoding", "model"


@dataclass(frozen=True, kw_only=True)
class EmbedJob(ShardJob):
    """What to embed, and how."""

    LEAST: ClassVar[Mapping[str, int]] = {**ShardJob.LEAST, "decoders": 0}

    setup: Setup
    source: PictureSource | TextSource
    out: Path
    column: str | None = None  # of images, as the source was opened
    random_weights: bool = False
    shard_size: int = 4096  # pictures per file
    batch: int = 64  # pictures per pass
    embedding_dtype: str = "float16"
    decoders: int | None = None  # processes that decode; 0: the model's own; None: by the cores

    def __post_init__(self) -> None:
        """Validate."""
        super().__post_init__()
        if self.embedding_dtype not in DTYPES:
            raise ValueError(f"--embedding-dtype {self.embedding_dtype!r}: {expected(self.embedding_dtype, DTYPES)}")

    @property
    def kind(self) -> str:
        """What is embedded: images or texts."""
        return TEXTS if isinstance(self.source, TextSource) else IMAGES

    @property
    def processes(self) -> int:
        """How many processes decode for each model."""
        if self.decoders is not None:
            return self.decoders
        return max(1, processes_beside(self.device) // (self.workers or 1))


@dataclass
class Spent:
    """Seconds of a run: of all decoding processes, of the model, and of the model's wait for pictures."""

    pictures: int = 0
    decoding_s: float = 0.0
    model_s: float = 0.0
    waiting_s: float = 0.0

    def add(self, other: "Spent") -> None:
        """Add another run's."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def rates(self, processes: int, workers: int) -> dict[str, float]:
        """Return pictures per second that all decoding processes, and all models, can do."""
        seconds = {DECODING: self.decoding_s / max(1, processes) / workers, MODEL: self.model_s / workers}
        return {name: self.pictures / value for name, value in seconds.items() if value > 0}

    @property
    def binds(self) -> str:
        """What the run waited for more: decoding or the model."""
        return DECODING if self.waiting_s > self.model_s else MODEL


class Embedded(NamedTuple):
    """What came of a job."""

    path: Path
    total: int  # pictures or texts in the source
    bad: int  # of them, without an embedding
    errors: Path | None  # the list of these, if there are any
    rates: dict[str, float]  # pictures per second of this run, by what does them
    binds: str | None  # what this run waited for; None if nothing was left to do


def embed(job: EmbedJob, progress: Progress) -> Embedded:
    """Embed and write shards; go on where an earlier call with the same job stopped.

    Whenever and however a process ends, at most the shards in work are lost, and those that are
    made in their place are equal to the last byte, on the same machine with as many threads.

    Raises:
        ValueError: a setting that doesn't fit, a folder with other embeddings, no picture that can
            be read, or a failure of a worker.
        FileNotFoundError: no weights.
        OSError: a shard can't be written, for instance for lack of room.
    """
    embedder = Embedder(job)
    total, spent, store = len(job.source), Spent(), embedder.store
    with store.open(progress.say):
        todo = store.missing(embedder.provenance)
        if todo:
            begun = total - sum(len(store.positions(index)) for index in todo)
            title = f"embeddings by {job.setup.name}"
            with progress.task(title, total, begun, job.kind) as show, embedder.decoders:
                for part in embedder.run(todo):
                    spent.add(part)
                    show(begun + spent.pictures)
        bad = write_errors(job.out)
    errors = errors_path(job.out) if bad else None
    if bad == total:
        raise ValueError(f"none of the {total} {job.kind} can be embedded; {str(errors)!r} says why")
    rates = spent.rates(job.processes, job.workers or 1)
    return Embedded(job.out, total, bad, errors, rates, spent.binds if spent.pictures else None)


class Embedder:
    """A tower, on the job's device, that makes any shard of a job and writes it to its ``store``."""

    def __init__(self, job: EmbedJob) -> None:
        """Load the tower; refuse what can't be done."""
        self.job = job = replace(job, setup=absolute(job.setup), out=job.out.absolute())
        self.encoder = encoder = Encoder(job.setup, random_weights=job.random_weights, device=job.device)
        texts = job.kind == TEXTS
        if texts:
            encoder.require_text()
        setup = {name: getattr(job.setup, name) for name in ("model", "method", "options", "recovery", "dtype")}
        self.provenance = VectorsProvenance(
            **setup,
            kind=job.kind,
            source=job.source.words,
            column=job.column,
            revision=job.source.revision,
            count=len(job.source),
            random_weights=job.random_weights,
            weights=encoder.weights,
            reducer=encoder.reducer,
            text_weights=encoder.text_weights if texts else None,
            preprocessing=encoder.preprocessing,
            optimised=encoder.optimised,
            batch=job.batch,
            embedding_dtype=job.embedding_dtype,
            width=encoder.width,
            versions={name: version(name) for name in ("clip-patchrank", "timm", "torch")},
        )
        self.store = Store(job.out, VECTORS, size=job.shard_size, total=len(job.source))
        self.decoders = Decoders(job.processes, encoder.preprocess)

    def run(self, todo: Sequence[int]) -> Iterator[Spent]:
        """Make shards here or by workers; yield what each batch took."""
        start = partial(_start, self.job, self.provenance)
        for spent in make_shards(self.job, self.job.out, todo, self.make, start=start, release=self.encoder.release):
            yield Spent(**spent)

    def make(self, indices: Sequence[int]) -> Iterator[dict[str, float]]:
        """Embed what some shards cover and write each when it is whole; yield what each batch took, see ``Spent``.

        Raises:
            ValueError: too little memory for the batch, or an overflow.
            OSError: a shard can't be written.
        """
        encode = self._texts if isinstance(self.job.source, TextSource) else self._pictures
        batches = encode(indices)
        for index in indices:
            parts: list[NDArray[np.float32]] = [np.empty((0, self.encoder.width), np.float32)]
            names: list[str] = []
            ids: list[int] = []
            bad: list[Bad] = []
            for group in self._groups(index):
                own, encoded, spent = next(batches)
                bad += [Bad(group[place], own[place], why) for place, why in sorted(encoded.wrong.items())]
                good = [place for place in range(len(group)) if place not in encoded.wrong]
                names += [own[place] for place in good]
                ids += [group[place] for place in good]
                if encoded.features is not None:
                    parts.append(encoded.features[good])
                yield asdict(spent)
            vectors = Vectors(
                ids=np.array(ids, dtype=np.int64),
                names=names,
                embeddings=np.concatenate(parts),
                provenance=self.provenance,
            )
            self.store.write(index, vectors.table(), self.provenance, bad)

    def _groups(self, index: int) -> Iterator[range]:
        """Yield the positions of each batch of a shard: batches depend on nothing else."""
        positions, size = self.store.positions(index), self.job.batch
        for start in range(0, len(positions), size):
            yield positions[start : start + size]

    def _pictures(self, indices: Sequence[int]) -> Iterator[tuple[list[str], Encoded, Spent]]:
        """Yield names and embeddings of each batch; pictures are decoded ahead of the model, across shards."""
        source = self.job.source
        assert isinstance(source, PictureSource)
        self.decoders.start()
        parts = (part for index in indices for group in self._groups(index) for part in _parts(group))
        prepared = self.decoders.prepare([*source.pictures(part)] for part in parts)
        for index in indices:
            for group in self._groups(index):
                start = time.perf_counter()
                chunks = [next(prepared) for _ in _parts(group)]
                names, pixels, wrong = join_chunks(chunks)
                ready = time.perf_counter()
                features = None if pixels is None else self.encoder.pictures(torch.from_numpy(pixels))
                times = {"decoding_s": sum(chunk.seconds for chunk in chunks), "waiting_s": ready - start}
                spent = Spent(len(group), model_s=time.perf_counter() - ready, **times)
                yield names, Encoded(features, wrong), spent

    def _texts(self, indices: Sequence[int]) -> Iterator[tuple[list[str], Encoded, Spent]]:
        """Yield texts and embeddings of each batch."""
        source = self.job.source
        assert isinstance(source, TextSource)
        for index in indices:
            for group in self._groups(index):
                start, texts = time.perf_counter(), source.texts(group)
                encoded = self.encoder.texts(texts)
                yield texts, encoded, Spent(len(group), model_s=time.perf_counter() - start)


def _parts(group: range) -> list[range]:
    """Split a batch into what a process decodes at a time."""
    return [group[start : start + CHUNK] for start in range(0, len(group), CHUNK)]


def join_chunks(chunks: Sequence[DecodedChunk]) -> tuple[list[str], NDArray[np.float32] | None, dict[int, str]]:
    """Join the chunks of a batch: names, pixels, None if no picture can be read, and what is wrong by position.

    A picture that can't be read keeps its place, as zeros: what else is in a batch moves the last bits.
    """
    names: list[str] = []
    wrong: dict[int, str] = {}
    for chunk in chunks:
        wrong |= {len(names) + place: why for place, why in chunk.wrong.items()}
        names += chunk.paths
    shapes = [chunk.pixels.shape[1:] for chunk in chunks if chunk.pixels is not None]
    if not shapes:
        return names, None, wrong
    filled = [np.zeros((len(c.paths), *shapes[0]), np.float32) if c.pixels is None else c.pixels for c in chunks]
    return names, np.concatenate(filled), wrong


def _start(job: EmbedJob, wanted: VectorsProvenance) -> Make:
    """Return what makes shards in a worker, which loads the tower anew."""
    embedder = Embedder(job)
    require_same(embedder.provenance.differences(wanted))
    return embedder.make
