"""Datasets of the library `datasets`: as it writes and reads them, and from the hub only if asked for."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from packing import encoded, noise
from PIL import Image

from harness.datasets import Options, get_dataset, names_of
from harness.datasets.huggingface import HfDataset

Table = datasets.Dataset
CLASSES = datasets.ClassLabel(names=["tabby_cat", "dog", "red_fox"])
IMAGE = datasets.Image()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield tmp_path / "cache"
    datasets.enable_progress_bars()


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def image(seed: int) -> dict[str, Any]:
    return {"bytes": encoded(str(seed)), "path": None}


def rows(*labels: int | None, first: int = 0, **more: tuple[Any, list[Any]]) -> Table:
    images = [image(first + i) for i in range(len(labels))]
    columns = {"image": (IMAGE, images), "label": (CLASSES, list(labels)), **more}
    features = datasets.Features({name: feature for name, (feature, _) in columns.items()})
    return Table.from_dict({name: values for name, (_, values) in columns.items()}, features=features)


def save(folder: Path, **splits: Table) -> Path:
    datasets.DatasetDict(splits).save_to_disk(folder)
    return folder


def save_parquet(folder: Path, **splits: Table) -> Path:
    """Write rows as they are; the library's own ways look for images that are only named."""
    for name, table in splits.items():
        (folder / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(table.data.table, folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("write", [save, save_parquet])
def test_images_labels_and_ids(write: Callable[..., Path], tmp_path: Path):
    tables = {"train": rows(1, 2, 0), "validation": rows(2, first=3), "test": rows(1, 0, 2, first=4)}
    folder = write(tmp_path / "My Pets", **tables)
    dataset = HfDataset(folder)
    assert dataset.classes == ("tabby cat", "dog", "red fox")
    seen = set()
    for split in ("train", "val", "test"):
        found = dataset.split(split)
        assert found.image_ids == tuple(f"hfds-my-pets/{split}/{i}" for i in range(len(found)))
        seen |= {(split, e.label, e.image.tobytes()) for e in reversed(found)}
    wanted = zip(["train"] * 3 + ["val"] + ["test"] * 3, (1, 2, 0, 2, 1, 0, 2), map(str, range(7)), strict=True)
    assert seen == {(split, label, noise(seed).tobytes()) for split, label, seed in wanted}


def test_the_revision_is_of_what_the_rows_hold_however_they_are_written(tmp_path: Path):
    tables = {"train": rows(0, 1, 2), "test": rows(1, 0, first=4)}
    wanted = HfDataset(save_parquet(tmp_path / "b", **tables)).revision
    shutil.move(save(tmp_path / "a", **tables), tmp_path / "elsewhere")
    assert HfDataset(tmp_path / "elsewhere").revision == wanted
    others = (
        {**tables, "train": rows(0, 2, 2)}, {**tables, "train": rows(1, 0, 2)}, {**tables, "test": rows(1, first=4)},
        {**tables, "test": rows(1, 0, first=5)}, {"train": tables["test"], "test": tables["train"]},
    )  # fmt: skip
    revisions = {HfDataset(save(tmp_path / str(n), **other)).revision for n, other in enumerate(others)}
    assert len(revisions | {wanted}) == len(others) + 1


def test_splits_and_columns_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    coarse = (datasets.ClassLabel(names=["pet", "wild"]), [0, 0, 1])
    table = rows(0, 1, 2, coarse=coarse, mask=(IMAGE, [image(9 + i) for i in range(3)]))
    folder = save(tmp_path / "pets#2=b", train=table, validation=table, test=rows(-1), extra=rows(0))
    text = f"hfds:{folder}#image=mask,label=coarse,test=validation"
    dataset = get_dataset(text)
    assert (dataset.name, dataset.classes, dataset.asked_as) == ("hfds-pets-2-b-mask-coarse", ("pet", "wild"), text)
    assert np.array_equal(dataset.split("test")[2].image, noise("11"))
    assert len(dataset.split("train")) == 0
    rows(2, 0).save_to_disk(tmp_path / "one")  # without splits all is for testing
    monkeypatch.setattr(Image, "open", pytest.fail)
    assert [HfDataset(tmp_path / "one").labels(name).tolist() for name in ("train", "test")] == [[], [2, 0]]


@pytest.mark.parametrize(("tables", "choice", "match"), [
    ({"test": rows(0, label=(datasets.Value("int64"), [1]))}, "", "ClassLabel; there is image .*class_encode_column"),
    ({"test": rows(0, more=(CLASSES, [1]))}, "", "#label=: expected one of label, more of type ClassLabel"),
    ({"test": rows(0, -1)}, "", "1 of 2 rows have no label"),
    ({"test": rows(0), "train": rows(0, label=(datasets.ClassLabel(names=["cat"]), [0]))}, "", "other classes"),
    ({"val": rows(0), "validation": rows(0)}, "", "the splits val, validation; .* #test=val"),
    ({"extra": rows(0)}, "", "the splits extra; .* #test=extra"),
    ({"test": rows(0)}, "#img=image", "'img=image' after '#': expected KEY=VALUE, each once of config, image"),
    ({"test": rows(0)}, "#image=imag", "image=imag: .*'image'"),
    ({"test": rows(0)}, "#val=tests", "val=tests: .*'test'"),
    ({"test": rows(0)}, "#config=a", "config=a: what save_to_disk wrote has none"),
])  # fmt: skip
def test_refusals(tables: dict[str, Table], choice: str, match: str, tmp_path: Path):
    with pytest.raises(ValueError, match=match):
        HfDataset(Path(f"{save(tmp_path / 'pets', **tables)}{choice}"))


def test_what_is_no_dataset_or_several(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"hfds:../ann/pets is neither.*owner/name"):
        get_dataset("hfds:../ann/pets")
    for name, match in (("a.csv", "'csv'"), ("folder.py", "can't be read: Dataset scripts")):
        folder = tmp_path / name / "folder"
        folder.mkdir(parents=True)
        (folder / name).write_text("image,label\n1,2\n" if "csv" in name else "")
        with pytest.raises((ValueError, OSError), match=match):
            HfDataset(folder)
    configs = [f"- config_name: {name}\n  data_files: data/{name}*\n" for name in ("a", "b")]
    folder = save_parquet(tmp_path / "pets", a=rows(0), b=rows(1, 1))
    (folder / "README.md").write_text(f"---\nconfigs:\n{''.join(configs)}---\n")
    with pytest.raises(ValueError, match=r"\['a', 'b'\].* #config=CONFIG"):
        HfDataset(folder)
    dataset = HfDataset(Path(f"{folder}#config=b"))
    assert (dataset.name, dataset.labels("train").tolist()) == ("hfds-pets-b", [1, 1])


@pytest.mark.parametrize(("content", "path", "match"), [
    (b"\x89PNG", None, "in row 1 of split 'test' of folder .* can't be read"),
    (None, "http://127.0.0.1/a.png", "in row 1 .* only named, as 'http://127.0.0.1/a.png'"),
    (b"", None, "in row 1 of .* can't be read"),
    (None, "/dev/zero", "in row 1 .* only named, as '/dev/zero'"),
])  # fmt: skip
def test_bad_images_stop_with_their_row_and_can_be_left_out(content, path, match: str, tmp_path: Path):
    images = (IMAGE, [image(0), {"bytes": content, "path": path}, image(2)])
    folder = save_parquet(tmp_path / "pets", test=rows(0, 1, 1, image=images))
    split = HfDataset(folder).split("test")
    assert [example.label for example in (split[0], split[2])] == [0, 1]
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        split[1]
    [name] = names_of([f"hfds:{folder}"], Options(skip_bad=True))
    assert get_dataset(name).split("test").image_ids == ("hfds-pets/test/0", "hfds-pets/test/2")


@pytest.mark.usefixtures("online")
def test_what_the_cache_holds_is_read_without_a_network(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    local = get_dataset(f"hfds:{save_parquet(tmp_path / 'pets', train=rows(0), test=rows(1))}")
    (cache / "pets").rename(cache / "ann___pets")  # as the library names what is from the hub
    monkeypatch.setattr("socket.socket.connect", pytest.fail)
    dataset = get_dataset("hfds:ann/pets")
    assert dataset.name == "hfds-ann-pets"
    assert dataset.revision == local.revision
    assert not datasets.config.HF_HUB_OFFLINE | constants.HF_HUB_OFFLINE


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("download", [False, True])
def test_only_download_may_go_to_the_network(download: bool, monkeypatch: pytest.MonkeyPatch):
    offline = []

    def open_it(name: str, config: str | None) -> None:
        offline.extend([name, config, datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE])
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset_builder", open_it)
    with pytest.raises(OSError, match="'ann/pets' of the hub") as caught:
        names_of(["hfds:ann/pets#config=small"], Options(download=download))
    assert offline == ["ann/pets", "small", not download, not download]
    assert ("--download gets it" in str(caught.value)) != download
