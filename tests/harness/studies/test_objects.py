"""Objects among the top patches: equal to a slow count, and far above chance where it is real."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from harness.base.terminal import Progress
from harness.cli.entry import main
from harness.datasets import get_dataset
from harness.datasets.few_shot import subset
from harness.golden.maps import object_patches, reduced
from harness.models.towers import Tower
from harness.studies import objects as module
from harness.studies.objects import ObjectShare, find_objects, object_share
from zoo.loading.clip import ClipParts
from zoo.ranking.golden import GoldenConfig

RANKINGS = ["golden preservation", "golden label", "patchrank", "clsattn", "random"]


def slow_share(importance: list[int], inside: list[bool]) -> float:
    """Average over all orders that break ties, by giving each patch its chance to be in the top."""
    m, total = sum(inside), 0.0
    for value, mine in zip(importance, inside, strict=True):
        above = sum(other > value for other in importance)
        tied = sum(other == value for other in importance)
        total += mine * min(1.0, max(0.0, (m - above) / tied))
    return total / m


def slow_auc(importance: list[int], inside: list[bool]) -> float:
    pairs = [
        (mine > other) + (mine == other) / 2
        for mine, is_object in zip(importance, inside, strict=True)
        for other, is_other in zip(importance, inside, strict=True)
        if is_object and not is_other
    ]
    return sum(pairs) / len(pairs)


@st.composite
def ranked_images(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A few images of few patches and fewer values, so that ties abound."""
    images, patches = draw(st.integers(1, 4)), draw(st.integers(2, 12))
    rows = st.lists(st.integers(-2, 2), min_size=patches, max_size=patches)
    flags = st.lists(st.booleans(), min_size=patches, max_size=patches)
    importance = draw(st.lists(rows, min_size=images, max_size=images))
    inside = draw(st.lists(flags, min_size=images, max_size=images))
    inside[0] = [True] + [False] * (patches - 1)  # one image at least has both
    return np.array(importance, dtype=np.float32), np.array(inside)


@given(ranked_images())
def test_equal_to_a_slow_count(images: tuple[NDArray[np.float32], NDArray[np.bool_]]):
    importance, inside = images
    shares = object_share(importance, inside)
    used = [any(row) and not all(row) for row in inside.tolist()]
    assert shares.used.tolist() == used
    pairs = list(zip(importance[used].tolist(), inside[used].tolist(), strict=True))
    assert shares.share == pytest.approx([slow_share(*pair) for pair in pairs])
    assert shares.auc == pytest.approx([slow_auc(*pair) for pair in pairs])
    assert shares.chance == pytest.approx([sum(row) / len(row) for _, row in pairs])


@pytest.mark.parametrize(
    ("importance", "inside", "match"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4), dtype=bool), r"importance is \(2, 3\) and patches"),
        (np.zeros(3), np.zeros(3, dtype=bool), r"not \(n, N\)"),
        (np.full((2, 3), np.nan), np.ones((2, 3), dtype=bool), "importance of 2 images is NaN"),
        (np.zeros((2, 3)), np.ones((2, 3), dtype=bool), "none of 2 images has both"),
    ],
)
def test_refusals(importance: NDArray, inside: NDArray, match: str):
    with pytest.raises(ValueError, match=match):
        object_share(importance, inside)


def test_a_patch_is_the_objects_if_half_of_its_pixels_are():
    inside = torch.rand(3, 12, 20) < 0.5
    shares = object_patches(inside, (3, 4))
    for i in range(3):
        for row in range(3):
            for column in range(4):
                tile = inside[i, 4 * row : 4 * row + 4, 5 * column : 5 * column + 5]
                assert shares[i, 4 * row + column] == (int(tile.sum()) >= 10)
    exactly_half = torch.zeros(1, 2, 2, dtype=torch.bool)
    exactly_half[0, 0] = True
    assert object_patches(exactly_half, (1, 1)).item()


def test_masks_are_cropped_as_images_are(parts: ClipParts):
    """The object fills the left half of an image twice as wide, whose middle is what is seen."""
    middle = lambda image: parts.preprocess(image.crop((32, 0, 96, 64)))  # noqa: E731
    cropped = Tower(parts.model.visual, middle, "clip_vit_b16.openai")
    mask = np.tile(np.arange(128) < 64, (64, 1))
    image = Image.new("RGB", (128, 64))
    example = module.Example(image=image, label=0, image_id="x", mask=mask)
    [patches] = module._patches(cropped, [example])
    assert patches.reshape(8, 8).all(axis=0).tolist() == [True] * 4 + [False] * 4
    assert patches.sum() == 32


@pytest.fixture(scope="module")
def fashion() -> dict[str, ObjectShare]:
    """Twelve images of the embedded benchmark, with the embedded model; coarse windows."""
    options = {"config": GoldenConfig(window=4, stride=4), "progress": Progress(), "limit": 12}
    options |= {"scores": ["preservation", "label"], "methods": ["patchrank", "clsattn", "random"]}
    return find_objects("clip_vit_s14", "fashion", "val", **options)


def test_rankings_find_the_item_and_random_does_not(fashion: dict[str, ObjectShare]):
    for shares in (fashion[ranking] for ranking in RANKINGS[:4]):
        assert shares.intervals()["difference"].low > 0.1
        assert shares.lift > 2.5
        assert shares.used.sum() == 12
    difference = fashion["random"].intervals()["difference"]
    assert difference.low < 0 < difference.high
    assert set(fashion) == set(RANKINGS)


def test_rankings_go_with_their_images(fashion: dict[str, ObjectShare]):
    """The last image alone gives what it gave in company, in a batch that wasn't full."""
    dataset = get_dataset("fashion")
    example = subset(dataset.split("val"), 12)[11]
    tower = module.load_tower("clip_vit_s14")
    vit = reduced(tower, "clsattn", keep=0.3, block=3)
    scores = vit.trace(tower.preprocess(example.image)[None]).scores
    alone = object_share(scores.detach().numpy(), module._patches(tower, [example]))
    assert alone.share == pytest.approx(fashion["clsattn"].share[11:])
    assert alone.auc == pytest.approx(fashion["clsattn"].auc[11:])
    patches = example.mask.reshape(14, 14, 14, 14).mean(axis=(1, 3)) >= 0.5
    assert alone.chance == pytest.approx([patches.sum() / 196])


def test_the_command(capsys):
    command = "study objects --limit 2 --window 7 --stride 7 --scores label confidence --methods random"
    assert main(command.split()) == 0
    out = capsys.readouterr().out
    for ranking in ("golden label", "golden confidence", "random"):
        assert ranking in out


@pytest.mark.parametrize(
    ("command", "match"),
    [
        ("--dataset emoji-names", "'emoji-names' has no val images"),
        ("--scores lable", "'lable': did you mean 'label'"),
        ("--methods clsatn", "'clsatn': did you mean 'clsattn'"),
        ("--scores --methods", "nothing to measure"),
        ("--block 9 --methods", "block=9"),
        ("--block 2", "clip_vit_s14.imgfocus_lit at block 2"),
    ],
)
def test_mistakes(command: str, match: str, capsys):
    assert main(["study", "objects", "--limit", "2", *command.split()]) == 2
    assert match in capsys.readouterr().err


def test_datasets_without_masks_and_classes_without_words(toy: object, monkeypatch):
    options = {"limit": 2, "config": GoldenConfig(), "progress": Progress(), "methods": []}
    monkeypatch.setattr(type(get_dataset("fashion")), "classes", ("bag", "xylophonist"))
    match = "score='label': class 'xylophonist': .* never saw .*; use --scores preservation"
    with pytest.raises(ValueError, match=match):
        find_objects("clip_vit_s14", "fashion", "val", scores=["preservation", "label"], **options)
    known = {"toy": toy}
    monkeypatch.setattr(module, "get_dataset", lambda name: known.get(name) or get_dataset(name))
    match = "dataset 'toy' has no object masks; expected one of emoji, emoji-captions, emoji-names, .*fashion"
    with pytest.raises(ValueError, match=match):
        find_objects("clip_vit_s14", "toy", "val", scores=[], **options | {"methods": ["random"]})
