"""Pictures split by photograph, bounds, and how faithful rows are on them."""

import math
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import stats

from harness.datasets.base import Dataset, Split
from harness.datasets.folder import ImageFolder
from harness.datasets.text_features import text_classifier
from harness.measure import fidelity
from harness.measure.fidelity import CHANGE, COSINE, NEIGHBOURS, TAIL_COSINE, Pictures, SetupBounds
from harness.measure.rows import rows_of, run
from zoo.deploy.runtime import Prepared
from zoo.loading.towers import Tower

ARCH, TAG = "clip_vit_b16", "openai"


@pytest.mark.parametrize(("bounds", "quoted"), [
    ({"speed_up": 2}, "expected --min-cosine, --min-cosine-95, --min-neighbours or --max-loss"),
    ({"max_loss": 0}, "max_loss=0"),
    ({"min_cosine": 99}, r"min_cosine=99: expected a number in \(0, 1\)"),
    ({"min_cosine": math.nan}, "min_cosine=nan"),
    ({"min_neighbours": 90}, r"min_neighbours=90: expected a number in \(0, 1\)"),
    ({"speed_up": 0.5, "min_cosine": 0.9}, r"speed_up=0\.5"),
])  # fmt: skip
def test_bounds_that_can_not_be_meant_are_refused(bounds: dict[str, float], quoted: str):
    with pytest.raises(ValueError, match=quoted):
        SetupBounds(**bounds)


def test_what_is_used_up_is_one_where_the_lower_end_is_at_the_bound():
    values = {COSINE: [0.99, 0.98, 0.97, 1.0], CHANGE: [0.0] * 4}
    low = np.mean(values[COSINE]) - 1.96 * np.std(values[COSINE], ddof=1) / math.sqrt(50)
    assert SetupBounds(min_cosine=float(low)).share(values, 50) == pytest.approx(1)
    assert SetupBounds(min_cosine=float(low), max_loss=99).share(values, 50) == pytest.approx(1)  # the worse of the two
    assert SetupBounds(min_cosine=0.9).share({}, 50) == math.inf


def test_a_bound_on_95_percent_is_met_by_order_statistics():
    """By chance up to so many pictures are nearer than the true quantile; the next one must meet the bound."""
    cosines = np.random.default_rng(0).uniform(0.9, 1, 200)
    sixth = np.sort(cosines)[200 - round(stats.binom.ppf(0.975, 200, 0.95)) - 1]
    figures = Pictures(Split(np.zeros(200, dtype=np.int64), str, lambda *_: None), np.arange(200), None).figures(
        {COSINE: cosines.tolist()}, 0
    )
    assert figures[TAIL_COSINE].low == pytest.approx(sixth)
    bounds = [SetupBounds(min_cosine_95=float(sixth + off)) for off in (-1e-6, 1e-6)]
    assert [each.meets(figures) for each in bounds] == [True, False]
    assert [each.share({COSINE: cosines.tolist()}, 200) <= 1 for each in bounds] == [True, False]


def test_no_loss_among_few_pictures_is_not_taken_for_none():
    """With no flip among n pictures, what may be lost is about 1.96 times the root of 2, by n."""
    none = {CHANGE: [0.0] * 98}
    assert SetupBounds(max_loss=2).share(none, 98) == pytest.approx(1.96 * math.sqrt(2) / 98 / 0.02, rel=0.03)
    split = Split(np.zeros(98, dtype=np.int64), str, lambda *_: None)
    figures = Pictures(split, np.arange(98), None).figures(none | {COSINE: [1.0] * 98}, 0)
    assert figures[CHANGE].estimate == 0
    assert -0.035 < figures[CHANGE].low < -0.02
    assert SetupBounds(max_loss=4, min_cosine=0.999).meets(figures)
    assert not SetupBounds(max_loss=1.5).meets(figures)


def divide(dataset: Dataset, sizes: tuple[int, int, int], seed: int = 0) -> list[Pictures]:
    tower: Any = SimpleNamespace(preprocess=lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1))
    return fidelity.split_pictures(dataset, sizes, seed, learned=(), tower=tower)


def test_a_known_dataset_is_judged_by_its_test_split(toy: Dataset, monkeypatch: pytest.MonkeyPatch):
    """Three pictures each are of one photograph."""
    for split, count in {"train": 30, "val": 15, "test": 60}.items():
        monkeypatch.setitem(type(toy)._split.__globals__["COUNTS"], split, count)
    monkeypatch.setattr(type(toy), "group_of", lambda _, name: f"{name[:7]} {int(name.rpartition('-')[2]) // 3}")
    none, search, held = divide(toy, (0, 20, 40))
    assert not len(none)
    for part, size, splits, photographs in ((search, 20, {"tra", "val"}, 15), (held, 40, {"tes"}, 20)):
        ids = part.split.image_ids
        assert len(set(ids)) == size
        assert {name[4:7] for name in ids} == splits
        names = [toy.group_of(name) for name in ids]
        # They give in turn, so that all are there; groups number them.
        assert len(set(zip(names, part.groups.tolist(), strict=True))) == len(set(names)) == photographs
        assert part.photographs == photographs
    first = search.split[0]  # drawn by the split that it came from
    assert first.image == toy.split("train")[int(first.image_id.rpartition("-")[2])].image


def save_noise(folder: Path, seeds: Iterable[int]) -> Dataset:
    for at, seed in enumerate(seeds):
        pixels = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{at}.png")
    return ImageFolder(folder)


def test_all_of_a_users_own_pictures_are_shared_out(tmp_path: Path):
    dataset = save_noise(tmp_path, [at % 130 for at in range(140)])  # the first ten are there twice
    sizes = (60, 14, 56)
    parts = divide(dataset, sizes)
    assert len({name for part in parts for name in part.split.image_ids}) == sum(map(len, parts))
    assert [len(part) for part in parts] == pytest.approx(sizes, abs=10)  # whole groups
    again, other = (divide(dataset, sizes, seed)[1] for seed in (0, 1))
    assert again.split.image_ids == parts[1].split.image_ids != other.split.image_ids


@pytest.mark.parametrize("seeds", [range(90), [*range(50), *[50] * 100]])
def test_with_few_different_pictures_to_calibrate_with_there_are_none(tmp_path: Path, seeds: Iterable[int]):
    """Then the other parts have all pictures; a hundred copies of one count as one."""
    dataset = save_noise(tmp_path, seeds)
    assert [len(part) for part in divide(dataset, (50, 25, 75))] == [len(part) for part in divide(dataset, (0, 25, 75))]


def test_a_picture_in_two_parts_is_refused(tmp_path: Path):
    """The same pixels in files of other bytes, which count as two photographs."""
    dataset = save_noise(tmp_path, range(40))
    for at in range(20):
        with Image.open(tmp_path / f"{at}.png") as image:
            image.save(tmp_path / f"{at} again.png", compress_level=1)
    dataset = ImageFolder(tmp_path)
    with pytest.raises(ValueError, match=r"picture '\S+' held out is a copy of '\S+' to search by: remove one"):
        divide(dataset, (0, 20, 40))


def test_values_are_those_of_the_plain_way(tower: Tower, named: Dataset):
    rows = rows_of(tower, [("dense", 1.0), ("tome", 0.6), ("clsattn", 0.3)])
    assert tower.clip is not None
    split, (classifier, _) = named.split("test"), text_classifier(tower.clip, named)
    pictures = Pictures(split, np.arange(len(split)), tower, classifier)
    distances = pictures.distances(rows)
    for row in rows:
        own = pictures.values(Prepared(call=row.vit))
        for at, example in enumerate(split):
            image = tower.preprocess(example.image)[None]
            with torch.inference_mode():
                (ours,), (dense,) = (run([each], image)[each.key].features for each in (row, rows[0]))
            answers = [int((classifier @ features).argmax()) for features in (ours, dense)]
            assert own[COSINE][at] == pytest.approx(float(ours @ dense), abs=1e-5)
            assert own[CHANGE][at] == (answers[0] == example.label) - (answers[1] == example.label)
        np.testing.assert_allclose(1 - distances[row.key], own[COSINE], atol=1e-6)
    assert pictures.values(Prepared(call=rows[0].vit))[COSINE] == pytest.approx([1.0] * len(split))


def test_neighbours_that_stay_are_counted_the_slow_way():
    """Pictures are their own features; the other model sees two of them swapped and noise."""
    rng = torch.Generator().manual_seed(0)
    images, noise = torch.randn(30, 1, 1, 6, generator=rng), 0.3 * torch.randn(30, 6, generator=rng)
    split = Split(np.zeros(30, dtype=np.int64), str, lambda *_: None)
    tower: Any = SimpleNamespace(vit=torch.nn.Linear(1, 1))
    pictures = Pictures(split, np.arange(30), tower)
    pictures._kept = [images]
    pictures.__dict__["_truth"] = F.normalize(images.flatten(1), dim=1)
    found = pictures.values(Prepared(call=lambda images: images.flatten(1) + noise))[NEIGHBOURS]
    nearest = []
    for features in (images.flatten(1), images.flatten(1) + noise):
        cosines = F.cosine_similarity(features[:, None], features[None], dim=2)
        nearest.append([{*sorted({*range(30)} - {at}, key=lambda b: -row[b])[:10]} for at, row in enumerate(cosines)])
    assert found == pytest.approx([len(a & b) / 10 for a, b in zip(*nearest, strict=True)])
    assert 0.3 < np.mean(found) < 0.99


def test_intervals_are_over_photographs():
    """Crops of a photograph that agree say no more than one of them."""
    rng = np.random.default_rng(0)
    means = 0.99 + 0.005 * rng.standard_normal(30)

    def width(times: int) -> float:
        groups = np.repeat(np.arange(30), times)
        split = Split(np.zeros(len(groups), dtype=np.int64), str, lambda *_: None)
        pictures = Pictures(split, groups, None)
        found = pictures.figures({COSINE: means[groups].tolist()}, 0)[COSINE]
        return found.high - found.low

    assert width(1) == pytest.approx(width(8), rel=0.1)
