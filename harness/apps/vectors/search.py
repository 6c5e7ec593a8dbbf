"""Search all embeddings by a text or a picture, one shard in memory at a time, and measure what storage loses."""

import io
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from harness.apps.vectors.decode import prepare
from harness.apps.vectors.embed import BINARY, Codes, Encoder, VectorsProvenance, read_vectors
from harness.apps.vectors.settings import IMAGES, STORAGES
from harness.apps.vectors.source import PictureFile, PictureSource
from harness.base.terminal import printable
from harness.datasets.images import decode_image
from harness.records.metrics import LEAST_GALLERY, NEIGHBOURS, neighbours, overlap
from harness.records.statistics import Interval, over_images
from harness.report.pictures import shorten
from zoo.core.files import write_whole
from zoo.deploy.setup import Setup
from zoo.loading.clip import CompactText
from zoo.loading.pictures import EXTENSIONS

DATA = (".onnx", ".xml")  # endings of exported files that run no code
RESCORED = 100  # nearest by Hamming distance whose cosines are compared
MOST = 10_000  # embeddings that precisions are compared on
ACROSS = 5  # pictures of a sheet side by side
SIDE, MARGIN, LINE = 240, 12, 20  # pixels: of a picture, between them, of the text below
LETTERS = 32  # that a line of this font has room for below a picture


class Hit(NamedTuple):
    """One of the nearest embeddings to a query."""

    rank: int  # from 1
    score: float  # cosine with the query
    id: int  # position in the source
    name: str  # path or text
    digest: str


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The nearest embeddings to a query, best first, and the embeddings that were searched."""

    hits: Sequence[Hit]
    searched: int
    missing: int  # pictures or texts of the source that aren't embedded yet
    provenance: VectorsProvenance


def query_vector(
    query: str,
    provenance: VectorsProvenance,
    say: Callable[[str], object] | None = None,
    *,
    device: str = "cpu",
    file: str | None = None,
) -> NDArray[np.float32]:
    """Embed a query (the path of a picture, or words) by the model of some embeddings, (D,) of unit length.

    A picture is embedded as ``embed`` does it. In low precision it fills a batch of the same size, whose size moves
    features by up to several percent. ``say`` tells of the few words that the embedded text tower learned. ``file`` is
    where the exported file that made the embeddings lies; it must be given for a file that may be machine code.

    Raises:
        FileNotFoundError: it looks like a picture's path, and there is none; or the weights are missing.
        ValueError: the picture or the words can't be embedded, or the model isn't the same any more.
    """
    is_picture = False
    with suppress(OSError):  # such as words that are longer than a file's name may be
        is_picture = Path(query).is_file()
    if not is_picture and Path(query).suffix.lower() in EXTENSIONS:
        raise FileNotFoundError(f"query {query!r} looks like a picture, and there is no such file")
    if not query.strip():
        raise ValueError("the query is empty; expected words, or the path of a picture")
    count = 1
    if is_picture and provenance.kind == IMAGES and provenance.precision != "float32":
        count = provenance.batch
    setup = _query_setup(provenance.setup, file)
    encoder = Encoder(setup, random_weights=provenance.random_weights, device=device, batch=count)
    names = ("weights", "reducer", "preprocessing")
    for name in names if provenance.kind == IMAGES else (*names, "text_weights"):
        then, now = getattr(provenance, name), getattr(encoder, name)
        if now != then:
            what = f"{provenance.model} has other {name} now, {now!r}, than when the embeddings were made, {then!r}"
            raise ValueError(f"{what}; embed again")
    if is_picture:
        [picture] = prepare([PictureFile(query, file=query)], encoder.transform).items
        if picture.pixels is None:
            raise ValueError(f"query {query!r}: {picture.wrong}")
        return encoder.pictures(torch.from_numpy(np.stack([picture.pixels] * count)))[0]
    features, wrong = encoder.texts([query.strip()])
    if say is not None and isinstance(encoder.clip.model.text, CompactText):
        remedy = "for any words, embed the pictures with a model such as clip_vit_b16.openai"
        say(f"{encoder.setup.name} learned the words of clothing and emoji only; {remedy}")
    if features is None:
        raise ValueError(f"query {query!r}: {wrong[0]}")
    return features[0]


def _query_setup(setup: Setup, file: str | None) -> Setup:
    """Return the setup of some embeddings, whose exported file lies at ``file``."""
    if file is not None:
        if setup.file is None:
            raise ValueError(f"--model {file!r}: {setup.name} made these embeddings, no exported file; leave it out")
        return replace(setup, model=file)
    if setup.file is not None and setup.file.suffix not in DATA:
        reason = f"{setup.model!r} made these embeddings, which may run any code"
        raise ValueError(f"{reason}: if you trust it, give --model")
    return setup


def _shortlist(
    codes: Codes, vector: NDArray[np.float32], top: int
) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[np.float32]]:
    """Return the rows that may be among the ``top`` nearest, the distances that chose them, and cosines, each (k,).

    Of bits these are those of least Hamming distance, `RESCORED` at least, and cosines are with ``vector`` as it is.
    """
    if codes.storage == BINARY:
        distances = np.bitwise_count(codes.codes ^ np.packbits(vector > 0)).sum(axis=1, dtype=np.int64)
        order = np.argsort(distances, kind="stable")[: max(top, RESCORED)]
        return order, distances[order], codes.decode(order) @ vector
    scores = codes.decode() @ vector
    order = np.argsort(-scores, kind="stable")[:top]
    return order, -scores[order], scores[order]


def nearest(
    folder: Path, vector: NDArray[np.float32], top: int, say: Callable[[str], object] = warnings.warn
) -> SearchResult:
    """Return the ``top`` embeddings of a folder with the largest cosine; of equal ones the first come first.

    Bits are searched in two steps. ``say`` and what is raised are as of ``read_vectors``.
    """
    if top < 1:
        raise ValueError(f"--top {top}: expected a number from 1")
    best, searched, bad = list[tuple[float, float, int, str, str]](), 0, 0
    for vectors in read_vectors(folder, say):
        ids, names, digests = vectors.ids.tolist(), vectors.names, vectors.digests
        for row, distance, score in zip(*_shortlist(vectors.codes, vector, top), strict=True):
            best.append((float(distance), float(score), ids[row], names[row], digests[row]))
        best = sorted(best, key=lambda hit: (hit[0], hit[2]))[: max(top, RESCORED)]
        searched += len(ids)
        bad += len(vectors.bad)
    best = sorted(best, key=lambda hit: (-hit[1], hit[2]))[:top]
    hits = [Hit(rank, *hit[1:]) for rank, hit in enumerate(best, start=1)]
    missing = vectors.provenance.count - searched - bad
    return SearchResult(hits=hits, searched=searched, missing=missing, provenance=vectors.provenance)


@dataclass(frozen=True, kw_only=True)
class Loss:
    """How well float32 queries find embeddings in a smaller storage."""

    stored: str  # of ``STORAGES``, and how bits are searched
    bytes: int  # of an embedding
    cosine: float  # with the float32 embedding, on average
    overlap: Interval | None  # of the share of the ten nearest by float32 that are found


def measure_losses(folder: Path, say: Callable[[str], object] = warnings.warn) -> tuple[int, list[Loss]]:
    """Measure the loss of each storage, with each of the first `MOST` embeddings as a query for all others.

    Return how many these are, and a loss for each storage; raise ValueError if they aren't float32, or too few.
    """
    parts, count = list[NDArray[np.float32]](), 0
    for vectors in read_vectors(folder, say):
        if (storage := vectors.codes.storage) != "float32":
            raise ValueError(f"{str(folder)!r} is in {storage}: expected float32, by --storage float32")
        parts.append(vectors.embeddings)
        if (count := count + len(vectors.ids)) >= MOST:
            break
    if count < LEAST_GALLERY:
        raise ValueError(f"{str(folder)!r} has {count} embeddings: expected {LEAST_GALLERY} at least")
    floats = np.concatenate(parts)[:MOST]
    queries, losses = torch.from_numpy(floats), list[Loss]()
    truth = neighbours(queries, queries)
    for storage in STORAGES:
        codes = Codes.of(floats, storage)
        size = sum(column[0].nbytes for column in (codes.codes, codes.scale) if column is not None)
        decoded = torch.from_numpy(codes.decode())
        cosine = float(F.cosine_similarity(queries, decoded).double().mean())
        nearest_ids = {storage: neighbours(queries, decoded)} if storage != BINARY else _search_bits(codes, floats)
        for name, ids in nearest_ids.items():
            share = over_images(overlap(ids, truth))
            losses.append(Loss(stored=name, bytes=size, cosine=cosine, overlap=share))
    return len(floats), losses


def _search_bits(codes: Codes, floats: NDArray[np.float32]) -> dict[str, NDArray[np.int64]]:
    """Return the neighbours of each of n embeddings, (n, 10), by the first step of a search in bits and by both."""
    first, second = list[NDArray[np.int64]](), list[NDArray[np.int64]]()
    for place, vector in enumerate(floats):
        order, _, scores = _shortlist(codes, vector, NEIGHBOURS)
        scores, order = scores[order != place], order[order != place]
        first.append(order[:NEIGHBOURS])
        second.append(order[np.argsort(-scores, kind="stable")[:NEIGHBOURS]])
    best = f"{BINARY}, best {RESCORED} rescored"
    return {f"{BINARY}, by Hamming distance": np.stack(first), best: np.stack(second)}


def write_sheet(path: Path, query: str, result: SearchResult, source: PictureSource) -> None:
    """Draw the hits on a contact sheet, a PNG, each with its rank, score and path; ValueError if a picture has changed.

    A picture that can't be read any more is drawn as an empty frame.
    """
    font, wide, high = ImageFont.load_default(13), SIDE + MARGIN, SIDE + 2 * LINE + MARGIN
    rows = math.ceil(len(result.hits) / ACROSS)
    sheet = Image.new("RGB", (ACROSS * wide + MARGIN, rows * high + LINE + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    title = f"{shorten(printable(query, ''), ACROSS * LETTERS - 20)}: {len(result.hits)} of {result.searched:,}"
    draw.text((MARGIN, MARGIN), title, 0, font)
    for place, hit in enumerate(result.hits):
        left, top = MARGIN + place % ACROSS * wide, 2 * MARGIN + LINE + place // ACROSS * high
        picture = next(source.pictures(range(hit.id, hit.id + 1)), None)
        if picture is None or picture.path != hit.name or picture.digest() not in ("", hit.digest):
            raise ValueError(f"picture {hit.name!r} has changed since it was embedded; embed the pictures again")
        try:
            image = decode_image(picture.read(), behind="white")
            sheet.paste(ImageOps.pad(image, (SIDE, SIDE), color="white"), (left, top))
        except (ValueError, OSError):
            draw.rectangle((left, top, left + SIDE, top + SIDE), outline="black")
        draw.text((left, top + SIDE + 2), f"{hit.rank}   {hit.score:.3f}", 0, font)
        draw.text((left, top + SIDE + LINE), shorten(printable(hit.name, ""), LETTERS), (90, 90, 90), font)
    sink = io.BytesIO()
    sheet.save(sink, "PNG")
    write_whole(path, sink.getvalue())
