"""Every image of a dataset decoded once: which can't be, and which are the same.

What was found is kept in the user's cache, so a pass that stops goes on from there.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path

from harness.console.terminal import Progress
from harness.datasets.base import SPLITS, Dataset, Split, SplitName, cached_json, keep_json
from harness.datasets.images import how_many
from zoo.files import write_whole

CHUNK = 128  # images that threads share out
SAVED_S = 30.0  # seconds between two states on disk
SHOWN = 3  # images in a message


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What came of it.

    digests: by split, in its order: 16 hex digits over an image's pixels, "" if unreadable.
    bad: by image id, why it can't be read.
    """

    digests: dict[SplitName, list[str]] = field(default_factory=lambda: {s: [] for s in SPLITS})
    bad: dict[str, str] = field(default_factory=dict)


def decode_all(dataset: Dataset, progress: Progress, *, known: bool = True) -> Decoded:
    """Decode every image of a dataset.

    With ``known`` an earlier pass that came to its end counts, and images that it couldn't read are
    tried again. A pass that was stopped always counts.
    """
    path, state = _state(dataset)
    splits = {name: dataset.split(name) for name in SPLITS}
    total = sum(len(split) for split in splits.values())
    done = sum(len(state.digests[name]) for name in SPLITS)
    if done == total and not known:
        state, done = Decoded(), 0
    _again(state, splits)
    if done == total:
        keep_json(path, asdict(state))
        return state
    saved = time.monotonic()
    with progress.task(f"reading {dataset.name}", total) as update, ThreadPoolExecutor() as threads:
        try:
            for name, split in splits.items():
                digests = state.digests[name]
                for start in range(len(digests), len(split), CHUNK):
                    places = range(start, min(start + CHUNK, len(split)))
                    results = list(threads.map(_tried(split), places))
                    ids = split.subset(places).image_ids
                    state.bad.update(
                        {i: why for i, (_, why) in zip(ids, results, strict=True) if why}
                    )
                    digests += [digest for digest, _ in results]
                    done += len(places)
                    update(done)
                    if time.monotonic() - saved > SAVED_S:
                        keep_json(path, asdict(state))
                        saved = time.monotonic()
        finally:
            keep_json(path, asdict(state))
    return state


def require_readable(dataset: Dataset) -> None:
    """Refuse a dataset of which it is known that it has images that can't be read.

    Raises:
        FileNotFoundError: images that a file lists aren't there.
        ValueError: an earlier pass couldn't read some.
    """
    if lines := dataset.differences():
        raise FileNotFoundError(
            f"{'. '.join(lines)}. Put them there, or leave them out with --skip-bad"
        )
    path, state = _state(dataset)
    if not state.bad:
        return
    _again(state, {name: dataset.split(name) for name in SPLITS})
    keep_json(path, asdict(state))
    if state.bad:
        raise ValueError(
            f"images of {dataset.name} that can't be read, as was found before: {len(state.bad)}; "
            f"the first: {next(iter(state.bad.values()))}"
        )


def bad_images(dataset: Dataset, progress: Progress) -> frozenset[str]:
    """Return the ids of the images that can't be read, and tell how many and where all are listed.

    Raises:
        ValueError: no image can be read.
    """
    state = decode_all(dataset, progress)
    if not state.bad:
        return frozenset()
    if len(state.bad) == sum(len(digests) for digests in state.digests.values()):
        raise ValueError(f"none of the {len(state.bad)} images of {dataset.name} can be read")
    list_file = _state(dataset)[0].with_suffix(".txt")
    write_whole(list_file, "".join(f"{why}\n" for why in state.bad.values()).encode())
    progress.say(
        f"{dataset.name}: left out, as they can't be read: {how_many(len(state.bad))}; all are "
        f"listed in {list_file}"
    )
    for why in list(state.bad.values())[:SHOWN]:
        progress.say(f"  {why}")
    return frozenset(state.bad)


def _tried(split: Split) -> Callable[[int], tuple[str, str]]:
    """Return what decodes one image: its digest, or why there is none."""

    def one(place: int) -> tuple[str, str]:
        try:
            image = split[place].image
        except (ValueError, OSError) as error:
            return "", str(error)
        digest = blake2b(image.tobytes(), digest_size=8)
        digest.update(str(image.size).encode())
        return digest.hexdigest(), ""

    return one


def _again(state: Decoded, splits: dict[SplitName, Split]) -> None:
    """Try once more what couldn't be read; it may have been replaced."""
    for name, split in splits.items():
        digests = state.digests[name]
        for place in [i for i, digest in enumerate(digests) if not digest]:
            digests[place], why = _tried(split)(place)
            [image_id] = split.subset([place]).image_ids
            if why:
                state.bad[image_id] = why
            else:
                state.bad.pop(image_id, None)


def _state(dataset: Dataset) -> tuple[Path, Decoded]:
    """Return where the state is kept, by the images and where they lie, and what is there."""
    root = getattr(dataset, "root", None)
    identity = [dataset.name, dataset.revision, dataset.asked_as, str(root)]
    file, content = cached_json("decoded", *identity)
    try:
        digests = {name: [str(digest) for digest in content["digests"][name]] for name in SPLITS}
        state = Decoded(digests=digests, bad={str(k): str(v) for k, v in content["bad"].items()})
    except (KeyError, TypeError, AttributeError):
        return file, Decoded()
    fits = all(len(digests[name]) <= len(dataset.labels(name)) for name in SPLITS)
    return file, state if fits else Decoded()
