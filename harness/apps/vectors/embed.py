"""Embed pictures or texts, shard by shard and resumable, in this process or on Ray."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from harness.apps.setup import Setup
from harness.apps.vectors.decode import CHUNK, Decoders, Prepared, processes_beside
from harness.apps.vectors.encoder import Encoded, Encoder
from harness.apps.vectors.source import Source, TextSource
from harness.apps.vectors.store import (
    DTYPES,
    IMAGES,
    TEXTS,
    Bad,
    Provenance,
    Vectors,
    absolute,
    errors_path,
    facts_of,
    write_errors,
)
from harness.base.store import claim, missing, shard_path, survey, write_with_room
from harness.base.terminal import Progress
from harness.base.workers import check_workers, made_by_workers, require_same
from zoo.core.messages import expected

DECODING, MODEL = "decoding", "model"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to embed, and how."""

    setup: Setup
    source: Source | TextSource
    out: Path
    column: str | None = None  # of images, as the source was opened
    random_weights: bool = False
    shard_size: int = 4096  # pictures per file, a run that stops loses at most those of one
    batch: int = 64  # pictures per pass
    embedding_dtype: str = "float16"
    decoders: int | None = None  # processes that decode; 0: the model's own; None: by the cores
    device: str = "cpu"
    workers: int | None = None  # Ray actors that share the work; None: this process alone

    def __post_init__(self) -> None:
        """Validate."""
        for name, least in (("shard_size", 1), ("batch", 1), ("decoders", 0), ("workers", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name.replace('_', '-')} {value}: expected a number from {least}")
        if self.embedding_dtype not in DTYPES:
            raise ValueError(f"--embedding-dtype {self.embedding_dtype!r}: {expected(self.embedding_dtype, DTYPES)}")
        if self.workers is not None:
            check_workers(self.workers, self.device)

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


def embed(job: Job, progress: Progress) -> Embedded:
    """Embed and write shards; go on where an earlier call with the same job stopped.

    Whenever and however a process ends, at most the shards in work are lost, and those that are
    made in their place are equal to the last byte, on the same machine with as many threads.

    Raises:
        ValueError: a setting that doesn't fit, a folder with other embeddings, no picture that can
            be read, or a failure of a worker.
        FileNotFoundError: no weights.
        OSError: a shard can't be written, for instance for lack of room.
    """
    maker = ShardMaker(job)
    total, spent = len(job.source), Spent()
    with claim(job.out):
        present, removed = survey(job.out, facts_of)
        for line in removed:
            progress.say(line)
        todo = missing(job.out, present, maker.provenance, job.shard_size, total, "embeddings")
        begun = total - sum(len(maker.positions(index)) for index in todo)
        if todo:
            made = maker.make(todo) if job.workers is None else _made_by_ray(maker, todo)
            title = f"embeddings by {job.setup.name}"
            with progress.task(title, total, begun, job.kind) as show, maker.decoders:
                for part in made:
                    spent.add(part)
                    show(begun + spent.pictures)
        bad = write_errors(job.out)
    errors = errors_path(job.out) if bad else None
    if bad == total:
        raise ValueError(f"none of the {total} {job.kind} can be embedded; {str(errors)!r} says why")
    rates = spent.rates(job.processes, job.workers or 1)
    return Embedded(job.out, total, bad, errors, rates, spent.binds if spent.pictures else None)


class ShardMaker:
    """A tower, on the job's device, that makes any shard of a job and writes it to ``out``."""

    def __init__(self, job: Job) -> None:
        """Load the tower; refuse what can't be done."""
        self.job = job = replace(job, setup=absolute(job.setup))
        self.encoder = encoder = Encoder(job.setup, random_weights=job.random_weights, device=job.device)
        texts = job.kind == TEXTS
        if texts:
            encoder.require_text()
        setup = {name: getattr(job.setup, name) for name in ("model", "method", "options", "recovery", "dtype")}
        self.provenance = Provenance(
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
        self.decoders = Decoders(job.processes, encoder.preprocess)

    def positions(self, index: int) -> range:
        """Return the positions in the source that a shard covers."""
        size = self.job.shard_size
        return range(index * size, min((index + 1) * size, len(self.job.source)))

    def make(self, indices: Sequence[int]) -> Iterator[Spent]:
        """Embed what some shards cover and write each when it is whole; yield what each batch took.

        Raises:
            ValueError: too little memory for the batch, or an overflow.
            OSError: a shard can't be written.
        """
        encode = self._texts if isinstance(self.job.source, TextSource) else self._pictures
        batches = encode(indices)
        for index in indices:
            positions = self.positions(index)
            parts: list[NDArray[np.float32]] = [np.empty((0, self.encoder.width), np.float32)]
            names: list[str] = []
            bad: list[Bad] = []
            for group in self._groups(index):
                own, encoded, spent = next(batches)
                bad += [Bad(group[place], own[place], why) for place, why in sorted(encoded.wrong.items())]
                good = [place for place in range(len(group)) if place not in encoded.wrong]
                names += [own[place] for place in good]
                if encoded.features is not None:
                    parts.append(encoded.features[good])
                yield spent
            lost = {one.id for one in bad}
            vectors = Vectors(
                ids=np.array([position for position in positions if position not in lost], dtype=np.int64),
                names=names,
                embeddings=np.concatenate(parts),
                provenance=self.provenance,
                first=positions.start,
                covers=len(positions),
                size=self.job.shard_size,
                bad=bad,
            )
            write_with_room(shard_path(self.job.out, index), vectors.encode(), "the same command")

    def _groups(self, index: int) -> Iterator[range]:
        """Yield the positions of each batch of a shard: batches depend on nothing else."""
        positions, size = self.positions(index), self.job.batch
        for start in range(0, len(positions), size):
            yield positions[start : start + size]

    def _pictures(self, indices: Sequence[int]) -> Iterator[tuple[list[str], Encoded, Spent]]:
        """Yield names and embeddings of each batch; pictures are decoded ahead of the model, across shards."""
        source = self.job.source
        assert isinstance(source, Source)
        self.decoders.start()
        parts = (part for index in indices for group in self._groups(index) for part in _parts(group))
        prepared = self.decoders.prepare([*source.pictures(part)] for part in parts)
        for index in indices:
            for group in self._groups(index):
                start = time.perf_counter()
                chunks = [next(prepared) for _ in _parts(group)]
                names, pixels, wrong = joined(chunks)
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


def joined(chunks: Sequence[Prepared]) -> tuple[list[str], NDArray[np.float32] | None, dict[int, str]]:
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


def _make_by(job: Job, wanted: Provenance) -> Callable[[int], Any]:
    """Return what makes a shard in a worker, which loads the tower anew, and says what it took."""
    maker = ShardMaker(job)
    require_same(maker.provenance.differences(wanted))

    def make(index: int) -> Any:
        spent = Spent()
        for part in maker.make([index]):
            spent.add(part)
        return asdict(spent)

    return make


def _made_by_ray(maker: ShardMaker, todo: Sequence[int]) -> Iterator[Spent]:
    """Make shards by Ray's actors; yield what each took."""
    job = maker.job
    maker.encoder.release()  # the workers need the room
    torch.cuda.empty_cache()
    assert job.workers is not None
    start = partial(_make_by, replace(job, out=job.out.absolute()), maker.provenance)
    for spent in made_by_workers(start, job.out, todo, workers=job.workers, device=job.device):
        yield Spent(**spent)
