"""Batches of pictures on their way to a device and back, one copied while the tower computes another."""

import time
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip import transform as open_clip_transforms
from timm.data import transforms as timm_transforms
from torch import Tensor
from torchvision.transforms import Compose, Normalize, ToTensor

from harness.apps.vectors.decode import DecodedChunk, Item, Transform, stack
from zoo.deploy.runtime import CUDA_GRAPHS, find_runtime
from zoo.deploy.runtimes.in_process import capture

LANES = 2  # batches on their way at a time; results are fetched when all lanes are taken, one batch late
TO_TENSOR = (ToTensor, timm_transforms.MaybeToTensor, open_clip_transforms.MaybeToTensor)
Forward = Callable[[Tensor], Tensor]  # from pictures on the device to features (n, D) float32 there
Finish = Callable[[Tensor], NDArray[np.float32]]  # from features here to vectors in memory of their own


def split_preprocessing(preprocess: Transform, device: str) -> tuple[Transform, Callable[[Tensor], Tensor] | None]:
    """Split a preprocessing into steps on each picture and steps on a batch on the device.

    Returns:
        What makes a PIL picture of the tower's size, and what maps such pictures, uint8 (n, H, W, C), to float32
        (n, C, H, W), with the bits of `ToTensor` and `Normalize`. Where a preprocessing doesn't end with these two,
        all of it, and None.
    """
    steps = list(getattr(preprocess, "transforms", ()))
    if len(steps) < 2 or type(steps[-2]) not in TO_TENSOR or type(steps[-1]) is not Normalize:
        return preprocess, None
    full, mean, std = (
        torch.as_tensor(each, dtype=torch.float32, device=device).view(-1, 1, 1)
        for each in (255.0, steps[-1].mean, steps[-1].std)  # for a number CUDA would multiply by its inverse
    )

    def scale(pixels: Tensor) -> Tensor:
        images = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return images.div_(full).sub_(mean).div_(std)

    return Compose(steps[:-2]), scale


class _Moment:
    """Stands for torch.cuda.Event on a device that has done its work when a call returns."""

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def wait(self) -> None:
        pass

    synchronize = wait

    def elapsed_time(self, later: "_Moment") -> float:
        return 1000 * (later.seconds - self.seconds)


def capture_graph(forward: Forward, pixels: Tensor) -> Forward | None:
    """Capture the tower as a CUDA graph for batches like this one; warn and return None where it can't be."""
    try:
        return capture(forward, pixels)
    except RuntimeError as error:
        if not find_runtime(CUDA_GRAPHS).is_refusal(error):
            raise
        warnings.warn(f"the tower runs without a CUDA graph: {error}", stacklevel=2)
        return None


class Route(NamedTuple):
    """How batches reach a device; by default in turn, as on a CPU, where all is done when a call returns."""

    there: Callable[[Tensor], Tensor]  # as much memory on the device as some here takes
    host: Callable[..., Tensor] = torch.empty
    overlaps: bool = False  # copies run beside the tower
    event: Callable[[], Any] = _Moment
    current: Callable[[], AbstractContextManager[Any]] = nullcontext  # makes the device the current one
    aside: Callable[[], AbstractContextManager[Any]] = nullcontext  # launches on a stream beside the tower's
    graph: Callable[[Forward, Tensor], Forward | None] | None = None  # captures the tower, for batches of one size

    @classmethod
    def to(cls, device: torch.device) -> "Route":
        """Return the route to a device; to CUDA's from pinned memory by a stream of its own, and as a CUDA graph."""
        if device.type != "cuda":
            return cls(lambda host: host.to(device))
        current = partial(torch.cuda.device, device)
        with current():
            stream = torch.cuda.Stream()
        return cls(
            there=partial(torch.empty_like, device=device),
            host=partial(torch.empty, pin_memory=True),
            overlaps=True,
            event=partial(torch.cuda.Event, enable_timing=True, blocking=True),
            current=current,
            aside=partial(torch.cuda.stream, stream),
            graph=capture_graph,
        )


class _Lane:
    """Memory for one batch on its way to the device and back, and events that mark its progress."""

    def __init__(self, route: Route, batch: int, like: NDArray[Any], width: int) -> None:
        dtype = torch.uint8 if like.dtype == np.uint8 else torch.float32
        self.pixels = route.host(batch, *like.shape, dtype=dtype)
        self.there = route.there(self.pixels)
        self.features = route.host(batch, width, dtype=torch.float32)
        self.sent, self.copied, self.begun, self.done = (route.event() for _ in range(4))


class EmbeddedBatch(NamedTuple):
    """A batch with its vectors (n, D), None if no item can be embedded, and the seconds of each stage."""

    items: list[Item]  # without pixels
    vectors: NDArray[np.float32] | None
    seconds: dict[str, float]
    places: Sequence[int]  # of the items in the source
    budget: int = 0


def pool_budgets(
    batches: Iterable[DecodedChunk], assign: Callable[[Tensor], Tensor], size: int
) -> Iterator[DecodedChunk]:
    """Regroup batches by the budgets that ``assign`` gives their pixels (n, ...): all of ``size`` but the last of each.

    At most as many pictures wait as there are budgets times ``size``; what can't be read waits with them.
    """
    pools = defaultdict[int, list[tuple[Item, int]]](list)
    decoding_s = assigning_s = 0.0

    def take(budget: int) -> DecodedChunk:
        nonlocal decoding_s, assigning_s
        items, places = zip(*pools[budget][:size], strict=True)
        del pools[budget][:size]
        chunk = DecodedChunk([*items], decoding_s, places, budget, assigning_s)
        decoding_s = assigning_s = 0.0
        return chunk

    for batch in batches:
        decoding_s += batch.seconds
        begin = time.perf_counter()
        pixels = stack(batch.items)
        budgets = [0] * len(batch.items) if pixels is None else assign(torch.from_numpy(pixels)).tolist()
        assigning_s += time.perf_counter() - begin
        for budget, item, place in zip(budgets, batch.items, batch.places, strict=True):
            pools[budget].append((item, place))
        while full := [budget for budget, pool in pools.items() if len(pool) >= size]:
            yield take(full[0])
    for budget in sorted(pools):
        if pools[budget]:
            yield take(budget)


class LaneRing:
    """Sends batches through a tower, or the towers of its budgets, ``forwards``.

    For CUDA graphs they are filled up to ``batch`` pictures.
    """

    def __init__(self, forwards: Sequence[Forward], finish: Finish, route: Route, *, batch: int, width: int) -> None:
        self._forwards, self._finish, self._route = list(forwards), finish, route
        self._batch, self._width = batch, width
        self._lanes = deque[_Lane]()
        self._static = False

    def run(self, batches: Iterable[DecodedChunk]) -> Iterator[EmbeddedBatch]:
        """Yield the result of each batch, in order, when the next batch is on its way.

        Seconds are ``decoding_s``, ``copying_s`` on the way there, and ``model_s`` with the way back.
        """
        sent = deque[tuple[EmbeddedBatch, _Lane | None]]()
        for batch in batches:
            sent.append(self._send(batch))
            if len(sent) == LANES:
                yield self._fetch(*sent.popleft())
        for each in sent:
            yield self._fetch(*each)

    @torch.inference_mode()
    def _send(self, batch: DecodedChunk) -> tuple[EmbeddedBatch, _Lane | None]:
        items = [item._replace(pixels=None) for item in batch.items]
        seconds = {"decoding_s": batch.seconds, "model_s": batch.assigning_s}
        known = EmbeddedBatch(items, None, seconds, batch.places, batch.budget)
        some = next((item.pixels for item in batch.items if item.pixels is not None), None)
        if some is None:
            return known, None
        with self._route.current():
            if not self._lanes:
                self._prepare(some)
            self._lanes.rotate()
            lane, count, begin = self._lanes[0], len(items), time.perf_counter()
            stack(batch.items, lane.pixels[:count].numpy())
            size = self._batch if self._static else count
            lane.pixels[count:size] = 0
            known.seconds["copying_s"] = time.perf_counter() - begin
            self._launch(lane, size, self._forwards[batch.budget])
        return known, lane

    def _prepare(self, like: NDArray[Any]) -> None:
        self._lanes.extend(_Lane(self._route, self._batch, like, self._width) for _ in range(LANES))
        there = self._lanes[0].there.zero_()
        if self._route.graph is not None:
            graphs = [self._route.graph(forward, there) for forward in self._forwards]
            if captured := [graph for graph in graphs if graph is not None]:
                assert len(captured) == len(graphs)
                self._forwards, self._static = captured, True
        for lane in self._lanes:  # whatever used this memory before has ended
            lane.done.record()
            lane.done.synchronize()

    def _launch(self, lane: _Lane, size: int, forward: Forward) -> None:
        """Start the copy there, the tower and the copy back; the lane's batch before has been fetched."""
        at_once = self._route.overlaps
        with self._route.aside():
            lane.sent.record()
            if lane.there is not lane.pixels:
                lane.there[:size].copy_(lane.pixels[:size], non_blocking=at_once)
            lane.copied.record()
        lane.copied.wait()
        lane.begun.record()
        lane.features[:size].copy_(forward(lane.there[:size]), non_blocking=at_once)
        lane.done.record()

    def _fetch(self, known: EmbeddedBatch, lane: _Lane | None) -> EmbeddedBatch:
        if lane is None:
            return known
        lane.done.synchronize()
        known.seconds["copying_s"] += lane.sent.elapsed_time(lane.copied) / 1000
        known.seconds["model_s"] += lane.begun.elapsed_time(lane.done) / 1000
        return known._replace(vectors=self._finish(lane.features[: len(known.items)]))
