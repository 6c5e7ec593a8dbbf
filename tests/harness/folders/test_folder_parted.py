"""Folders of class folders, parted into splits by what is in the files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.datasets import SplitName
from harness.datasets.few_shot import draw
from harness.datasets.folder import FolderDataset, FolderParted

Make = Callable[..., Path]


def images(count: int, name: str) -> list[str]:
    return [f"{name}/{i}.png" for i in range(count)]


SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


def test_parted_folders_share_classes_out(make: Make):
    paths = [*images(20, "many"), *images(3, "three"), *images(2, "two"), *images(1, "one")]
    folder = make(paths)
    dataset = FolderParted(folder)
    assert (dataset.name, dataset.asked_as) == ("folder-parted-my-shop", f"folder-parted:{folder}")
    sizes = {n: np.bincount(dataset.labels(n), minlength=4).tolist() for n in SPLITS}
    # In order: many, one, three, two.
    assert sizes == {"train": [12, 0, 1, 1], "val": [4, 0, 1, 0], "test": [4, 1, 1, 1]}
    ids = [image_id for name in SPLITS for image_id in dataset.split(name).image_ids]
    assert sorted(ids) == sorted(f"folder-parted-my-shop/{path}" for path in paths)


def test_parting_goes_by_the_bytes_alone(make: Make):
    folder = make(images(12, "cat"))
    before = {s: {e.image.tobytes() for e in FolderParted(folder).split(s)} for s in SPLITS}
    for place, path in enumerate(sorted((folder / "cat").iterdir())):
        path.rename(folder / "cat" / f"x{11 - place:02d}.png")
    after = {s: {e.image.tobytes() for e in FolderParted(folder).split(s)} for s in SPLITS}
    assert after == before


def test_copies_are_on_one_side(make: Make):
    folder = make([*images(10, "cat"), *images(10, "dog")])
    for i in range(10):
        content = (folder / "cat" / f"{i}.png").read_bytes()
        (folder / "cat" / f"copy {i}.png").write_bytes(content)
        if i < 3:
            (folder / "dog" / f"copy {i}.png").write_bytes(content)
    dataset = FolderParted(folder)
    seen = [{e.image.tobytes() for e in dataset.split(name)} for name in SPLITS]
    assert all(seen)
    assert sum(map(len, seen)) == len(set.union(*seen)) == 20
    assert sum(len(dataset.split(name)) for name in SPLITS) == 33


def test_parted_folders_serve_few_shots(make: Make):
    drawn = draw(FolderParted(make([*images(10, "cat"), *images(10, "dog")])), 4, seed=0)
    assert np.bincount(drawn.train.labels).tolist() == [4, 4]
    assert np.bincount(drawn.val.labels).tolist() == [2, 2]


def test_folders_that_are_for_testing_only_name_the_way_to_splits(make: Make):
    folder = make(images(10, "cat"))
    with pytest.raises(ValueError, match=rf"check folder:{folder}` .* or folder-parted:{folder}, "):
        draw(FolderDataset(folder), 4, seed=0)


def test_folders_with_splits_are_not_parted(make: Make):
    with pytest.raises(ValueError, match="has splits of its own; give folder:PATH for these"):
        FolderParted(make(["test/dog/1.png"]))
