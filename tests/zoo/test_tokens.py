"""Pruning, merging and ranking of tokens against slow loops; keep arithmetic, settings, the register of methods."""

import re
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lively import Build
from torch import Tensor, nn

import zoo
from zoo.core.reducer import Reducer, final_count, register_method, token_counts
from zoo.core.tokens import Reduction, Tokens, append_fused, ascending, lowest, rank_scores, tokens_of, top


def start(batch: int = 2, prefix: int = 1, grid: tuple[int, int] = (3, 4), dim: int = 5) -> Tokens:
    return Tokens.start(torch.randn(batch, prefix + grid[0] * grid[1], dim), prefix, grid)


@given(
    values=st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=3),
    count=st.integers(1, 6),
)
def test_top_is_a_stable_sort(values: list[list[int]], count: int):
    found = top(torch.tensor(values, dtype=torch.float32), count)
    for row, kept in zip(values, found.tolist(), strict=True):
        assert kept == sorted(sorted(range(6), key=lambda place: (-row[place], place))[:count])


def test_what_is_exported_instead_of_sorting_breaks_ties_alike(monkeypatch: pytest.MonkeyPatch):
    values = torch.randint(3, (4, 5, 12)).float().masked_fill(torch.rand(4, 5, 12) < 0.3, torch.inf)
    eager = [ascending(values[:, 0]), *lowest(values)]
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert all(torch.equal(*pair) for pair in zip(eager, [ascending(values[:, 0]), *lowest(values)], strict=True))


def test_merged_tokens_have_the_mean_place():
    tokens = Tokens.start(torch.randn(1, 9, 4), 0, (3, 3), torch.zeros(9, 2))
    for gone, into in (([0], [8]), ([0, 3], [7, 7])):  # then positions in the shorter sequence
        positions = torch.tensor([gone]), torch.tensor([into])
        tokens = tokens.merge(0, *positions, torch.zeros(1, len(gone)))
    last = tokens.token_of_patch()[0]
    cells = torch.tensor([[cell // 3, cell % 3] for cell in range(9)]).float()
    means = torch.stack([cells[last == token].mean(dim=0) for token in range(6)])
    assert torch.allclose(tokens.places()[0], means)
    kept = tokens.select(1, torch.zeros(1, 6), torch.tensor([[1, 5]]))
    assert torch.equal(kept.places()[0], tokens.places()[0, [1, 5]])


@pytest.mark.parametrize("rescale", [False, True])
def test_a_merge_as_one_product_is_that_by_sums(rescale: bool, monkeypatch: pytest.MonkeyPatch):
    """Exported models and GPUs merge by it; 2, 5 and 7 go into one token, 9 and 10 into others."""
    start = Tokens.start(torch.randn(3, 14, 8), 2, (3, 4), torch.zeros(12, 2))._replace(importance=torch.rand(3, 12))
    shift = torch.arange(3)[:, None]  # other tokens in each image
    first = [(shift + torch.tensor(positions)) % 12 for positions in ([2, 9, 5, 10, 7], [4, 3, 4, 0, 4])]
    second = [torch.tensor([positions] * 3) for positions in ([0, 3], [5, 5])]
    found = []
    for exporting in (False, True):
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda exporting=exporting: exporting)
        once = start.merge(0, *first, torch.zeros(3, 5), rescale=rescale)
        found.append(once.merge(1, *second, torch.ones(3, 2), rescale=rescale))
    for name, sums, product in zip(Tokens._fields, *found, strict=True):
        if isinstance(sums, torch.Tensor):
            assert torch.allclose(sums, product, atol=1e-6), name
    assert (found[0].key_weight is None) != rescale
    for sums, product in zip(found[0].history, found[1].history, strict=True):
        assert all(torch.equal(*pair) for pair in zip(sums[1:], product[1:], strict=True))


def slow_order(history: tuple[Reduction, ...], image: int, patches: int) -> list[int]:
    """Sort by last stage reached, survival of it, importance at it, then grid position."""
    fate: dict[int, tuple[int, bool, float]] = {}
    for stage, went in enumerate(history):
        after, scores = went.after[image].tolist(), went.importance[image].tolist()
        for position, score in zip(went.before[image].tolist(), scores, strict=True):
            fate[position] = (stage, position in after, score)
    return sorted(range(patches), key=lambda p: (*(-float(f) for f in fate[p]), p))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("counts", [[7], [10, 6, 2], [11, 10, 9, 1]])
def test_what_a_history_of_pruning_tells(counts: list[int], ties: bool):
    """The ranking is by departure, then importance; a pruned patch is in no token."""
    tokens = start(batch=3)
    for block, count in enumerate(counts):
        importance = torch.rand(3, tokens.patch_count)
        tokens = tokens.prune(block, importance.mul(3).floor() if ties else importance, count)
    order = rank_scores(tokens.history, 12).argsort(dim=1, descending=True, stable=True)
    token = tokens_of(tokens.history, 12)
    for image in range(3):
        assert order[image].tolist() == slow_order(tokens.history, image, 12)
        for patch in range(12):
            stays = patch in tokens.patch_idx[image].tolist()
            assert token[image, patch] == (patch if stays else -1)


def apply(step: str, block: int, tokens: Tokens, groups: list[list[set[int]]]) -> Tokens:
    """Prune, fuse or merge three tokens, those of ``groups`` (a set of patches per token) slowly."""
    left, importance = tokens.patch_count - 3, torch.rand(len(groups), tokens.patch_count)
    if step == "merge":
        gone, into = importance.argsort(dim=1)[:, :6].split(3, dim=1)
        into = into[:, :1].where(importance[:, :1] > 0.5, into)  # now and then all into one
        tokens = tokens.merge(block, gone, into, torch.zeros(len(groups), 3))
        away = gone.tolist()
        for own, pairs in zip(groups, torch.stack((gone, into), dim=2).tolist(), strict=True):
            for source, goal in pairs:
                own[goal] |= own[source]
    else:
        kept = tokens.prune(block, importance, left)
        tokens = append_fused(kept, tokens, importance) if step == "fuse" else kept
        away = importance.argsort(dim=1)[:, :3].tolist()
    for own, lost in zip(groups, away, strict=True):
        fused = [set[int]().union(*(own[place] for place in lost))] if step == "fuse" else []
        own[:] = [group for place, group in enumerate(own) if place not in lost] + fused
    return tokens


@pytest.mark.parametrize("missing", ["nearest", "zeros"])
@pytest.mark.parametrize(
    "steps", ["prune", "prune prune", "merge merge", "fuse fuse", "fuse merge prune", "prune merge"]
)
@torch.enable_grad()
def test_every_patch_gets_its_tokens_features(steps: str, missing: str):
    tokens, groups = start(batch=5, prefix=2), [[{patch} for patch in range(12)] for _ in range(5)]
    for block, step in enumerate(steps.split()):
        tokens = apply(step, block, tokens, groups)
    x = tokens.x.bfloat16().detach().requires_grad_()
    unmerged, counts = tokens._replace(x=x).unmerge(missing), torch.zeros_like(x)
    assert torch.equal(unmerged[:, :2], x[:, :2])
    counts[:, :2] = 1
    for image, own in enumerate(groups):
        token = {patch: place for place, group in enumerate(own) for patch in group}
        for patch in range(12):
            row, column = divmod(patch, 4)
            near = min(token, key=lambda other: ((other // 4 - row) ** 2 + (other % 4 - column) ** 2, other))
            if patch not in token and missing == "zeros":
                assert not unmerged[image, 2 + patch].any()
            else:
                place = 2 + token.get(patch, token[near])
                counts[image, place] += 1
                assert torch.equal(unmerged[image, 2 + patch], x[image, place])
    unmerged.sum().backward()
    assert torch.equal(x.grad, counts)


def reduction(block: int, before: list[int], after: list[int], into: list[int], *scores: list[float]) -> Reduction:
    before, after, into = (torch.tensor([part]) for part in (before, after, into))
    return Reduction(block, before, after, torch.tensor(scores) if scores else torch.rand(before.shape), into)


def test_histories_of_merging_and_fusing():
    """3 goes into 2, 2 into 0, which takes 3 along; what a fused token (-1) took up counts as dropped."""
    first = reduction(2, [0, 1, 2, 3], [1, 0, 2], [1, 0, 2, 2])
    history = (first, reduction(5, [1, 0, 2], [1, 0], [0, 1, 1]))
    assert tokens_of(history, 4).tolist() == [[0, 1, 0, 0]]
    history = (reduction(4, [0, 1, 2, 3], [0, 2, -1], [0, 2, 1, 2]), reduction(7, [0, 2, -1], [2, -1], [1, 0, 1]))
    assert tokens_of(history, 4).tolist() == [[-1, -1, 2, -1]]
    first = reduction(0, [0, 1, 2, 3], [0, 2, 3, -1], [0, 3, 1, 2], [0.9, 0.0, 1.0, 2.0])
    scores = rank_scores((first, reduction(1, [0, 2, 3, -1], [0, -1], [0, 1, 1, 1], [0.8, 0.2, 0.1, 0.9])), 4)
    assert scores.argsort(dim=1, descending=True).tolist() == [[0, 2, 3, 1]]


def state(model: nn.Module) -> list[tuple[Any, ...]]:
    """List every attribute of every module by identity, and every tensor by value."""
    entries: list[tuple[Any, ...]] = []
    for name, module in model.named_modules():
        for key, value in sorted(module.__dict__.items()):
            inner = value.items() if isinstance(value, dict) else [("", value)]
            entries += [(name, key, k, id(v)) for k, v in inner]
    return entries + [(name, v.double().sum().item()) for name, v in model.state_dict().items()]


@pytest.mark.parametrize(("name", "options"), [
    ("patchrank", {"reduce_at": [0, 2, 4], "arch": "mlp"}),
    ("evit", {"reduce_at": [1, 3], "fuse": True}),
    ("tome", {}),
])  # fmt: skip
@torch.no_grad()
def test_a_trace_is_consistent_and_leaves_nothing_on_the_model(name: str, options: dict, tiny: Build, images: Tensor):
    model = tiny(f"clip_vit_b16_{name}50", **options)
    before = state(model)
    trace, counts, fused = model.trace(images), model.reducer.counts(64), bool(options.get("fuse"))
    assert torch.equal(trace.output, model(images))
    model.forward_intermediates(images)
    assert state(model) == before
    left, wanted = 64, []
    for block in range(6):
        if block in counts:
            left = counts[block] + fused
        wanted.append(1 + left)
    assert (trace.grid, trace.tokens_per_block, trace.final_tokens) == ((8, 8), tuple(wanted), left)
    assert torch.equal(trace.kept, trace.reductions[-1].after)
    assert [r.block for r in trace.reductions] == list(model.reducer.points)
    arrived = torch.arange(64).expand(3, -1)
    for went in trace.reductions:
        assert torch.equal(went.before, arrived)
        assert went.after.shape[1] == counts[went.block] + fused
        for image in range(3):
            after = [p for p in went.after[image].tolist() if p >= 0]
            assert len(set(after)) == len(after)
            assert set(after) <= set(went.before[image].tolist())
        arrived = went.after
    assert trace.ranking.sort(dim=1).values.tolist() == [list(range(64))] * 3
    assert (trace.scores.gather(1, trace.ranking).diff() <= 0).all()


SCHEDULE = st.sampled_from(["geometric", "linear", "delayed"])
POINTS = st.sets(st.integers(0, 23), min_size=1, max_size=12).map(lambda s: tuple(sorted(s)))


@given(patches=st.integers(1, 1024), percent=st.integers(1, 100))
def test_final_count_is_the_rounded_share(patches: int, percent: int):
    exact = Fraction(percent * patches, 100)
    left = final_count(patches, percent / 100)
    assert 1 <= left <= patches
    assert abs(left - exact) <= Fraction(1, 2) or left == 1


@given(patches=st.integers(1, 1024), keep=st.floats(0.01, 1.0), points=POINTS, schedule=SCHEDULE)
def test_counts_fall_to_the_end(patches: int, keep: float, points: tuple[int, ...], schedule: str):
    counts = token_counts(patches, keep, points, schedule, depth=9)
    assert tuple(counts) == points
    values = [patches, *counts.values()]
    assert all(a >= b for a, b in pairwise(values))
    assert values[-1] == final_count(patches, keep)


def test_stored_schedules():
    assert token_counts(196, 0.6, (3,), "geometric") == {3: 118}
    assert token_counts(196, 0.6, (3, 6, 9), "geometric") == {3: 165, 6: 139, 9: 118}
    assert token_counts(196, 0.6, (3, 6, 9), "linear") == {3: 170, 6: 144, 9: 118}
    assert token_counts(196, 0.5, (0, 3, 6), (0.8, 0.75)) == {0: 157, 3: 147, 6: 98}
    assert token_counts(196, 0.5, (0, 3, 6), (0.8, 0.4)) == {0: 157, 3: 98, 6: 98}  # never fewer than in the end
    # The first of 9 blocks is left alone down to a keep rate of exp(-1/3) = 0.72, of 12 blocks exp(-3/4) = 0.47.
    assert token_counts(1000, 0.8, (0, 3, 5, 7), "delayed", 9) == {0: 1000, 3: 928, 5: 862, 7: 800}
    assert token_counts(1000, 0.3, (0, 3, 5, 7), "delayed", 9) == {0: 706, 3: 531, 5: 399, 7: 300}
    assert token_counts(1000, 0.3, (0, 3, 6, 9), "delayed", 12) == {0: 834, 3: 593, 6: 422, 9: 300}
    assert token_counts(1000, 0.3, (3, 5, 7), "delayed", 9) == token_counts(1000, 0.3, (3, 5, 7), "geometric")
    # Table 4 of the paper: 20 of 196 before each of four blocks.
    assert token_counts(196, 116 / 196, (3, 5, 7, 9), "linear") == {3: 176, 5: 156, 7: 136, 9: 116}


@pytest.mark.parametrize(("method", "options", "quoted"), [
    ("random", {"keep": 0}, "keep=0: expected a number in (0, 1]"),
    ("random", {"keep": float("nan")}, "keep=nan: expected"),
    ("random", {"keep": None}, "expected exactly one of keep"),
    ("random", {"reduce_at": -1}, "reduce_at=-1: expected block indices, integers from 0"),
    ("random", {"reduce_at": [3, 1]}, "reduce_at=[3, 1]: expected at least one index, ascending"),
    ("random", {"reduce_at": [1, 17]}, "reduce_at=17: this tower has blocks 0 to 5"),
    ("random", {"schedule": "cosine"}, "schedule='cosine': expected one of geometric, linear"),
    ("random", {"schedule": (0.5, 0.8)}, "schedule=(0.5, 0.8): expected keep rates in (0, 1], none larger"),
    ("random", {"schedule": [0.7, 0.6], "reduce_at": [1, 3]}, "schedule=(0.7, 0.6): expected 1 keep rates, one"),
    ("random", {"seed": True}, "seed=True: expected an integer in [0, inf)"),
    ("random", {"Keep": 0.6}, "has no option 'Keep': did you mean 'keep'?"),
    ("avit", {"reduce_at": [0, 3]}, "reduce_at=0"),
    ("avit", {"channel": 48}, "channel=48"),
    ("evit", {"keep": None}, "keep or stage_rate, got none of them"),
    ("evit", {"keep": None, "stage_rate": 0}, "stage_rate=0:"),
    ("patchrank", {"arch": "mpl"}, "arch='mpl': did you mean 'mlp'? expected one of conv"),
    ("atc", {"linkage": "ward"}, "linkage='ward'"),
    ("pitome", {"energy_from": 2.5}, "energy_from=2.5"),
    ("pitome", {"proportional": 1}, "proportional=1"),
    ("pitome", {"reduce_at": 2, "keep": 0.4}, "block 2 to merge 38 of 64 patch tokens, at most half can"),
    ("rankmerge", {"rank": "cls", "reduce_at": [0, 2]}, "rank_at=3: expected a block up to the last"),
    ("tome", {"r": 8}, "got keep=0.5, r=8"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(method: str, options: dict[str, Any], quoted: str, tower: zoo.ReducedViT):
    with pytest.raises(ValueError, match=re.escape(quoted)):
        zoo.reduce(tower, method=method, **{"keep": 0.5, **options})


@pytest.mark.parametrize(("name", "match"), [("Evit", "'Evit': expected lower-case"), ("random", "is taken by Ran")])
def test_refused_names_of_methods(name: str, match: str):
    with pytest.raises(ValueError, match=f"method name .*{match}"):
        register_method(name)(type("Other", (Reducer,), {}))
    assert zoo.METHODS["random"].__name__ == "RandomPrune"
