"""Every method's cost by closed form: multiply-adds, activations, tokens per block.

What a method does beside the tower's blocks is written down here; a method without that fails.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import timm
import torch

import zoo
from harness.models.cost import gflops
from zoo.sizes import SIZES

NARROW = {"embed_dim": 64, "num_heads": 4}
ALL = ("dense", *sorted(zoo.METHODS))
LEARNED = 1  # class token


@dataclass(frozen=True, kw_only=True)
class Tower:
    """Geometry of a tower, from its size's description alone."""

    size: str
    narrow: bool

    @property
    def args(self) -> dict:
        return {**SIZES[self.size].vit_args, **(NARROW if self.narrow else {})}

    @property
    def width(self) -> int:
        return self.args["embed_dim"]

    @property
    def heads(self) -> int:
        return self.args["num_heads"]

    @property
    def depth(self) -> int:
        return self.args["depth"]

    @property
    def patches(self) -> int:
        return (SIZES[self.size].image // self.args["patch_size"]) ** 2


@dataclass(frozen=True, kw_only=True)
class Extra:
    """What a method does in one place beside the blocks: products, their results, LayerNorms."""

    products: int = 0
    results: int = 0
    normed: int = 0  # elements


Counts = dict[int, int]  # patch tokens left, by the block where they go


@dataclass(frozen=True, kw_only=True)
class Form:
    """A method as its paper, or our docs, have it.

    Attributes:
        points: where tokens go, in a tower so deep.
        linear: whether the counts fall evenly; else by equal shares.
        inside: whether they go between attention and MLP; else at the block's input.
        extra: work at a point, where so many patch tokens arrive.
    """

    points: Callable[[int], tuple[int, ...]]
    linear: bool = False
    inside: bool = False
    extra: Callable[[Tower, int, int], Extra]

    def counts(self, patches: int, depth: int, keep: float) -> Counts:
        points, last = self.points(depth), max(1, round(keep * patches))
        found = {}
        for done, point in enumerate(points, start=1):
            share = done / len(points)
            even = patches - round((patches - last) * share)
            found[point] = even if self.linear else max(last, round(patches * keep**share))
        return found | {points[-1]: last}


def conv_predictor(tower: Tower, arrived: int, _left: int, channels: int = 64) -> Extra:
    """Norm, tokens and context to 64 channels, two 5 x 5 depthwise, a hidden layer, a score."""
    n, d, w = arrived, tower.width, channels
    products = n * d * w + 2 * d * w + 2 * 25 * n * w + n * w * w + n * w
    results = n * w + w + 2 * n * w + n * w + n
    return Extra(products=products, results=results, normed=(n + LEARNED) * d)


def own_row(tower: Tower, arrived: int, _left: int) -> Extra:
    """Norm, the class token's query, the keys' weights times it, and its product with tokens."""
    t, d, h = arrived + LEARNED, tower.width, tower.heads
    products = d * d + d * d + h * t * d
    return Extra(products=products, results=d + h * d + h * t, normed=t * d)


def row_of_attention(tower: Tower, arrived: int, _left: int) -> Extra:
    """The class token's query times the keys, once more."""
    t = arrived + LEARNED
    return Extra(products=t * tower.width, results=tower.heads * t)


def matching(tower: Tower, arrived: int, left: int) -> Extra:
    """Odd places times even ones, in the width of a head; nothing where none is merged."""
    pairs = (arrived // 2) * (arrived - arrived // 2) if left < arrived else 0
    return Extra(products=pairs * (tower.width // tower.heads), results=pairs)


def nothing(_tower: Tower, _arrived: int, _left: int) -> Extra:
    return Extra()


def at_3(_depth: int) -> tuple[int, ...]:
    return (3,)


FORMS = {
    "patchrank": Form(points=at_3, extra=conv_predictor),
    "random": Form(points=at_3, extra=nothing),
    "clsattn": Form(points=at_3, extra=own_row),
    "evit": Form(
        points=lambda depth: tuple(p for p in (3, 6, 9) if p < depth),
        inside=True,
        extra=row_of_attention,
    ),
    "tome": Form(
        points=lambda depth: tuple(range(depth)), linear=True, inside=True, extra=matching
    ),
}
LACKING = (
    "has no closed form: write one into FORMS of tests/harness/test_closed_forms.py, where tokens "
    "go and what the reducer computes beside the blocks, so that nobody doubts its GFLOPs"
)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A model's cost by closed form."""

    products: int
    results: int
    tokens: tuple[int, ...]


def expected(tower: Tower, form: Form | None, keep: float) -> Expected:
    """Go through the tower block by block; LayerNorm is 5 per element, as fvcore counts."""
    d, h, out = tower.width, tower.heads, SIZES[tower.size].features
    counts = {} if form is None else form.counts(tower.patches, tower.depth, keep)
    n, patch = tower.patches, tower.args["patch_size"]
    products, results, tokens = n * 3 * patch**2 * d, n * d, []
    normed = (n + LEARNED) * d if tower.args.get("pre_norm") else 0
    for block in range(tower.depth):
        arrived = n
        n = counts.get(block, n)
        extra = Extra()
        if form is not None and block in counts:
            extra = form.extra(tower, arrived, n)
        attends, thinks = (
            (arrived if form is not None and form.inside else n) + LEARNED,
            n + LEARNED,
        )
        products += 4 * attends * d * d + 2 * attends**2 * d + 8 * thinks * d * d + extra.products
        results += 5 * attends * d + h * attends**2 + 5 * thinks * d + extra.results
        normed += (attends + thinks) * d + extra.normed
        tokens.append(thinks)
    products += 5 * (normed + (n + LEARNED) * d) + d * out
    return Expected(products=products, results=results + out, tokens=tuple(tokens))


@cache
def dense_of(size: str, narrow: bool) -> zoo.ReducedViT:
    return timm.create_model(f"clip_vit_{size}", **(NARROW if narrow else {})).eval()


def check(size: str, method: str, keep: float, *, narrow: bool) -> None:
    """Compare the model with its closed form: 0.5 % is promised, and nothing at all is off."""
    assert method == "dense" or method in FORMS, f"method {method!r} {LACKING}"
    tower, form = Tower(size=size, narrow=narrow), FORMS.get(method)
    model = dense_of(size, narrow)
    if form is not None:
        model = zoo.reduce(model, method=method, keep=keep).eval()
    wanted, side = expected(tower, form, keep), SIZES[size].image
    cost = gflops(model, side)
    assert cost.unsupported == (), f"{method} runs operators that nobody counts"
    assert 1e9 * cost.gflops == pytest.approx(wanted.products, rel=0.005)
    assert round(1e9 * cost.gflops) == wanted.products
    assert cost.activations == wanted.results
    with torch.inference_mode():
        trace = model.trace(torch.zeros(1, 3, side, side))
    assert trace.tokens_per_block == wanted.tokens


def test_every_method_has_a_closed_form():
    assert [f"{name} {LACKING}" for name in zoo.METHODS if name not in FORMS] == []
    assert [name for name in FORMS if name not in zoo.METHODS] == []


@pytest.mark.parametrize(
    ("method", "keep"),
    [
        ("dense", 1.0),
        *((method, keep) for method in sorted(zoo.METHODS) for keep in (0.9, 0.6, 0.3)),
    ],
)
@pytest.mark.parametrize("size", SIZES)
def test_every_size_with_every_method_on_a_narrow_tower(size: str, method: str, keep: float):
    check(size, method, keep, narrow=True)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("size", ["b32", "b16", "s14"])
def test_full_towers_of_random_weights(size: str, method: str):
    check(size, method, 0.6, narrow=False)


@pytest.mark.slow
@pytest.mark.parametrize("method", ALL)
def test_the_large_tower_of_random_weights(method: str):
    check("l14", method, 0.6, narrow=False)


def test_a_method_without_a_closed_form_fails_with_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(zoo.METHODS, "newcomer", zoo.METHODS["random"])
    with pytest.raises(AssertionError, match="'newcomer' has no closed form: write one into FORMS"):
        check("b32", "newcomer", 0.6, narrow=True)
    with pytest.raises(AssertionError, match="newcomer has no closed form"):
        test_every_method_has_a_closed_form()
