"""Datasets of the library `datasets`: as it writes and reads them."""

import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from harness.datasets import forget, get_dataset, names_of
from harness.datasets.huggingface import HfDataset

Table = datasets.Dataset
NAMES = ["tabby_cat", "dog", "red_fox"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Keep the library's cache in a folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield tmp_path / "cache"
    datasets.enable_progress_bars()
    forget()


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (7, 5 + seed, 3), dtype=np.uint8)


def encoded(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(seed)).save(file, "png")
    return file.getvalue()


def rows(*labels: int | None, first: int = 0, **columns: Any) -> Table:
    """Rows with images that differ, of the classes in ``NAMES``."""
    images = [{"bytes": encoded(first + i), "path": None} for i in range(len(labels))]
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    told = {"image": images, "label": list(labels)}
    for name, (feature, values) in columns.items():
        features[name], told[name] = feature, values
    return Table.from_dict(told, features=datasets.Features(features))


def save(folder: Path, splits: dict[str, Table]) -> None:
    datasets.DatasetDict(splits).save_to_disk(folder)


def parquet(folder: Path, splits: dict[str, Table]) -> None:
    for name, table in splits.items():
        (folder / "data").mkdir(parents=True, exist_ok=True)
        table.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")


def check(dataset: HfDataset, split: str, labels: Sequence[int], first: int = 0) -> None:
    found = dataset.split(split)
    assert found.labels.tolist() == dataset.labels(split).tolist() == list(labels)
    assert found.image_ids == tuple(f"{dataset.name}/{split}/{i}" for i in range(len(labels)))
    for place in reversed(range(len(labels))):
        assert np.array_equal(found[place].image, pixels(first + place))


@pytest.mark.parametrize("write", [save, parquet])
def test_images_labels_and_ids(write: Callable[..., None], tmp_path: Path):
    folder = tmp_path / "My Pets"
    tables = {"train": rows(0, 1, 2), "validation": rows(2, first=3), "test": rows(1, 0, first=4)}
    write(folder, tables)
    dataset = HfDataset(folder)
    assert (dataset.name, dataset.classes) == ("hfds-my-pets", ("tabby cat", "dog", "red fox"))
    assert dataset.asked_as == f"hfds:{folder}"
    assert dataset.captions_seen == (True,) * 3
    check(dataset, "train", [0, 1, 2])
    check(dataset, "val", [2], first=3)
    check(dataset, "test", [1, 0], first=4)
    assert names_of([f"hfds:{folder}"]) == ["hfds-my-pets"]


def test_the_revision_is_of_what_the_rows_hold_however_they_are_written(tmp_path: Path):
    tables = {"train": rows(0, 1, 2), "test": rows(1, 0, first=4)}
    save(tmp_path / "a", tables)
    parquet(tmp_path / "b", tables)
    shutil.move(tmp_path / "a", tmp_path / "elsewhere")
    wanted = HfDataset(tmp_path / "b").revision
    assert HfDataset(tmp_path / "elsewhere").revision == wanted
    others = {
        "label": {**tables, "train": rows(0, 2, 2)},
        "order": {**tables, "train": rows(1, 0, 2)},
        "image": {**tables, "test": rows(1, 0, first=5)},
        "splits": {"train": tables["test"], "test": tables["train"]},
        "row": {**tables, "test": rows(1, first=4)},
    }
    seen = {wanted}
    for name, other in others.items():
        save(tmp_path / name, other)
        seen.add(HfDataset(tmp_path / name).revision)
    renamed = tables["train"].cast_column("label", datasets.ClassLabel(names=["a", "b", "c"]))
    save(tmp_path / "classes", {"train": renamed})
    seen.add(HfDataset(tmp_path / "classes").revision)
    assert len(seen) == len(others) + 2


def test_of_equal_sizes_a_few_images_are_looked_at(tmp_path: Path):
    """Uncompressed images are all of one size; of many, the first and the last count, say."""

    def bitmaps(*shades: int) -> Table:
        files = []
        for shade in shades:
            file = io.BytesIO()
            Image.new("RGB", (4, 4), (shade, 0, 0)).save(file, "bmp")
            files.append({"bytes": file.getvalue(), "path": None})
        return rows(*[0] * len(shades)).remove_columns("image").add_column("image", files)

    seen = set()
    for number, shades in enumerate(([1] * 99, [2, *[1] * 98], [*[1] * 98, 2])):
        table = bitmaps(*shades).cast_column("image", datasets.Image())
        save(tmp_path / str(number), {"test": table})
        seen.add(HfDataset(tmp_path / str(number)).revision)
    assert len(seen) == 3


def test_a_table_without_splits_is_for_testing(tmp_path: Path):
    rows(2, 0).save_to_disk(tmp_path / "pets")
    dataset = HfDataset(tmp_path / "pets")
    check(dataset, "test", [2, 0])
    assert len(dataset.split("train")) == len(dataset.split("val")) == 0


def test_without_val_it_is_empty(tmp_path: Path):
    save(tmp_path / "pets", {"train": rows(0), "test": rows(1), "extra": rows(2)})
    dataset = HfDataset(tmp_path / "pets")
    assert [len(dataset.split(name)) for name in ("train", "val", "test")] == [1, 0, 1]
    with pytest.raises(ValueError, match="split 'val' of 'hfds-pets' has no images"):
        dataset.majority_share("val")


def test_splits_and_columns_can_be_chosen(tmp_path: Path):
    coarse = (datasets.ClassLabel(names=["pet", "wild"]), [0, 0, 1])
    mask = (datasets.Image(), [{"bytes": encoded(9 + i), "path": None} for i in range(3)])
    table = rows(0, 1, 2, coarse=coarse, mask=mask)
    save(tmp_path / "pets", {"train": table, "validation": table, "test": rows(-1, first=3)})
    text = f"hfds:{tmp_path / 'pets'}#image=mask,label=coarse,test=validation"
    dataset = get_dataset(text)
    assert (dataset.name, dataset.classes) == ("hfds-pets-mask-coarse", ("pet", "wild"))
    assert dataset.asked_as == text
    check(dataset, "test", [0, 0, 1], first=9)  # type: ignore[arg-type]
    assert len(dataset.split("train")) == 0
    [other] = names_of([f"hfds:{tmp_path / 'pets'}#image=image,label=label,test=train"])
    assert other == "hfds-pets-image-label"
    assert get_dataset(other).revision != dataset.revision


def test_a_hash_may_be_part_of_a_folders_name(tmp_path: Path):
    save(tmp_path / "pets#2=b", {"test": rows(0)})
    assert HfDataset(tmp_path / "pets#2=b").asked_as == f"hfds:{tmp_path / 'pets#2=b'}"
    assert len(HfDataset(Path(f"{tmp_path / 'pets#2=b'}#label=label")).split("test")) == 1


def test_folders_of_images_are_read_where_they_lie(tmp_path: Path):
    for number, (split, name) in enumerate((("train", "cat"), ("train", "dog"), ("test", "dog"))):
        file = tmp_path / "pets" / split / name / "1.png"
        file.parent.mkdir(parents=True)
        file.write_bytes(encoded(number))
    dataset = HfDataset(tmp_path / "pets")
    check(dataset, "train", [0, 1])
    check(dataset, "test", [1], first=2)
    before = dataset.revision
    assert str(tmp_path) not in "".join(dataset.split("train").image_ids)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"1.png', in row 0 of split 'test' .* is missing"):
        dataset.split("test")[0]
    assert HfDataset(tmp_path / "pets").revision != before


def test_labels_are_known_without_decoding_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save(tmp_path / "pets", {"test": rows(0, 1, 1)})
    monkeypatch.setattr(Image, "open", pytest.fail)
    dataset = HfDataset(tmp_path / "pets")
    assert dataset.labels("test").tolist() == [0, 1, 1]
    assert len(dataset.revision) == 12
