"""Golden rankings against a loop that removes one window at a time from one image."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.attention import attend_cls
from zoo.golden import SCORES, GoldenConfig, GoldenEngine, golden_importance
from zoo.windows import mean_over_windows, windows

GRID = 8
LABELS = torch.tensor([4, 0, 2])
SCALE = 5.0


@pytest.fixture
def tower(tiny: Callable[..., nn.Module]) -> zoo.ReducedViT:
    """A tower lively enough that every window matters."""
    return tiny("clip_vit_b16", noise=0.3)


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


@torch.no_grad()
def slow_importance(
    tower: nn.Module, images: Tensor, config: GoldenConfig, text: Tensor, labels: Tensor
) -> Tensor:
    """Remove each window from each image alone, through timm's own blocks, norm and head."""

    def rest(x: Tensor) -> Tensor:
        for block in tower.blocks[config.block :]:
            x = block(x)
        return F.normalize(tower.head(tower.norm(x)[:, 0])[0], dim=0)

    result = torch.zeros(len(images), GRID * GRID)
    for image in range(len(images)):
        x = tower.patch_embed(images[image : image + 1])
        x = tower.norm_pre(tower._pos_embed(x))
        for block in tower.blocks[: config.block]:
            x = block(x)
        full = rest(x)
        scores: list[list[float]] = [[] for _ in range(GRID * GRID)]
        for row in places(GRID, config.window, config.stride):
            for column in places(GRID, config.window, config.stride):
                inside = [
                    r * GRID + c
                    for r in range(row, row + config.window)
                    for c in range(column, column + config.window)
                ]
                keep = [0] + [1 + p for p in range(GRID * GRID) if p not in inside]
                features = rest(x[:, keep])
                posterior = (SCALE * text @ features).softmax(dim=0)
                score = {
                    "preservation": features @ full,
                    "label": posterior[labels[image]],
                    "confidence": posterior.max(),
                }[config.score]
                for patch in inside:
                    scores[patch].append(score.item())
        result[image] = torch.tensor([-sum(s) / len(s) for s in scores])
    return result


CASES = [  # score, block, window, stride, batch: none divides 3 images x windows, some exceed it
    ("preservation", 3, 2, 2, 7),
    ("preservation", 0, 3, 2, 500),
    ("preservation", 5, 2, 1, 64),
    ("preservation", 1, 1, 1, 50),
    ("label", 3, 2, 2, 20),
    ("label", 0, 3, 3, 5),
    ("label", 5, 3, 1, 31),
    ("confidence", 1, 3, 2, 13),
    ("confidence", 0, 2, 2, 1000),
    ("confidence", 5, 1, 1, 128),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_equals_removing_one_window_at_a_time(case: tuple, tower: nn.Module, text: Tensor):
    score, block, window, stride, batch = case
    images = torch.randn(3, 3, 64, 64)
    config = GoldenConfig(score=score, block=block, window=window, stride=stride)
    slow = slow_importance(tower, images, config, text, LABELS)
    told = {"text": text, "scale": SCALE, "labels": LABELS}
    labels = told.pop("labels")
    fast = GoldenEngine(tower, config, batch=batch, **told).importance(images, labels)
    assert fast.shape == (3, GRID * GRID)
    assert fast.dtype == torch.float32
    assert (fast - slow).abs().max() < 1e-5
    # Patches that differ by more than rounding stand in the same order.
    apart = slow.unsqueeze(2) - slow.unsqueeze(1) > 1e-5
    assert (fast.unsqueeze(2) > fast.unsqueeze(1))[apart].all()
    assert apart.float().mean() > 0.25  # of at most a half: the comparison isn't empty


@pytest.mark.parametrize("score", SCORES)
def test_images_do_not_touch_each_other(score: str, tower: nn.Module, text: Tensor):
    """Sharing a batch of windows, or being the only one, gives the same."""
    images, config = torch.randn(3, 3, 64, 64), GoldenConfig(score=score, block=2)
    told = {"text": text, "scale": SCALE}
    together = golden_importance(tower, images, config, labels=LABELS, **told)
    for i in range(3):
        alone = golden_importance(
            tower, images[i : i + 1], config, labels=LABELS[i : i + 1], **told
        )
        assert torch.allclose(together[i : i + 1], alone, atol=1e-5)


def test_windows_of_a_small_grid():
    assert windows((3, 4), 2, 2).tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [4, 5, 8, 9],
        [6, 7, 10, 11],
    ]
    assert windows((2, 3), 2, 1).tolist() == [[0, 1, 3, 4], [1, 2, 4, 5]]


@pytest.mark.parametrize(
    ("window", "stride"), [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3), (5, 2), (5, 5)]
)
@pytest.mark.parametrize("grid", [(5, 5), (7, 6), (14, 14)])
def test_windows_cover_the_grid_and_nothing_else(grid: tuple[int, int], window: int, stride: int):
    found = windows(grid, window, stride)
    assert set(found.flatten().tolist()) == set(range(grid[0] * grid[1]))
    assert len({tuple(row) for row in found.tolist()}) == len(found)
    for row in found.tolist():
        corner = (row[0] // grid[1], row[0] % grid[1])
        cells = {(p // grid[1] - corner[0], p % grid[1] - corner[1]) for p in row}
        assert cells == {(r, c) for r in range(window) for c in range(window)}


def test_the_papers_defaults_give_169_windows():
    config = GoldenConfig()
    assert (config.score, config.block) == ("preservation", 3)
    assert len(windows((14, 14), config.window, config.stride)) == 169
    assert len(windows((14, 14), 2, 2)) == 49  # the released code's


def test_border_patches_are_divided_by_the_windows_that_cover_them():
    """Dividing by 4 everywhere, as printed, would make every corner four times less removable."""
    cells = windows((3, 3), 2, 1)  # four windows: corners in one, edges in two, the middle in all
    scores = torch.tensor([[0.1, 0.2, 0.3, 0.6]])
    mean = mean_over_windows(scores, cells, 9)
    expected = [0.1, 0.15, 0.2, 0.2, 0.3, 0.4, 0.3, 0.45, 0.6]
    assert mean[0].tolist() == pytest.approx(expected)


def test_equal_scores_rank_no_patch_before_another():
    cells = windows((4, 5), 3, 2)
    mean = mean_over_windows(torch.full((2, len(cells)), 0.7), cells, 20)
    assert torch.allclose(mean, torch.full((2, 20), 0.7))


@pytest.mark.parametrize(
    "options",
    [{}, {"init_values": 0.3}, {"qk_norm": True}, {"qkv_bias": False}, {"reg_tokens": 4}],
    ids=str,
)
@torch.no_grad()
def test_the_class_token_alone_leaves_a_block_as_it_leaves_the_whole(
    options: dict[str, Any], tiny: Callable[..., nn.Module]
):
    model = tiny("clip_vit_b16", **options)
    x = torch.randn(2, 23, 48)
    for block in model.blocks:
        assert torch.allclose(attend_cls(block, x), block(x)[:, :1], atol=1e-5)


def test_prefix_tokens_stay(tiny: Callable[..., nn.Module]):
    """A tower with registers loses patches only, so its features hardly depend on the count."""
    model = tiny("clip_vit_b16", reg_tokens=4)
    images, config = torch.randn(2, 3, 64, 64), GoldenConfig(block=2, stride=2)
    found = golden_importance(model, images, config)
    with torch.no_grad():
        x, _ = model.advance(model.embed(images), stop=2)
        full = F.normalize(model(images), dim=-1)
        keep = [0, 1, 2, 3, 4, *(5 + p for p in range(64) if p not in (0, 1, 8, 9))]
        rest, _ = model.advance(x._replace(x=x.x[:, keep]), 2)
        score = (F.normalize(model.finish(rest), dim=-1) * full).sum(dim=-1)
    assert torch.allclose(found[:, 0], -score, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"score": "lable"}, "score='lable': did you mean 'label'? expected one of preservation"),
        ({"score": "x"}, "score='x': expected one of preservation, label, confidence"),
        ({"window": 0}, "window=0: expected an integer from 1"),
        ({"block": -1}, "block=-1: expected an integer from 0"),
        ({"block": 1.0}, "block=1.0: expected an integer"),
        ({"stride": 3}, "stride=3: more than window=2 leaves patches out"),
    ],
)
def test_refused_settings(options: dict[str, Any], match: str):
    with pytest.raises(ValueError, match=re.escape(match)):
        GoldenConfig(**options)


@pytest.mark.parametrize(
    ("options", "told", "match"),
    [
        ({"window": 9}, (), "window=9: larger than the 8 x 8 patch grid"),
        ({"block": 6}, (), "block=6: this tower has blocks 0 to 5"),
        ({"score": "confidence"}, ("labels",), "score='confidence' needs text"),
        ({"score": "label"}, ("labels",), "score='label' needs text"),
        ({"score": "label"}, ("text",), "score='label' needs labels"),
    ],
)
def test_what_can_not_be_scored(
    options: dict[str, Any], told: tuple, match: str, tower: nn.Module, text: Tensor
):
    given = {k: v for k, v in (("text", text), ("labels", LABELS)) if k in told}
    with pytest.raises(ValueError, match=re.escape(match)):
        golden_importance(tower, torch.zeros(3, 3, 64, 64), GoldenConfig(**options), **given)


def test_a_model_that_reduces_can_not_be_scored(half: zoo.ReducedViT, images: Tensor):
    with pytest.raises(ValueError, match="golden rankings need the dense model"):
        golden_importance(half, images, GoldenConfig())
