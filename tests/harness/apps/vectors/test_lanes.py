"""Batches on their way: the bits that arrive, padding, and streams that wait for one another, seen without a GPU."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import count
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.apps.vectors import lanes
from harness.apps.vectors.decode import DecodedChunk, Item
from harness.apps.vectors.lanes import LaneRing, Route, pool_budgets, split_preprocessing

CPU = Route.to(torch.device("cpu"))
BATCHES = [[0, 1, 2, 3], [4, None, 6, 7], [None, None], [8, 9], [10, 11, 12, 13], [14]]  # pictures; None: unreadable


@pytest.mark.parametrize("preprocess", [
    create_transform((3, 20, 20), is_training=False, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28)),
    image_transform_v2(PreprocessCfg(size=20), is_train=False),
])  # fmt: skip
def test_bytes_scaled_as_a_batch_are_what_preprocessing_makes_of_each_picture(preprocess: Any):
    noise = np.random.default_rng(0).integers(0, 256, (3, 30, 40, 3), dtype=np.uint8)
    pictures = [Image.fromarray(each) for each in noise]
    transform, scale = split_preprocessing(preprocess, "cpu")
    sent = torch.from_numpy(np.stack([np.asarray(transform(each)) for each in pictures]))
    assert (sent.dtype, sent.shape) == (torch.uint8, (3, 20, 20, 3))
    wanted = torch.stack([preprocess(each) for each in pictures])
    assert torch.equal(scale(sent), wanted)
    assert scale(sent).is_contiguous()
    assert split_preprocessing(preprocess.transforms[0], "cpu") == (preprocess.transforms[0], None)  # anything else


def picture(number: int | None) -> Item:
    if number is None:
        return Item("bad", wrong="broken")
    return Item(str(number), np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8))


def forward(sizes: list[int], pixels: Tensor) -> Tensor:
    sizes.append(len(pixels))
    return pixels.flatten(1).float().cumsum(dim=1)[:, -5:]


def run(route: Route, sizes: list[int]) -> list[lanes.EmbeddedBatch]:
    batches = [DecodedChunk([picture(number) for number in batch], 1.0) for batch in BATCHES]
    ring = LaneRing([partial(forward, sizes)], lambda features: features.numpy().copy(), route, batch=4, width=5)
    return list(ring.run(batches))


def check(found: list[lanes.EmbeddedBatch]) -> None:
    assert [len(batch.items) for batch in found] == [len(batch) for batch in BATCHES]
    assert not any(item.pixels is not None for batch in found for item in batch.items)
    assert found[2].vectors is None
    for numbers, batch in zip(BATCHES, found, strict=True):
        for place, number in enumerate(numbers):
            if number is not None:
                own = forward([], torch.from_numpy(picture(number).pixels)[None])[0]
                assert np.array_equal(batch.vectors[place], own)


def test_batches_come_back_in_order_and_a_graph_gets_them_filled_up():
    sizes = list[int]()
    check(run(CPU, sizes))
    assert sizes == [4, 4, 2, 4, 1]
    sizes.clear()
    check(run(CPU._replace(graph=lambda call, pixels: call), sizes))
    assert sizes == [4, 4, 4, 4, 4]


def test_pictures_of_one_budget_come_together():
    """Batches are full but the last of each budget, in the order of the source; none lacks what can't be read."""
    first = count(0)
    chunks = [DecodedChunk([picture(n) for n in batch], 1.0, [next(first) for _ in batch]) for batch in BATCHES]
    known = {picture(number).pixels.tobytes(): number for batch in BATCHES for number in batch if number is not None}

    def assign(pixels: Tensor) -> Tensor:
        return torch.tensor([known.get(each.numpy().tobytes(), 0) % 2 for each in pixels])

    pooled = list(pool_budgets(iter(chunks), assign, 4))
    names = [name for chunk in pooled for name in (chunk.budget, [item.name for item in chunk.items])]
    assert names == [
        0, ["0", "2", "4", "bad"], 0, ["6", "bad", "bad", "8"], 1, ["1", "3", "7", "9"], 0, ["10", "12", "14"],
        1, ["11", "13"],
    ]  # fmt: skip
    assert sorted(place for chunk in pooled for place in chunk.places) == list(range(17))
    assert sum(chunk.seconds for chunk in pooled) == len(BATCHES)


def test_a_tower_that_cannot_be_captured_runs_as_it_is(monkeypatch: pytest.MonkeyPatch):
    route, sizes = CPU._replace(graph=lanes.capture_graph), list[int]()
    refusal = RuntimeError("operation not permitted when stream is capturing")
    monkeypatch.setattr(lanes, "capture", Mock(side_effect=refusal))
    with pytest.warns(UserWarning, match="without a CUDA graph: operation not permitted"):
        check(run(route, sizes))
    assert sizes == [4, 4, 2, 4, 1]
    monkeypatch.setattr(lanes, "capture", Mock(side_effect=RuntimeError("illegal memory access")))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(route, sizes)


class Streams(TorchDispatchMode):
    """A host and two streams by vector clocks: an access that need not come after one it conflicts with is a race."""

    def __init__(self, broken: str = "") -> None:
        super().__init__()
        self.broken, self.current = broken, "tower's"
        self.clocks = {name: Counter[str]() for name in ("host", "tower's", "aside")}
        self.accesses, self.there, self.kept = dict[int, list[tuple[str, int, bool]]](), set[int](), list[Tensor]()

    def route(self, monkeypatch: pytest.MonkeyPatch) -> Route:
        """Return CUDA's own route over these streams, with memory of this machine."""
        fakes = {"device": nullcontext, "Stream": object, "stream": self.aside, "Event": partial(Event, self)}
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        return Route.to(torch.device("cuda"))._replace(host=torch.empty, there=self.allocate, graph=None)

    def allocate(self, host: Tensor) -> Tensor:
        self.kept.append(torch.empty_like(host))
        self.there.add(self.kept[-1].data_ptr())
        return self.kept[-1]

    @contextmanager
    def aside(self, stream: object) -> Iterator[None]:
        self.current = "aside"
        yield
        self.current = "tower's"

    def launch(self, who: str) -> Counter[str]:
        self.clocks[who] |= self.clocks["host"]  # the most of each: what is launched comes after what the host did
        self.clocks[who][who] += 1
        return self.clocks[who]

    def access(self, who: str, place: int, writes: bool) -> None:
        known = self.accesses.setdefault(place, [])
        for other, tick, wrote in known:
            assert not (writes or wrote) or self.clocks[who][other] >= tick, f"a race of {who} with {other}"
        known.append((who, self.clocks[who][who], writes))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = ([x for x in tree_leaves(tree) if isinstance(x, Tensor)] for tree in ((args, kwargs), out))
        self.kept += made  # so that no address comes twice
        there = any(x.untyped_storage().data_ptr() in self.there for x in given)
        if there:
            self.there |= {x.untyped_storage().data_ptr() for x in made}
        if not func.is_view:
            who = self.current if there else "host"
            self.launch(who)
            writes = {x.untyped_storage().data_ptr() for x in made}
            for place in {x.untyped_storage().data_ptr() for x in given} | writes:
                self.access(who, place, place in writes)
        return out


class Event:
    def __init__(self, streams: Streams, *, enable_timing: bool, blocking: bool) -> None:
        self.streams, self.clock = streams, Counter[str]()

    def record(self) -> None:
        self.clock = self.streams.launch(self.streams.current).copy()

    def wait(self) -> None:
        if self.streams.broken != "wait":
            self.streams.clocks[self.streams.current] |= self.clock

    def synchronize(self) -> None:
        if self.streams.broken != "synchronize":
            self.streams.clocks["host"] |= self.clock

    def elapsed_time(self, later: "Event") -> float:
        return 0.0


@pytest.mark.parametrize("broken", ["", "wait", "synchronize"])
def test_no_stream_reads_what_another_still_writes(broken: str, monkeypatch: pytest.MonkeyPatch):
    streams, stack = Streams(broken), lanes.stack

    def noted(items: list[Item], out: np.ndarray) -> None:
        streams.launch("host")
        streams.access("host", out.ctypes.data, writes=True)
        stack(items, out)

    monkeypatch.setattr(lanes, "stack", noted)
    route = streams.route(monkeypatch)
    with streams:
        if broken:
            with pytest.raises(AssertionError, match="a race of"):
                run(route, [])
            return
        found = run(route, [])
    check(found)
