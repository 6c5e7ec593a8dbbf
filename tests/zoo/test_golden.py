"""Golden rankings against a loop that removes one window at a time from one image."""

import re
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
import torch.nn.functional as F
from lively import Build
from torch import Tensor, nn
from torch.nn.utils import prune

import zoo
from zoo.methods.rankmerge import RankMergeConfig
from zoo.ranking.golden import SCORES, GoldenConfig, GoldenEngine, golden_importance
from zoo.ranking.suffix import follow
from zoo.ranking.windows import windows

Parts = dict[int, tuple[Tensor, int]]  # token and size of each patch
LABELS = torch.tensor([4, 0, 2])
SCALE = 5.0


@pytest.fixture
def text() -> Tensor:
    """Five classes in the joint space of 7."""
    return F.normalize(torch.randn(5, 7, generator=torch.Generator().manual_seed(3)), dim=-1)


class Slow:
    """One image: its patch tokens, each of some size, dropped or merged one by one, through timm's own modules."""

    @torch.no_grad()
    def __init__(
        self, tower: nn.Module, image: Tensor, config: GoldenConfig, text: Tensor | None = None, label: int = 0
    ) -> None:
        self.tower, self.config, self.text, self.label = tower, config, text, label
        x = tower.norm_pre(tower._pos_embed(tower.patch_embed(image[None])))
        for block in tower.blocks[: config.block]:
            x = block(x)
        self.cls, self.side = x[0, 0], tower.patch_embed.grid_size[0]
        self.tokens: Parts = {p: (token, 1) for p, token in enumerate(x[0, 1:])}
        self.full = self.features(self.tokens)

    def nearest(self, patch: int, others: list[int]) -> int:
        def alike(other: int) -> float:
            cosine = F.cosine_similarity(self.tokens[patch][0], self.tokens[other][0], dim=0)
            (a, b), (c, d) = divmod(patch, self.side), divmod(other, self.side)
            return float(cosine) - RankMergeConfig.distance * ((a - c) ** 2 + (b - d) ** 2) / self.side**2

        return max(others, key=alike)

    def without(self, going: set[int]) -> Parts:
        """Drop each of ``going``, or merge it into its nearest of the others."""
        others = [p for p in self.tokens if p not in going]
        if self.config.action == "remove":
            return {p: self.tokens[p] for p in others}
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
    def features(self, tokens: Parts) -> Tensor:
        """Run the tokens through timm's blocks, attention in proportion to their sizes."""
        x = torch.stack((self.cls, *(token for token, _ in tokens.values())))[None]
        bias = torch.tensor([1, *(size for _, size in tokens.values())]).log()[None, None, None]
        for block in self.tower.blocks[self.config.block :]:
            x = block(x, attn_mask=bias)
        return F.normalize(self.tower.head(self.tower.norm(x)[:, 0])[0], dim=0)

    def score(self, going: set[int]) -> float:
        features = self.features(self.without(going))
        if self.config.score == "preservation":
            return float(features @ self.full)
        posterior = (SCALE * self.text @ features).softmax(dim=0)
        return float(posterior[self.label] if self.config.score == "label" else posterior.max())

    def means(self) -> dict[int, float]:
        """Take each window alone out of what is left; average the scores of each patch."""
        window, stride = self.config.window, self.config.stride
        starts = sorted({min(start, self.side - window) for start in range(0, self.side + stride, stride)})
        scores: dict[int, list[float]] = {patch: [] for patch in self.tokens}
        for row, column in product(starts, repeat=2):
            steps = product(range(window), repeat=2)
            inside = {(row + r) * self.side + column + c for r, c in steps} & self.tokens.keys()
            score = self.score(inside) if inside else 0.0
            for patch in inside:
                scores[patch].append(score)
        return {patch: sum(s) / len(s) for patch, s in scores.items()}


@pytest.mark.parametrize(
    ("action", "score", "block", "window", "stride", "batch"),
    [  # no batch divides 3 images x windows, some exceed it
        ("remove", "preservation", 3, 2, 2, 7),
        ("remove", "preservation", 1, 1, 1, 50),
        ("remove", "label", 0, 3, 3, 5),
        ("remove", "confidence", 1, 3, 2, 1000),
        ("merge", "preservation", 5, 1, 1, 50),
        ("merge", "preservation", 0, 2, 2, 500),
        ("merge", "preservation", 3, 3, 2, 9),
    ],
)
def test_equals_one_window_at_a_time(
    action: str, score: str, block: int, window: int, stride: int, batch: int, tower: nn.Module, text: Tensor
):
    images = torch.randn(3, 3, 64, 64)
    config = GoldenConfig(action=action, score=score, block=block, window=window, stride=stride)
    fast = GoldenEngine(tower, config, batch=batch, text=text, scale=SCALE).importance(images, LABELS)
    pairs = zip(images, LABELS.tolist(), strict=True)
    slow = -torch.tensor([list(Slow(tower, image, config, text, label).means().values()) for image, label in pairs])
    assert (fast - slow).abs().max() < 1e-5
    # Patches that differ by more than rounding stand in the same order.
    apart = slow.unsqueeze(2) - slow.unsqueeze(1) > 1e-5
    assert (fast.unsqueeze(2) > fast.unsqueeze(1))[apart].all()
    # At most a half: the comparison isn't empty.
    assert apart.float().mean() > (0.25 if action == "remove" else 0.05)


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


@pytest.mark.parametrize(
    ("options", "names", "match"),
    [
        *(({"approximate": way}, (), f"approximate='{way}': expected") for way in ("folow:4", "follow", "follow:61")),
        ({"score": "lable"}, (), "'lable': did you mean 'label'?"),
        ({"window": 0}, (), "window=0"),
        ({"stride": 3}, (), "stride=3: more than window=2"),
        ({"greedy": 4, "approximate": "follow:6"}, (), "greedy=4 with approximate='follow:6'"),
        ({"greedy": 4, "approximate": "follow:0"}, (), "window=2: this search goes by single patches"),
        ({"action": "merge", "approximate": "follow:2"}, (), "action='merge' with approximate='follow:2'"),
        ({"window": 9}, (), "window=9: larger than the 8 x 8"),
        ({"window": 8}, (), "window=8: the whole 8 x 8"),
        ({"block": 6}, (), "block=6: this tower has blocks 0 to 5"),
        ({"score": "label"}, ("labels",), "score='label' needs text"),
        ({"score": "label"}, ("text",), "score='label' needs labels"),
    ],
)
def test_refused(options: dict, names: tuple, match: str, tower: nn.Module, text: Tensor):
    arguments = {k: v for k, v in (("text", text), ("labels", LABELS)) if k in names}
    with pytest.raises(ValueError, match=re.escape(match)):
        golden_importance(tower, torch.zeros(3, 3, 64, 64), GoldenConfig(**options), **arguments)


def test_engines_that_are_refused(tower: nn.Module, tiny: Build):
    prune.l1_unstructured(tower.blocks[2].mlp.fc1, "weight", 0.5)
    GoldenEngine(tower, GoldenConfig(block=3))
    averaged = tiny("clip_vit_b16", global_pool="avg")
    for model, config, options, match in (
        (tower, {"block": 2}, {}, "golden rankings need .*plain linear layers, this tower has Linear; merge"),
        (zoo.reduce(tower, method="tome", keep=0.5), {}, {}, "golden rankings need .*the dense model"),
        (zoo.reduce(tower, method=None).train(), {}, {}, "golden rankings need .*evaluation mode"),
        (tiny("clip_vit_b16").bfloat16(), {}, {}, r"golden rankings need .*float32 tower, .* has torch\.bfloat16"),
        (averaged, {"approximate": "follow:4"}, {}, "'follow:4' needs features that come from the class token"),
        (tower, {}, {"precision": "half"}, "precision='half'"),
        (tower, {}, {"batch": 0}, "batch=0: expected an integer from 1"),
    ):
        with pytest.raises(ValueError, match=match):
            GoldenEngine(model, GoldenConfig(**config), **options)


SIDE = 4  # of patches of 16 pixels
TWO_LABELS = torch.tensor([4, 0])


@pytest.fixture
def two() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(8))


@pytest.fixture
def small_tower(tiny: Build) -> zoo.ReducedViT:
    return tiny("clip_vit_b16", noise=0.3, patch_size=16, depth=4)


@pytest.mark.parametrize(
    ("score", "block", "window", "stride", "step"),
    [
        ("preservation", 0, 1, 1, 1),
        ("label", 1, 2, 2, 4),
        ("confidence", 3, 3, 1, 99),
    ],
)
def test_equals_the_slow_search(
    score: str, block: int, window: int, stride: int, step: int, small_tower: nn.Module, text: Tensor, two: Tensor
):
    config = GoldenConfig(score=score, block=block, window=window, stride=stride, greedy=step)
    engine = GoldenEngine(small_tower, config, text=text, scale=SCALE, batch=5)
    for image, label, row in zip(two, TWO_LABELS.tolist(), engine.importance(two, TWO_LABELS), strict=True):
        slow, removed = Slow(small_tower, image, config, text, label), []
        while slow.tokens:
            mean = slow.means()
            # The most dispensable first; of equals the later patch.
            going = sorted(mean, key=lambda p: (mean[p], p), reverse=True)[:step]
            removed += going
            slow.tokens = slow.without(set(going))
        assert row.argsort().tolist() == removed
        assert sorted(row.tolist()) == list(range(SIDE * SIDE))


@pytest.mark.parametrize(
    ("block", "step", "approximate"), [(1, 1, None), (1, 5, None), (3, 5, "follow:0"), (0, 99, None)]
)
def test_equals_the_slow_search_that_merges(
    block: int, step: int, approximate: str | None, small_tower: zoo.ReducedViT, two: Tensor
):
    """In the last of four blocks following is exact: only the class token leaves it."""
    config = GoldenConfig(action="merge", block=block, window=1, greedy=step, approximate=approximate)
    importance = GoldenEngine(small_tower, config).importance(two)
    for image, row in zip(two, importance, strict=True):
        slow, order = Slow(small_tower, image, config), row.argsort().tolist()
        assert sorted(order) == list(range(SIDE * SIDE))
        for start in range(0, SIDE * SIDE, step):
            # Each of two tokens that are each other's nearest costs the same: ties are free.
            going, later = order[start : start + step], order[start + step :]
            if len(slow.tokens) > 1:
                slow.full = slow.features(slow.tokens)
                score = slow.means()
                lead = [score[a] - score[b] for a, b in pairwise(going + later[:1])]
                assert min(lead, default=0) > -1e-6
                assert min(score[p] for p in going) > max((score[p] for p in later), default=-1) - 1e-6
            if later:
                slow.tokens = slow.without(set(going))


def test_passes_bound_the_cost(small_tower: nn.Module, monkeypatch: pytest.MonkeyPatch):
    engine = GoldenEngine(small_tower, GoldenConfig(block=1, stride=2, greedy=3))
    ran = []
    features = engine.suffix.features
    monkeypatch.setattr(engine.suffix, "features", lambda *a: ran.append(len(a[1])) or features(*a))
    engine.importance(torch.randn(1, 3, 64, 64))
    assert engine.passes == 24
    # The whole image comes on top; windows that are empty or equal are not run again.
    assert 6 < sum(ran) - 1 <= engine.passes


@pytest.mark.parametrize("step", [5, 99])
@torch.no_grad()
def test_a_greedy_search_by_follow_judges_by_what_is_left(step: int, small_tower: zoo.ReducedViT, two: Tensor):
    config = GoldenConfig(block=1, window=1, greedy=step, approximate="follow:0")
    engine = GoldenEngine(small_tower, config)
    for image, row in zip(two, engine.importance(two), strict=True):
        start, _ = small_tower.advance(small_tower.embed(image[None]), stop=1)
        left, removed = list(range(SIDE * SIDE)), []
        while left:
            part = start._replace(x=start.x[:, [0, *(p + 1 for p in left)]])
            target, features = follow(engine.suffix, part, torch.arange(len(left))[:, None], 0)
            score = dict(zip(left, (features[0] @ target[0]).tolist(), strict=True))
            removed += sorted(left, key=lambda p: (score[p], p), reverse=True)[:step]
            left = [p for p in left if p not in removed]
        assert row.argsort().tolist() == removed
    one_shot = GoldenEngine(small_tower, replace(config, greedy=None)).passes
    assert engine.passes == pytest.approx(-(-SIDE * SIDE // step) * one_shot)


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
