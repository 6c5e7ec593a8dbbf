"""Decoding in processes: the order of the pictures, whatever the processes do, and their deaths."""

import io
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.apps.vectors import decode as module
from harness.apps.vectors.decode import AHEAD, CRASHES, DEATHS, DecodedChunk, Decoders, prepare
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
# Pictures of some width end their process by a signal; a byte counts how often.
DEADLY = """lambda image: (
    __import__('pathlib').Path({count!r}).open('ab').write(b'.'), __import__('signal').raise_signal({signal})
) if image.width == {width} else __import__('numpy').asarray(image.resize((1, 1)))"""


@pytest.fixture
def chunks(pictures: Path) -> list[list[PictureFile]]:
    source = open_source([str(pictures)])
    every = list(source.pictures(range(len(source))))
    return [every[start : start + 4] for start in range(0, len(every), 4)]


def outcome(results: Sequence[DecodedChunk]) -> Any:
    items = [item for chunk in results for item in chunk.items]
    assert all(one.pixels is None or one.pixels.dtype == np.float32 for one in items)
    return [(None if one.pixels is None else one.pixels.tolist(), *one._replace(pixels=None)) for one in items]


def test_a_picture_that_resizing_would_blow_up_is_bad():
    contents = []
    for width in (1_000, 1_001):
        Image.new("L", (width, 1)).save(sink := io.BytesIO(), "png")
        contents.append(PictureFile(str(width), content=sink.getvalue()))
    whole, bad = prepare(contents, RESIZED).items
    assert (whole.wrong, bad.wrong) == ("", "it has 1001 x 1 pixels; expected sides of 1 : 1000")


def test_lack_of_memory_says_nothing_about_a_picture(monkeypatch: pytest.MonkeyPatch, draw: Callable[[int], bytes]):
    monkeypatch.setattr(module, "DEATHS", 1)
    pictures, code = [PictureFile("a.png", content=draw(0))], Code("lambda image: bytearray(1 << 62)")
    for count, kind in ((0, MemoryError), (1, ValueError)):
        with Decoders(count, code) as decoders, pytest.raises(kind, match=r"image 'a\.png'"):
            list(decoders.prepare([pictures]))


@pytest.mark.slow
def test_neither_their_number_nor_their_death_changes_what_comes(chunks: list[list[PictureFile]]):
    wanted = outcome([prepare(chunk, RESIZED) for chunk in chunks])
    for count in (0, 3):
        with Decoders(count, RESIZED) as decoders:
            assert outcome(list(decoders.prepare(chunks))) == wanted
    with Decoders(2, RESIZED) as decoders:
        results = list[DecodedChunk]()
        for one in decoders.prepare(chunks):
            results.append(one)
            processes = multiprocessing.active_children()
            if processes and len(results) % 2 == 0:  # five of eleven times
                os.kill(processes[len(results) % len(processes)].pid or 0, signal.SIGKILL)
        assert outcome(results) == wanted
        for process in multiprocessing.active_children():
            process.kill()
        assert outcome(list(decoders.prepare(chunks))) == wanted
        seen = [process.pid for process in multiprocessing.active_children()]
        assert seen
    limit = time.monotonic() + 60
    while any(Path(f"/proc/{process}").exists() for process in seen):
        assert time.monotonic() < limit, "processes outlive their use"
        time.sleep(0.05)


def test_chunks_are_asked_for_no_further_than_they_are_worked_on(draw: Callable[[int], bytes]):
    asked = iter(range(1, 99))
    with Decoders(1, RESIZED) as decoders:
        next(decoders.prepare([PictureFile("a.png", content=draw(0))] for _ in asked))
    assert next(asked) <= AHEAD + 2


def width_of(picture: PictureFile) -> int:
    return decode_image(picture.read(), "").width


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tries"), [("SIGABRT", CRASHES + 1), ("SIGKILL", DEATHS + 1)])
def test_a_picture_that_ends_its_process_is_bad_and_one_whose_process_is_killed_ends_the_run(
    name: str, tries: int, tmp_path: Path, draw: Callable[[int], bytes]
):
    every = [PictureFile(f"{number}.png", content=draw(number)) for number in range(8)]
    code = DEADLY.format(count=str(tmp_path / "count"), signal=int(signal.Signals[name]), width=width_of(every[5]))
    assert [width_of(one) for one in every].count(width_of(every[5])) == 1
    with Decoders(2, Code(code)) as decoders:
        results = decoders.prepare([every[:4], every[4:]])
        assert not any(item.wrong for item in next(results).items)
        if name == "SIGKILL":
            with pytest.raises(ValueError, match=r"image '5\.png': .* by signal SIGKILL, 6 times in a row"):
                next(results)
        else:
            items = next(results).items
            assert [bool(item.wrong) for item in items] == [False, True, False, False]
            assert "by signal SIGABRT" in items[1].wrong
            assert items[1].digest == every[5].digest()
    assert (tmp_path / "count").stat().st_size == tries


def test_processes_that_die_at_their_start_are_told():
    told = r"ends at its start, with exit code 3, 6 times in a row: too little memory\? .*; try fewer --decoders"
    with Decoders(1, Code("__import__('os')._exit(3)")) as decoders, pytest.raises(ValueError, match=told):
        next(decoders.prepare([[PictureFile("a.png")]]))
