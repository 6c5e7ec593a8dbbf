"""Golden rankings against a loop that removes one window at a time from one image."""

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

import zoo
from zoo.methods.rankmerge import RankMergeConfig
from zoo.ranking.golden import SCORES, GoldenConfig, GoldenEngine, golden_importance
from zoo.ranking.suffix import follow
from zoo.ranking.windows import mean_over_windows, windows

Build = Callable[..., nn.Module]
GRID = 8
LABELS = torch.tensor([4, 0, 2])
SCALE = 5.0


@pytest.fixture
def text() -> Tensor:
    """Five classes in the joint space of 7."""
    return F.normalize(torch.randn(5, 7, generator=torch.Generator().manual_seed(3)), dim=-1)


def places(side: int, window: int, stride: int) -> list[int]:
    """First rows (or columns) of the windows, by walking until the border is touched."""
    starts, start = [], 0
    while start + window < side:
        starts.append(start)
        start += stride
    return [*starts, side - window]


class Remains:
    """Score what is left of one image, through timm's own blocks, norm and head."""

    @torch.no_grad()
    def __init__(self, tower: nn.Module, image: Tensor, config: GoldenConfig, text: Tensor, label: int) -> None:
        self.tower, self.config, self.text, self.label = tower, config, text, label
        self.x = tower.norm_pre(tower._pos_embed(tower.patch_embed(image[None])))
        for block in tower.blocks[: config.block]:
            self.x = block(self.x)
        self.full = self.features(list(range(self.x.shape[1] - 1)))

    @torch.no_grad()
    def features(self, keep: list[int]) -> Tensor:
        x = self.x[:, [0, *(1 + p for p in keep)]]
        for block in self.tower.blocks[self.config.block :]:
            x = block(x)
        return F.normalize(self.tower.head(self.tower.norm(x)[:, 0])[0], dim=0)

    def score(self, keep: list[int]) -> float:
        features = self.features(keep)
        posterior = (SCALE * self.text @ features).softmax(dim=0)
        scores = {"preservation": features @ self.full, "label": posterior[self.label], "confidence": posterior.max()}
        return float(scores[self.config.score])


def slow_means(remains: Remains, side: int, left: list[int]) -> dict[int, float]:
    """Remove each window alone from the patches ``left``; average the scores of each patch."""
    window, stride = remains.config.window, remains.config.stride
    scores: dict[int, list[float]] = {patch: [] for patch in left}
    for row, column in product(places(side, window, stride), repeat=2):
        steps = product(range(window), repeat=2)
        inside = {(row + r) * side + column + c for r, c in steps} & set(left)
        if inside:
            score = remains.score([p for p in left if p not in inside])
        for patch in inside:
            scores[patch].append(score)
    return {patch: sum(s) / len(s) for patch, s in scores.items()}


def slow_importance(remains: Remains) -> list[float]:
    return [-mean for mean in slow_means(remains, GRID, list(range(GRID * GRID))).values()]


CASES = [  # score, block, window, stride, batch: none divides 3 images x windows, some exceed it
    ("preservation", 3, 2, 2, 7),
    ("preservation", 1, 1, 1, 50),
    ("label", 0, 3, 3, 5),
    ("confidence", 1, 3, 2, 1000),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_equals_removing_one_window_at_a_time(case: tuple, tower: nn.Module, text: Tensor):
    score, block, window, stride, batch = case
    images = torch.randn(3, 3, 64, 64)
    config = GoldenConfig(score=score, block=block, window=window, stride=stride)
    pairs = zip(images, LABELS.tolist(), strict=True)
    slow = torch.tensor([slow_importance(Remains(tower, image, config, text, label)) for image, label in pairs])
    engine = GoldenEngine(tower, config, batch=batch, text=text, scale=SCALE)
    fast = engine.importance(images, LABELS)
    assert fast.shape == (3, GRID * GRID)
    assert fast.dtype == torch.float32
    assert (fast - slow).abs().max() < 1e-5
    # Patches that differ by more than rounding stand in the same order.
    apart = slow.unsqueeze(2) - slow.unsqueeze(1) > 1e-5
    assert (fast.unsqueeze(2) > fast.unsqueeze(1))[apart].all()
    assert apart.float().mean() > 0.25  # of at most a half: the comparison isn't empty


@pytest.mark.parametrize("options", [{}, {"action": "merge"}, {"approximate": "follow:2"}], ids=str)
def test_scores_from_the_same_passes_are_bit_for_bit_those_made_alone(options: dict, tower: nn.Module, text: Tensor):
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    engine = GoldenEngine(tower, GoldenConfig(**options), text=text, scale=SCALE)
    found = engine.importances(images, SCORES, LABELS)
    assert list(found) == list(SCORES)
    for score, importance in found.items():
        alone = GoldenEngine(tower, GoldenConfig(score=score, **options), text=text, scale=SCALE)
        assert torch.equal(importance, alone.importance(images, LABELS))
    assert not torch.equal(found["label"], found["confidence"])
    for config, scores, match in (
        ({"greedy": 16}, ("preservation", "label"), "greedy=16 goes by one score, got preservation, label"),
        ({}, ("preservation", "lable"), "did you mean 'label'"),
        ({}, ("label",), "needs text"),
    ):
        with pytest.raises(ValueError, match=match):
            GoldenEngine(tower, GoldenConfig(**config)).importances(images, scores)


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (3, 2), (5, 5)])
def test_windows_cover_the_grid_and_nothing_else(window: int, stride: int):
    grid = (7, 6)
    found = windows(grid, window, stride)
    assert set(found.flatten().tolist()) == set(range(grid[0] * grid[1]))
    assert len({tuple(row) for row in found.tolist()}) == len(found)
    for row in found.tolist():
        corner = (row[0] // grid[1], row[0] % grid[1])
        cells = {(p // grid[1] - corner[0], p % grid[1] - corner[1]) for p in row}
        assert cells == {(r, c) for r in range(window) for c in range(window)}


def test_border_patches_are_divided_by_the_windows_that_cover_them():
    """Dividing by 4 everywhere, as printed, would make every corner four times less removable."""
    cells = windows((3, 3), 2, 1)  # four windows: corners in one, edges in two, the middle in all
    scores = torch.tensor([[0.1, 0.2, 0.3, 0.6]])
    mean = mean_over_windows(scores, cells, 9)
    expected = [0.1, 0.15, 0.2, 0.2, 0.3, 0.4, 0.3, 0.45, 0.6]
    assert mean[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"score": "lable"}, "score='lable': did you mean 'label'?"),
        ({"window": 0}, "window=0: expected an integer in [1, inf)"),
        ({"stride": 3}, "stride=3: more than window=2 leaves patches out"),
        ({"greedy": 4, "approximate": "follow:6"}, "greedy=4 with approximate='follow:6': expected none, or 'follow:0"),
        ({"greedy": 4, "approximate": "follow:0"}, "window=2: this search goes by single patches"),
        ({"action": "merged"}, "action='merged': did you mean 'merge'?"),
        ({"action": "merge", "approximate": "follow:2"}, "action='merge' with approximate='follow:2': expected"),
        ({"action": "merge", "greedy": 4}, "window=2: this search goes by single patches"),
    ],
)
def test_refused_settings(options: dict, match: str):
    with pytest.raises(ValueError, match=re.escape(match)):
        GoldenConfig(**options)


@pytest.mark.parametrize(
    ("options", "names", "match"),
    [
        ({"window": 9}, (), "window=9: larger than the 8 x 8 patch grid"),
        ({"window": 8}, (), "window=8: the whole 8 x 8 patch grid, so no patch would rank first"),
        ({"block": 6}, (), "block=6: this tower has blocks 0 to 5"),
        ({"score": "label"}, ("labels",), "score='label' needs text"),
        ({"score": "label"}, ("text",), "score='label' needs labels"),
    ],
)
def test_refused_scores(options: dict, names: tuple, match: str, tower: nn.Module, text: Tensor):
    arguments = {k: v for k, v in (("text", text), ("labels", LABELS)) if k in names}
    with pytest.raises(ValueError, match=re.escape(match)):
        golden_importance(tower, torch.zeros(3, 3, 64, 64), GoldenConfig(**options), **arguments)


def test_towers_that_can_not_be_scored(tower: nn.Module, tiny: Build):
    prune.l1_unstructured(tower.blocks[2].mlp.fc1, "weight", 0.5)
    GoldenEngine(tower, GoldenConfig(block=3))
    for model, config, match in (
        (tower, GoldenConfig(block=2), "plain linear layers, this tower has Linear; merge"),
        (zoo.reduce(tower, method="tome", keep=0.5), GoldenConfig(), "the dense model"),
        (zoo.reduce(tower, method=None).train(), GoldenConfig(), "evaluation mode"),
        (tiny("clip_vit_b16").bfloat16(), GoldenConfig(), r"float32 tower, .* has torch\.bfloat16"),
    ):
        with pytest.raises(ValueError, match=f"golden rankings need .*{match}"):
            GoldenEngine(model, config)


SIDE = 4  # of patches of 16 pixels
TWO_LABELS = torch.tensor([4, 0])


@pytest.fixture
def small_tower(tiny: Build) -> zoo.ReducedViT:
    """A small_tower of 16 patches, lively enough that every window matters."""
    return tiny("clip_vit_b16", noise=0.3, patch_size=16, depth=4)


def slow_order(remains: Remains) -> list[int]:
    """Return the patches in the order of removal."""
    left, removed = list(range(SIDE * SIDE)), []
    while left:
        mean = slow_means(remains, SIDE, left)
        # The most dispensable first; of equals the later patch.
        going = sorted(left, key=lambda p: (mean[p], p), reverse=True)[: remains.config.greedy]
        removed += going
        left = [p for p in left if p not in going]
    return removed


@pytest.mark.parametrize(
    ("score", "block", "window", "stride", "step"),
    [
        ("preservation", 0, 1, 1, 1),
        ("label", 1, 2, 2, 4),
        ("confidence", 3, 3, 1, 99),
    ],
)
def test_equals_the_slow_search(
    score: str, block: int, window: int, stride: int, step: int, small_tower: nn.Module, text: Tensor
):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(8))
    config = GoldenConfig(score=score, block=block, window=window, stride=stride, greedy=step)
    engine = GoldenEngine(small_tower, config, text=text, scale=SCALE, batch=5)
    importance = engine.importance(images, TWO_LABELS)
    for i in range(2):
        slow = slow_order(Remains(small_tower, images[i], config, text, int(TWO_LABELS[i])))
        assert importance[i].argsort().tolist() == slow
        assert sorted(importance[i].tolist()) == list(range(SIDE * SIDE))


class Parts:
    """Patch tokens of one image, each of some size and at some place, merged one after another."""

    @torch.no_grad()
    def __init__(self, tower: nn.Module, image: Tensor, config: GoldenConfig, side: int) -> None:
        self.tower, self.config, self.side = tower, config, side
        x = tower.norm_pre(tower._pos_embed(tower.patch_embed(image[None])))
        for block in tower.blocks[: config.block]:
            x = block(x)
        self.cls = x[0, 0]
        self.tokens = {p: (token, 1) for p, token in enumerate(x[0, 1:])}

    def nearest(self, patch: int, others: list[int]) -> int:
        def alike(other: int) -> float:
            cosine = F.cosine_similarity(self.tokens[patch][0], self.tokens[other][0], dim=0)
            (a, b), (c, d) = divmod(patch, self.side), divmod(other, self.side)
            return float(cosine) - RankMergeConfig.distance * ((a - c) ** 2 + (b - d) ** 2) / self.side**2

        return max(others, key=alike)

    def without(self, going: set[int]) -> dict[int, tuple[Tensor, int]]:
        """Merge each of ``going`` into its nearest of the others."""
        others = [p for p in self.tokens if p not in going]
        into = {p: self.nearest(p, others) for p in going}
        merged = {}
        for other in others:
            parts = [self.tokens[p] for p in (other, *(p for p in going if into[p] == other))]
            size = sum(n for _, n in parts)
            mean = sum(token * n for token, n in parts) / size
            length = max(token.norm() for token, _ in parts)
            merged[other] = (mean * length / mean.norm() if len(parts) > 1 else mean, size)
        return merged

    @torch.no_grad()
    def features(self, tokens: dict[int, tuple[Tensor, int]]) -> Tensor:
        """Run the tokens through timm's blocks, attention in proportion to their sizes."""
        x = torch.stack((self.cls, *(token for token, _ in tokens.values())))[None]
        bias = torch.tensor([1, *(size for _, size in tokens.values())]).log()[None, None, None]
        for block in self.tower.blocks[self.config.block :]:
            x = block(x, attn_mask=bias)
        return F.normalize(self.tower.head(self.tower.norm(x)[:, 0])[0], dim=0)


@pytest.mark.parametrize(("block", "window", "stride", "batch"), [(5, 1, 1, 50), (0, 2, 2, 500), (3, 3, 2, 9)])
def test_equals_merging_one_window_at_a_time(block: int, window: int, stride: int, batch: int, tower: nn.Module):
    images = torch.randn(2, 3, 64, 64)
    config = GoldenConfig(action="merge", block=block, window=window, stride=stride)
    fast = GoldenEngine(tower, config, batch=batch).importance(images)
    for image, row in zip(images, fast, strict=True):
        parts = Parts(tower, image, config, GRID)
        whole = parts.features(parts.tokens)
        scores: dict[int, list[float]] = {patch: [] for patch in parts.tokens}
        for cells in windows((GRID, GRID), window, stride).tolist():
            score = float(parts.features(parts.without(set(cells))) @ whole)
            for patch in cells:
                scores[patch].append(score)
        slow = -torch.tensor([sum(s) / len(s) for s in scores.values()])
        assert (row - slow).abs().max() < 1e-5
        apart = slow.unsqueeze(1) - slow > 1e-5
        assert (row.unsqueeze(1) > row)[apart].all()
        assert apart.float().mean() > 0.05


@pytest.mark.parametrize(
    ("block", "step", "approximate"), [(1, 1, None), (1, 5, None), (3, 5, "follow:0"), (0, 99, None)]
)
def test_equals_the_slow_search_that_merges(
    block: int, step: int, approximate: str | None, small_tower: zoo.ReducedViT
):
    """In the last of four blocks following is exact: only the class token leaves it."""
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(8))
    config = GoldenConfig(action="merge", block=block, window=1, greedy=step, approximate=approximate)
    importance = GoldenEngine(small_tower, config).importance(images)
    for image, row in zip(images, importance, strict=True):
        parts, order = Parts(small_tower, image, config, SIDE), row.argsort().tolist()
        assert sorted(order) == list(range(SIDE * SIDE))
        for start in range(0, SIDE * SIDE, step):
            # Each of two tokens that are each other's nearest costs the same: ties are free.
            going, later = order[start : start + step], order[start + step :]
            if len(parts.tokens) > 1:
                whole = parts.features(parts.tokens)
                score = {p: float(parts.features(parts.without({p})) @ whole) for p in parts.tokens}
                lead = [score[a] - score[b] for a, b in pairwise(going + later[:1])]
                assert min(lead, default=0) > -1e-6
                assert min(score[p] for p in going) > max((score[p] for p in later), default=-1) - 1e-6
            if later:
                parts.tokens = parts.without(set(going))


def test_passes_bound_the_cost(small_tower: nn.Module, monkeypatch: pytest.MonkeyPatch):
    engine = GoldenEngine(small_tower, GoldenConfig(block=1, stride=2, greedy=3))
    ran = []
    features = engine.suffix.features
    monkeypatch.setattr(engine.suffix, "features", lambda *a: ran.append(len(a[1])) or features(*a))
    engine.importance(torch.randn(1, 3, 64, 64))
    assert engine.passes == 24
    # The whole image comes on top; windows that are empty or equal are not run again.
    assert 6 < sum(ran) - 1 <= engine.passes


def test_images_are_alone_and_one_round_is_one_shot(small_tower: nn.Module, text: Tensor):
    images, orders = torch.randn(2, 3, 64, 64), []
    for step in (None, SIDE * SIDE):
        config = GoldenConfig(score="label", block=1, greedy=step)
        engine = GoldenEngine(small_tower, config, text=text, scale=SCALE)
        together = engine.importance(images, TWO_LABELS)
        alone = [engine.importance(images[i : i + 1], TWO_LABELS[i : i + 1]) for i in range(2)]
        assert torch.allclose(together, torch.cat(alone), atol=1e-5)
        orders.append(together.argsort(dim=1, stable=True))
    assert torch.equal(*orders)


@pytest.mark.parametrize("step", [5, 99])
@torch.no_grad()
def test_a_greedy_search_by_follow_judges_by_what_is_left(step: int, small_tower: zoo.ReducedViT):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(8))
    config = GoldenConfig(block=1, window=1, greedy=step, approximate="follow:0")
    engine = GoldenEngine(small_tower, config)
    importance = engine.importance(images)
    for i in range(2):
        start, _ = small_tower.advance(small_tower.embed(images[i : i + 1]), stop=1)
        left, removed = list(range(SIDE * SIDE)), []
        while left:
            part = start._replace(x=start.x[:, [0, *(p + 1 for p in left)]])
            target, features = follow(engine.suffix, part, torch.arange(len(left))[:, None], 0)
            score = dict(zip(left, (features[0] @ target[0]).tolist(), strict=True))
            removed += sorted(left, key=lambda p: (score[p], p), reverse=True)[:step]
            left = [p for p in left if p not in removed]
        assert importance[i].argsort().tolist() == removed
    assert engine.passes == pytest.approx(
        -(-SIDE * SIDE // step) * GoldenEngine(small_tower, replace(config, greedy=None)).passes
    )


@torch.no_grad()
def test_following_a_merge_changes_the_merged_token_and_the_class_token_alone(tower: zoo.ReducedViT):
    """With the last block alone to run that is exact; earlier it isn't."""
    images = torch.randn(2, 3, 64, 64)
    for block, exact in ((5, True), (2, False)):
        config = GoldenConfig(action="merge", block=block, window=1)
        ways = [replace(config, approximate=way) for way in (None, "follow:0")]
        first, second = (golden_importance(tower, images, way) for way in ways)
        assert torch.allclose(first, second, atol=1e-6) == exact
        assert GoldenEngine(tower, ways[1]).passes < GoldenEngine(tower, ways[0]).passes
