"""Every method's cost by closed form: multiply-adds and tokens per block.

What methods do beside the tower's blocks is written down here; of a method without that only the blocks are known.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import pytest
import timm
import torch

import zoo
from harness.measure.cost import gflops
from zoo.loading.sizes import SIZES

NARROW = {"embed_dim": 96, "num_heads": 4}  # unlike each other, the head's and the predictor's width
ALL = ("dense", *sorted(zoo.METHODS))
LEARNED = 1  # class token


class Tower(NamedTuple):
    """Geometry of a tower, from its size's description alone."""

    width: int
    heads: int
    depth: int
    patches: int
    patch: int
    pre_norm: bool
    features: int

    @classmethod
    def of(cls, size: str) -> "Tower":
        args = {**SIZES[size].vit_args, **NARROW}
        patch = args["patch_size"]
        shape = (args["embed_dim"], args["num_heads"], args["depth"])
        count = (SIZES[size].image // patch) ** 2
        return cls(*shape, count, patch, bool(args.get("pre_norm")), SIZES[size].features)


class Extra(NamedTuple):
    """What a method does in one place beside the blocks."""

    products: int = 0
    normed: int = 0  # elements

    def __add__(self, other: tuple[int, ...]) -> "Extra":  # type: ignore[override]
        return Extra(*map(sum, zip(self, other, strict=True)))


class Form(NamedTuple):
    """A method as its paper, or our docs, have it."""

    extra: Callable[[Tower, int, int], Extra]  # at a point, where so many patch tokens arrive and so many are left
    points: Callable[[int], Iterable[int]] = lambda _: (3,)  # blocks where tokens go, for a depth
    linear: bool = False  # whether the counts fall evenly; else by equal shares
    delayed: bool = False  # whether block 0 takes less than its share
    inside: bool = False  # whether they go between attention and MLP; else at the block's input
    late: Callable[[Tower, int, int], Extra] | None = None  # ``extra`` of the second half of the blocks

    def counts(self, tower: Tower, keep: float) -> dict[int, int]:
        """Patch tokens left, by the block where they go."""
        patches, last = tower.patches, max(1, round(keep * tower.patches))
        points = [point for point in self.points(tower.depth) if point < tower.depth]
        counts = {}
        for done, point in enumerate(points, start=1):
            share = done / len(points)
            even, rate = patches - round((patches - last) * share), keep**share
            if self.delayed:
                spared = max(0, min(3 / 4, (tower.depth - 7) / 6))
                first = min(1.0, (keep * math.exp(spared)) ** 0.4)
                rate = first * (keep / first) ** ((done - 1) / (len(points) - 1))
            counts[point] = even if self.linear else max(last, round(patches * rate))
        return counts | {points[-1]: last}


def conv_predictor(tower: Tower, arrived: int, _left: int, channels: int = 64) -> Extra:
    """Norm, tokens and context to 64 channels, two 5 x 5 depthwise, a hidden layer, a score."""
    n, d, w = arrived, tower.width, channels
    return Extra(n * d * w + 2 * d * w + 2 * 25 * n * w + n * w * w + n * w, normed=(n + LEARNED) * d)


def own_row(tower: Tower, arrived: int, _left: int) -> Extra:
    """Norm, the class token's query, the keys' weights times it, and its product with tokens."""
    t, d, h = arrived + LEARNED, tower.width, tower.heads
    return Extra(d * d + d * d + h * t * d, normed=t * d)


def row_of_attention(tower: Tower, arrived: int, _left: int) -> Extra:
    """The class token's query times the keys, once more."""
    return Extra((arrived + LEARNED) * tower.width)


def matching(tower: Tower, arrived: int, left: int) -> Extra:
    """Odd places times even ones, in the width of a head; nothing where none is merged."""
    pairs = (arrived // 2) * (arrived - arrived // 2) if left < arrived else 0
    return Extra(pairs * (tower.width // tower.heads))


def energies(tower: Tower, arrived: int, left: int) -> Extra:
    """All tokens times all, in the width of a head, then matching among all."""
    return every_key(tower, arrived, left) + matching(tower, arrived, left)


def late_energies(tower: Tower, arrived: int, left: int) -> Extra:
    """All tokens times all, then matching among twice as many as go."""
    return every_key(tower, arrived, left) + matching(tower, 2 * (arrived - left), 0)


def every_key(tower: Tower, arrived: int, left: int) -> Extra:
    """Each token's key times each, in the width of a head; nothing where none is merged."""
    return Extra(arrived**2 * (tower.width // tower.heads) if left < arrived else 0)


def condensing(tower: Tower, arrived: int, left: int) -> Extra:
    """EViT's fused token, and all tokens to merge, if any, times all of them."""
    centers = min(4, left - 1)
    between = arrived - (left - 1 - centers) - (arrived - left + 3) // 3
    pairs = between**2 if between > centers and left < arrived else 0
    return fusing(tower, arrived, left) + Extra(pairs * tower.width)


def sorting(tower: Tower, arrived: int, left: int) -> Extra:
    """The class token's row, and tokens to merge times those that are left, in the tower's width."""
    gone = arrived - left
    pairs = (gone - round(gone / 2)) * left
    return row_of_attention(tower, arrived, left) + Extra(pairs * tower.width)


def fusing(tower: Tower, arrived: int, left: int) -> Extra:
    """EViT's row, then one product of the weights of those dropped with all tokens."""
    return row_of_attention(tower, arrived, left) + Extra(arrived * tower.width if left < arrived else 0)


def every_pair(tower: Tower, arrived: int, left: int) -> Extra:
    """Each token times each, as wide as the tower, and both places in the grid with their squares."""
    return Extra(arrived**2 * (tower.width + 4) if left < arrived else 0)


def nothing(*_: object) -> Extra:
    return Extra()


def quarters(depth: int) -> list[int]:
    """Stages as EViT has them in 12 blocks, in proportion, halves rounded up."""
    return [int(depth * stage / 4 + 0.5) for stage in (1, 2, 3)]


def first_and_quarters(depth: int) -> list[int]:
    return [0, *(math.ceil(depth * stage / 4) for stage in (1, 2, 3))]


FORMS = {
    "patchrank": Form(conv_predictor),
    "random": Form(nothing),
    "clsattn": Form(own_row),
    "evit": Form(row_of_attention, quarters, inside=True),
    "evitfuse": Form(fusing, quarters, inside=True),
    "atc": Form(every_key, quarters, inside=True),
    "avit": Form(nothing, lambda depth: range(1, depth), linear=True),
    "tome": Form(matching, range, linear=True, inside=True),
    "diffrate": Form(sorting, lambda depth: range(1, depth), linear=True, inside=True),
    "pitome": Form(energies, range, inside=True, late=late_energies),
    "tofu": Form(matching, range, linear=True, inside=True),
    "tca": Form(condensing, quarters, inside=True),
    "rankmerge": Form(every_pair, first_and_quarters, inside=True, delayed=True),
}


def costs(tower: Tower, form: Form, counts: dict[int, int]) -> tuple[int, tuple[int, ...]]:
    """Return multiply-adds and tokens per block; LayerNorm is 5 per element, as fvcore counts."""
    d = tower.width
    n = tower.patches
    products, tokens = n * 3 * tower.patch**2 * d, list[int]()
    normed = (n + LEARNED) * d if tower.pre_norm else 0
    for block in range(tower.depth):
        arrived, n, extra = n, counts.get(block, n), Extra()
        if block in counts:
            late = form.late is not None and block >= (tower.depth + 1) // 2
            extra = (form.late if late else form.extra)(tower, arrived, n)
        attends = (arrived if form.inside else n) + LEARNED
        thinks = n + LEARNED
        products += 4 * attends * d * d + 2 * attends**2 * d + 8 * thinks * d * d + extra.products
        normed += (attends + thinks) * d + extra.normed
        tokens.append(thinks)
    products += 5 * (normed + (n + LEARNED) * d) + d * tower.features
    return products, tuple(tokens)


@pytest.fixture(autouse=True, scope="module")
def _let_go() -> Iterator[None]:
    yield
    dense_of.cache_clear()


@lru_cache(maxsize=1)
def dense_of(size: str) -> zoo.ReducedViT:
    return timm.create_model(f"clip_vit_{size}", **NARROW).eval()


@pytest.mark.parametrize("keep", [0.9, 0.3])
@pytest.mark.parametrize(("size", "method"), [*product(SIZES, ("dense", "rankmerge")), *product(("s14",), ALL)])
def test_every_size_and_every_method_on_a_narrow_tower(size, method, keep):
    """Compare the model with its closed form, exactly; without one it costs what its blocks do, or more."""
    tower, form, model, side = Tower.of(size), Form(nothing), dense_of(size), SIZES[size].image
    counts = {}
    if method != "dense":
        model = zoo.reduce(model, method=method, keep=keep).eval()
        form = FORMS.get(method, Form(nothing, inside=model.reducer.in_block))
        counts = form.counts(tower, keep) if method in FORMS else model.reducer.counts(tower.patches)
    products, tokens = costs(tower, form, counts)
    cost = gflops(model, side)
    assert cost.unsupported == (), f"{method} runs operators that nobody counts"
    spent = round(1e9 * cost.gflops)
    assert spent == products if method in (*FORMS, "dense") else spent >= products
    with torch.inference_mode():
        assert model.trace(torch.zeros(1, 3, side, side)).tokens_per_block == tokens
