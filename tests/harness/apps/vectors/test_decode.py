"""Decoding in processes: the order of the pictures, whatever the processes do, and their deaths."""

import io
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.apps.vectors.decode import DecodedChunk, Decoders, prepare
from harness.apps.vectors.source import PictureFile, open_source
from harness.datasets.images import decode_image


class Code:
    """A function that a process of its own can be given: it travels as its source."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> Any:
        return eval, (self.text,)

    def __call__(self, image: Any) -> Any:
        return eval(self.text)(image)


RESIZED = Code("lambda image: __import__('numpy').asarray(image.resize((4, 5))).transpose(2, 0, 1) / 255")
# Pictures of some width end their process.
KILLED = "__import__('os').kill(__import__('os').getpid(), 9)"
DEADLY = f"lambda image: {KILLED} if image.width == {{}} else __import__('numpy').asarray(image.resize((1, 1)))"


@pytest.fixture
def chunks(pictures: Path) -> list[list[PictureFile]]:
    source = open_source([str(pictures)])
    every = list(source.pictures(range(len(source))))
    return [every[start : start + 4] for start in range(0, len(every), 4)]


def outcome(results: Sequence[DecodedChunk]) -> Any:
    assert all(one.pixels is None or one.pixels.dtype == np.float32 for one in results)
    return [(one.paths, None if one.pixels is None else one.pixels.tolist(), one.wrong) for one in results]


def test_a_picture_that_resizing_would_blow_up_is_bad():
    contents = []
    for width in (1_000, 1_001):
        Image.new("L", (width, 1)).save(sink := io.BytesIO(), "png")
        contents.append(PictureFile(str(width), content=sink.getvalue()))
    assert prepare(contents, RESIZED).wrong == {1: "it has 1001 x 1 pixels; expected sides of 1 : 1000"}


@pytest.mark.slow
def test_neither_their_number_nor_their_death_changes_what_comes(chunks: list[list[PictureFile]]):
    wanted = outcome([prepare(chunk, RESIZED) for chunk in chunks])
    for count in (0, 3):
        with Decoders(count, RESIZED) as decoders:
            assert outcome(list(decoders.prepare(chunks))) == wanted
    with Decoders(2, RESIZED) as decoders:
        coming = decoders.prepare(chunks)
        results = [next(coming) for _ in range(3)]
        assert decoders._pool is not None
        processes = list(decoders._pool._processes)
        os.kill(processes[0], signal.SIGKILL)
        results += coming
    assert outcome(results) == wanted
    limit = time.monotonic() + 60
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < limit, "processes outlive their use"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_picture_that_ends_its_process_is_bad_and_no_other(chunks: list[list[PictureFile]]):
    first = next(picture for picture in chunks[3] if picture.path not in ("deep/text.webp", "empty.png"))
    safe, deadly = Code(DEADLY.format(-1)), Code(DEADLY.format(decode_image(first.read(), "").width))
    wanted = [prepare(chunk, safe) for chunk in chunks]
    with Decoders(2, deadly) as decoders:
        results = list(decoders.prepare(chunks))
    lost = {one.paths[place] for one in results for place, why in one.wrong.items() if "ends the process" in why}
    assert first.path in lost
    for one, other in zip(results, wanted, strict=True):
        for place, path in enumerate(one.paths):
            if path not in lost:
                assert np.array_equal(one.pixels[place], other.pixels[place])
                assert one.wrong.get(place) == other.wrong.get(place)
