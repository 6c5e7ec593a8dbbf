"""Every image of a dataset decoded once: which can't be, and which are the same.

What was found is kept in the user's cache, so a pass that stops goes on from there.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path

from harness.base.terminal import Progress
from harness.datasets.base import SPLITS, Dataset, Split, SplitName, cached_json, keep_json
from harness.datasets.images import how_many
from zoo.core.files import write_whole

CHUNK = 128  # images that threads share out
SAVED_S = 30.0  # seconds between two states on disk
SHOWN = 3  # images in a message


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What came of it.

    digests: by split, in its order: 16 hex digits over an image's pixels, "" where it isn't read.
    bad: by image id, why it can't be read.
    """

    digests: dict[SplitName, list[str]]
    bad: dict[str, str] = field(default_factory=dict)

    def read(self, name: SplitName, split: Split, indices: Sequence[int], workers: Executor) -> None:
        """Decode images of a split."""
        results = list(workers.map(_decoder(split), indices))
        ids = split.subset(indices).image_ids
        for index, image_id, (digest, why) in zip(indices, ids, results, strict=True):
            self.digests[name][index] = digest
            self.bad.pop(image_id, None)
            if why:
                self.bad[image_id] = why


def decode_all(dataset: Dataset, progress: Progress, *, known: bool = True) -> Decoded:
    """Decode every image of a dataset.

    With ``known`` an earlier pass that came to its end counts, and images that it couldn't read are
    tried again. A pass that was stopped always counts.
    """
    path, state = _load(dataset)
    if not known and sum(digests.count("") for digests in state.digests.values()) == len(state.bad):
        state = _fresh(dataset)
    chunks: list[tuple[SplitName, list[int]]] = []
    for name, digests in state.digests.items():
        unread = [index for index, digest in enumerate(digests) if not digest]
        chunks += [(name, unread[start : start + CHUNK]) for start in range(0, len(unread), CHUNK)]
    splits = {name: dataset.split(name) for name in SPLITS}
    total, done, saved = sum(len(chunk) for _, chunk in chunks), 0, time.monotonic()
    with progress.task(f"reading {dataset.name}", total) as update, ThreadPoolExecutor() as threads:
        try:
            for name, chunk in chunks:
                state.read(name, splits[name], chunk, threads)
                done += len(chunk)
                update(done)
                if time.monotonic() - saved > SAVED_S:
                    keep_json(path, asdict(state))
                    saved = time.monotonic()
        finally:
            keep_json(path, asdict(state))
    return state


def require_readable(dataset: Dataset) -> None:
    """Refuse a dataset of which it is known that it has images that can't be read."""
    if lines := dataset.differences():
        mend = "Put them there, or leave them out with --skip-bad"
        raise FileNotFoundError(f"{'. '.join(lines)}. {mend}")
    path, state = _load(dataset)
    if not state.bad:
        return
    with ThreadPoolExecutor() as threads:
        for name in SPLITS:
            split = dataset.split(name)
            state.read(name, split, [i for i, own in enumerate(split.image_ids) if own in state.bad], threads)
    keep_json(path, asdict(state))
    if state.bad:
        raise ValueError(
            f"images of {dataset.name} that can't be read, as was found before: {len(state.bad)}; "
            f"the first: {next(iter(state.bad.values()))}"
        )


def find_bad_images(dataset: Dataset, progress: Progress) -> frozenset[str]:
    """Return the ids of the images that can't be read, and tell how many and where the list is."""
    state = decode_all(dataset, progress)
    if not state.bad:
        return frozenset()
    if len(state.bad) == sum(len(digests) for digests in state.digests.values()):
        raise ValueError(f"none of the {len(state.bad)} images of {dataset.name} can be read")
    list_file = _load(dataset)[0].with_suffix(".txt")
    write_whole(list_file, "".join(f"{why}\n" for why in state.bad.values()).encode())
    progress.say(
        f"{dataset.name}: left out, as they can't be read: {how_many(len(state.bad))}; all are listed in {list_file}"
    )
    for why in list(state.bad.values())[:SHOWN]:
        progress.say(f"  {why}")
    return frozenset(state.bad)


def _decoder(split: Split) -> Callable[[int], tuple[str, str]]:
    """Return what decodes one image: its digest, or why there is none."""

    def decode(index: int) -> tuple[str, str]:
        try:
            image = split[index].image
        except (ValueError, OSError) as error:
            return "", str(error)
        digest = blake2b(image.tobytes(), digest_size=8)
        digest.update(str(image.size).encode())
        return digest.hexdigest(), ""

    return decode


def _fresh(dataset: Dataset) -> Decoded:
    return Decoded(digests={name: [""] * len(dataset.labels(name)) for name in SPLITS})


def _load(dataset: Dataset) -> tuple[Path, Decoded]:
    """Return where the state is kept, by the images and where they lie, and what is there."""
    root = getattr(dataset, "root", None)
    identity = [dataset.name, dataset.revision, dataset.asked_as, str(root)]
    file, content = cached_json("decoded", *identity)
    fresh = _fresh(dataset)
    with suppress(KeyError, TypeError, AttributeError):
        digests = {name: [str(digest) for digest in content["digests"][name]] for name in SPLITS}
        bad = {str(image_id): str(why) for image_id, why in content["bad"].items()}
        if all(len(digests[name]) == len(fresh.digests[name]) for name in SPLITS):
            return file, Decoded(digests=digests, bad=bad)
    return file, fresh
