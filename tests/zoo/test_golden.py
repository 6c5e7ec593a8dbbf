"""Golden rankings against a loop that removes one window at a time; following a removal against whole sequences."""

import re
from itertools import pairwise, product

import pytest
import torch
import torch.nn.functional as F
from lively import Build
from torch import Tensor, nn
from torch.nn.utils import prune

import zoo
from zoo.core.recipes import GoldenConfig
from zoo.core.tokens import Tokens
from zoo.ranking.golden import GoldenEngine, golden_importance
from zoo.ranking.suffix import Suffix, follow, members, outside, run_whole, windows
from zoo.towers.fused import FusedBlock, Product

pytestmark = pytest.mark.usefixtures("no_grad")
LABELS = torch.tensor([4, 0, 2])
SCALE = 5.0


@pytest.fixture
def text() -> Tensor:
    return F.normalize(torch.randn(5, 7, generator=torch.Generator().manual_seed(3)), dim=-1)


class Slow:
    """One image whose patch tokens are dropped one by one, through timm's own modules."""

    @torch.no_grad()
    def __init__(
        self, tower: nn.Module, image: Tensor, config: GoldenConfig, text: Tensor | None = None, label: int = 0
    ) -> None:
        self.tower, self.config, self.text, self.label = tower, config, text, label
        x = tower.norm_pre(tower._pos_embed(tower.patch_embed(image[None])))
        for block in tower.blocks[: config.block]:
            x = block(x)
        self.x, self.side = x[0], tower.patch_embed.grid_size[0]
        self.left = set(range(self.side**2))
        self.full = self.features(self.left)

    @torch.no_grad()
    def features(self, patches: set[int]) -> Tensor:
        x = self.x[None, [0, *(1 + patch for patch in sorted(patches))]]
        for block in self.tower.blocks[self.config.block :]:
            x = block(x)
        return F.normalize(self.tower.head(self.tower.norm(x)[:, 0])[0], dim=0)

    def score(self, going: set[int]) -> float:
        features = self.features(self.left - going)
        if self.config.score == "preservation":
            return float(features @ self.full)
        posterior = (SCALE * self.text @ features).softmax(dim=-1)
        return float(posterior[self.label] if self.config.score == "label" else posterior.max())

    def means(self) -> dict[int, float]:
        """Take each window alone out of what is left; average the scores of each patch."""
        window, stride = self.config.window, self.config.stride
        starts = sorted({min(start, self.side - window) for start in range(0, self.side + stride, stride)})
        scores: dict[int, list[float]] = {patch: [] for patch in sorted(self.left)}
        for row, column in product(starts, repeat=2):
            steps = product(range(window), repeat=2)
            inside = {(row + r) * self.side + column + c for r, c in steps} & self.left
            score = self.score(inside) if inside else 0.0
            for patch in inside:
                scores[patch].append(score)
        return {patch: sum(s) / len(s) for patch, s in scores.items()}


@pytest.mark.parametrize(("score", "block", "window", "stride", "batch"), [
    ("preservation", 3, 2, 2, 7),
    ("preservation", 1, 1, 1, 50),
    ("label", 0, 3, 3, 5),
    ("confidence", 1, 3, 2, 1000),
])  # fmt: skip
def test_equals_one_window_at_a_time(
    score: str, block: int, window: int, stride: int, batch: int, tower: nn.Module, text: Tensor
):
    """No batch divides 3 images x windows, some exceed it."""
    images = torch.randn(3, 3, 64, 64)
    config = GoldenConfig(score=score, block=block, window=window, stride=stride)
    fast = GoldenEngine(tower, config, batch=batch, text=text, scale=SCALE).importance(images, LABELS)
    pairs = zip(images, LABELS.tolist(), strict=True)
    slow = -torch.tensor([list(Slow(tower, image, config, text, label).means().values()) for image, label in pairs])
    assert (fast - slow).abs().max() < 1e-5
    apart = slow.unsqueeze(2) - slow.unsqueeze(1) > 1e-5  # by more than rounding
    assert (fast.unsqueeze(2) > fast.unsqueeze(1))[apart].all()
    assert apart.float().mean() > 0.25  # of at most a half


def test_windows_of_an_oblong_grid():
    assert windows((3, 4), 2, 2).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [4, 5, 8, 9], [6, 7, 10, 11]]


@pytest.mark.parametrize(("options", "names", "match"), [
    *(({"approximate": way}, (), f"approximate='{way}': expected") for way in ("folow:4", "follow", "follow:61")),
    ({"score": "lable"}, (), "'lable': did you mean 'label'?"),
    ({"window": 0}, (), "window=0"),
    ({"stride": 3}, (), "stride=3: more than window=2"),
    ({"greedy": 4, "approximate": "follow:6"}, (), "greedy=4 with approximate='follow:6'"),
    ({"greedy": 4}, (), "window=2: this search goes by single patches"),
    ({"window": 9}, (), "window=9: larger than the 8 x 8"),
    ({"window": 8}, (), "window=8: the whole 8 x 8"),
    ({"block": 6}, (), "block=6: this tower has blocks 0 to 5"),
    ({"score": "label"}, ("labels",), "score='label' needs text"),
    ({"score": "label"}, ("text",), "score='label' needs labels"),
])  # fmt: skip
def test_refused(options: dict, names: tuple, match: str, tower: nn.Module, text: Tensor):
    arguments = {k: v for k, v in (("text", text), ("labels", LABELS)) if k in names}
    with pytest.raises(ValueError, match=re.escape(match)):
        golden_importance(tower, torch.zeros(3, 3, 64, 64), GoldenConfig(**options), **arguments)


def test_engines_that_are_refused(tower: nn.Module, tiny: Build, text: Tensor):
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
    with pytest.raises(ValueError, match="label 4: there are classes 0 to 3"):
        GoldenEngine(averaged, GoldenConfig(score="label"), text=text[:4]).importance(torch.zeros(3, 3, 64, 64), LABELS)


@pytest.mark.parametrize(("score", "block", "step", "approximate"), [
    ("preservation", 0, 1, None),
    ("label", 1, 5, None),
    ("confidence", 1, 99, None),
    ("preservation", 3, 5, "follow:0"),
])  # fmt: skip
def test_equals_the_slow_search(score: str, block: int, step: int, approximate: str | None, tiny: Build, text: Tensor):
    """In the last of four blocks following is exact: only the class token leaves it."""
    tower = tiny("clip_vit_b16", noise=0.3, patch_size=16, depth=4)
    images, labels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(8)), torch.tensor([4, 0])
    config = GoldenConfig(score=score, block=block, window=1, greedy=step, approximate=approximate)
    engine = GoldenEngine(tower, config, text=text, scale=SCALE, batch=5)
    for image, label, row in zip(images, labels.tolist(), engine.importance(images, labels), strict=True):
        slow, order = Slow(tower, image, config, text, label), row.argsort().tolist()
        assert sorted(order) == list(range(16))
        for start in range(0, 16, step):
            going, later = order[start : start + step], order[start + step :]
            if len(slow.left) > 1:
                slow.full = slow.features(slow.left)
                scores = slow.means()
                lead = [scores[a] - scores[b] for a, b in pairwise(going + later[:1])]
                assert min(lead, default=0) > -1e-6
                assert min(scores[p] for p in going) > max((scores[p] for p in later), default=-1) - 1e-6
            slow.left -= set(going)


PATCHES = 64
CELLS = windows((8, 8), 3, 2)


def entering(tower: zoo.ReducedViT, block: int, count: int = 2) -> Tokens:
    start, _ = tower.advance(tower.embed(torch.randn(count, 3, 64, 64)), stop=block)
    return start


@pytest.mark.parametrize(("block", "options"), [
    (0, {}), (5, {}), (3, {"init_values": 0.3}), (3, {"qk_norm": True, "qkv_bias": False}), (3, {"reg_tokens": 4}),
], ids=str)  # fmt: skip
def test_a_removal_followed_into_all_patches_is_the_removal(block: int, options: dict, tiny: Build):
    suffix = Suffix(tiny("clip_vit_b16", noise=0.3, **options), block, batch=9)
    start = entering(suffix.model, block)
    target, found = follow(suffix, start, CELLS, PATCHES - 9)
    kept, rows = outside(members(CELLS, PATCHES)).repeat(2, 1), torch.arange(2).repeat_interleave(len(CELLS))
    assert torch.allclose(found.flatten(0, 1), suffix.features(start, rows, kept), atol=1e-5)
    whole = suffix.features(start, torch.arange(2), torch.arange(PATCHES).expand(2, -1))
    assert torch.allclose(target, whole, atol=1e-5)


@pytest.mark.parametrize(("count", "prefix"), [(0, 1), (1, 3), (7, 1)])
def test_followed_tokens_change_and_all_others_stay(count: int, prefix: int, tiny: Build):
    """Run whole sequences with the window masked, and put back what may not change."""
    suffix = Suffix(tiny("clip_vit_b16", noise=0.3, reg_tokens=prefix - 1), 2, batch=3)
    start = entering(suffix.model, 2)
    *_, carriers = run_whole(suffix, start, CELLS, choose=True)
    _, found = follow(suffix, start, CELLS, count)
    for image in range(2):
        for index, cells in enumerate(CELLS.tolist()):
            still = whole = start.x[image : image + 1]
            mask = torch.zeros(prefix + PATCHES)
            mask[[prefix + cell for cell in cells]] = -torch.inf
            moved = [*range(prefix), *(prefix + carriers[image, index, :count]).tolist()]
            for block in suffix.model.blocks[2:]:
                whole = block(whole)
                changed = block(still, attn_mask=mask.expand(prefix + PATCHES, -1))
                still = whole.clone()
                still[:, moved] = changed[:, moved]
            features = suffix.model.forward_head(suffix.model.norm(still))
            assert torch.allclose(found[image, index], F.normalize(features[0], dim=0), atol=1e-5)


def test_carriers_attend_to_the_window_and_are_attended_to_later(tower: zoo.ReducedViT):
    suffix = Suffix(tower, 3)
    start = entering(tower, 3, count=1)
    *_, carriers = run_whole(suffix, start, CELLS, choose=True)
    x = start.x
    attention = []
    for block in tower.blocks[3:]:
        qkv = block.attn.qkv(block.norm1(x)).reshape(1, 1 + PATCHES, 3, 3, 16)
        query, key, _ = qkv.permute(2, 0, 3, 1, 4)
        attention.append((query @ key.transpose(-2, -1) / 4).softmax(dim=-1).mean(dim=1)[0])
        x = block(x)
    for index in (0, 5, 8):
        inside = CELLS[index].tolist()
        carried = {}
        for patch in set(range(PATCHES)) - set(inside):
            carried[patch] = sum(
                float(attention[early][1 + patch, 1 + cell] * attention[late][0, 1 + patch])
                for late in range(3)
                for early in range(late)
                for cell in inside
            )
        order = carriers[0, index].tolist()
        assert set(order[-9:]) == set(inside)
        values = [carried[patch] for patch in order[:-9]]
        assert all(a >= b - 1e-7 for a, b in pairwise(values))


@pytest.mark.parametrize("cls", [False, True])
def test_projection_and_mlp_of_the_class_token_are_not_rounded(cls: bool, tiny: Build):
    """With all values 0, and the projection's bias kept, nothing else is left that could be."""
    block = tiny("clip_vit_b16", noise=0.3).blocks[3]
    fused = FusedBlock(block, torch.bfloat16, cls=cls)
    assert fused.low is not None
    qkv = fused.low.qkv
    assert qkv.bias is not None
    fused.low.qkv = Product(*(torch.cat((each[:96], torch.zeros_like(each[96:]))) for each in (qkv.weight, qkv.bias)))
    x = torch.randn(4, 30, 48)
    wanted = x + block.attn.proj.bias
    wanted = wanted + block.mlp(block.norm2(wanted))
    mixed = x.clone()
    fused.run(mixed)
    assert torch.allclose(mixed[:, 0], wanted[:, 0], atol=1e-5) == cls
    assert 1e-4 < (mixed[:, 1:] - wanted[:, 1:]).norm() / wanted.norm() < 0.03
