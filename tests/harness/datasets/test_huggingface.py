"""Datasets of the library `datasets`: as it writes and reads them."""

import io
import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness.cli import main
from harness.datasets import get_dataset, names_of
from harness.datasets.huggingface import HfDataset

Table = datasets.Dataset
NAMES = ["tabby_cat", "dog", "red_fox"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the library's cache in a folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (7, 5 + seed, 3), dtype=np.uint8)


def encoded(image: int | Image.Image, kind: str = "png") -> bytes:
    """Encode an image, or the one of a seed."""
    file = io.BytesIO()
    image = Image.fromarray(pixels(image)) if isinstance(image, int) else image
    image.save(file, kind)
    return file.getvalue()


FEATURES = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}


def image(seed: int = 0) -> dict[str, Any]:
    return {"bytes": encoded(seed), "path": None}


def table(features: dict[str, Any] = FEATURES, **columns: list[Any]) -> Table:
    columns = {"image": [image(0), image(1)], "label": [0, 1], **columns}
    columns = {name: columns[name] for name in features}
    return Table.from_dict(columns, features=datasets.Features(features))


def rows(*labels: int | None, first: int = 0, **columns: Any) -> Table:
    """Rows with images that differ, of the classes in ``NAMES``."""
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    features |= {name: feature for name, (feature, _) in columns.items()}
    values = {name: values for name, (_, values) in columns.items()}
    images = [image(first + i) for i in range(len(labels))]
    return table(features, image=images, label=list(labels), **values)


def write_saved(folder: Path, splits: dict[str, Table]) -> None:
    datasets.DatasetDict(splits).save_to_disk(folder)


def write_parquet(folder: Path, splits: dict[str, Table]) -> None:
    for name, table in splits.items():
        (folder / "data").mkdir(parents=True, exist_ok=True)
        table.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")


def check(dataset: HfDataset, split: str, labels: Sequence[int], first: int = 0) -> None:
    found = dataset.split(split)
    assert found.labels.tolist() == dataset.labels(split).tolist() == list(labels)
    assert found.image_ids == tuple(f"{dataset.name}/{split}/{i}" for i in range(len(labels)))
    for place in reversed(range(len(labels))):
        assert np.array_equal(found[place].image, pixels(first + place))


@pytest.mark.parametrize("write", [write_saved, write_parquet])
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
    write_saved(tmp_path / "a", tables)
    write_parquet(tmp_path / "b", tables)
    shutil.move(tmp_path / "a", tmp_path / "elsewhere")
    wanted = HfDataset(tmp_path / "b").revision
    assert HfDataset(tmp_path / "elsewhere").revision == wanted
    renamed = tables["train"].cast_column("label", datasets.ClassLabel(names=["a", "b", "c"]))
    others = {
        "label": {**tables, "train": rows(0, 2, 2)},
        "order": {**tables, "train": rows(1, 0, 2)},
        "image": {**tables, "test": rows(1, 0, first=5)},
        "splits": {"train": tables["test"], "test": tables["train"]},
        "row": {**tables, "test": rows(1, first=4)},
        "classes": {"train": renamed},
    }
    for name, other in others.items():
        write_saved(tmp_path / name, other)
    revisions = {HfDataset(tmp_path / name).revision for name in others}
    assert len(revisions | {wanted}) == len(others) + 1


def test_tables_without_some_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows(2, 0).save_to_disk(tmp_path / "one")
    dataset = HfDataset(tmp_path / "one")
    check(dataset, "test", [2, 0])
    assert len(dataset.split("train")) == len(dataset.split("val")) == 0
    write_saved(tmp_path / "pets", {"train": rows(0), "test": rows(1), "extra": rows(2)})
    monkeypatch.setattr(Image, "open", pytest.fail)
    dataset = HfDataset(tmp_path / "pets")
    assert [dataset.labels(name).tolist() for name in ("train", "val", "test")] == [[0], [], [1]]
    assert len(dataset.revision) == 12


def test_splits_and_columns_can_be_chosen(tmp_path: Path):
    coarse = (datasets.ClassLabel(names=["pet", "wild"]), [0, 0, 1])
    mask = (datasets.Image(), [image(9 + i) for i in range(3)])
    table = rows(0, 1, 2, coarse=coarse, mask=mask)
    write_saved(tmp_path / "pets", {"train": table, "validation": table, "test": rows(-1, first=3)})
    text = f"hfds:{tmp_path / 'pets'}#image=mask,label=coarse,test=validation"
    dataset = get_dataset(text)
    assert (dataset.name, dataset.classes) == ("hfds-pets-mask-coarse", ("pet", "wild"))
    assert dataset.asked_as == text
    check(dataset, "test", [0, 0, 1], first=9)  # type: ignore[arg-type]
    assert len(dataset.split("train")) == 0
    [other] = names_of([f"hfds:{tmp_path / 'pets'}#image=image,label=label,test=train"])
    assert other == "hfds-pets-image-label"
    assert get_dataset(other).revision != dataset.revision


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


Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def call(**splits: Table) -> Path:
        datasets.DatasetDict(splits or {"test": table()}).save_to_disk(tmp_path / "pets")
        return tmp_path / "pets"

    return call


def parquet(folder: Path, rows: Table) -> Path:
    """Write rows as they are; the library's own ways look for images that are only named."""
    folder.mkdir()
    pq.write_table(rows.data.table, folder / "test.parquet")
    return folder


LABEL, NUMBER = FEATURES["label"], datasets.Value("int64")
ALIKE, NAMELESS = (datasets.ClassLabel(names=n) for n in (["a_cat", "a cat"], ["cat", "_"]))


@pytest.mark.parametrize(("features", "match"), [
    ({"label": NUMBER}, r"no column of type ClassLabel; there is image .*class_encode_column"),
    ({"image": NUMBER}, "no column of type Image; there is .*cast_column"),
    ({"more": datasets.Image()}, "2 columns of type Image: image, more; .* #image=image"),
    ({"more": LABEL}, "2 columns of type ClassLabel: label, more; .* #label=label"),
    ({"label": ALIKE}, "column 'label': 'a_cat' and 'a cat' would both be class 'a cat'"),
    ({"label": NAMELESS}, "column 'label': class name '_' can't be put into a prompt"),
])  # fmt: skip
def test_columns(features: dict[str, Any], match: str, save: Save):
    columns = {
        name: [image(), image()] if isinstance(feature, datasets.Image) else [0, 1]
        for name, feature in features.items()
    }
    with pytest.raises(ValueError, match=match):
        HfDataset(save(test=table(FEATURES | features, **columns)))


@pytest.mark.parametrize(("choice", "match"), [
    ("img=image", "'img=image' after '#': .*did you mean 'image'. expected one of config, i"),
    ("image=a,image=b", "'image=b' after '#': expected one value for image"),
    ("image=imag", "image=imag: did you mean 'image'. expected one of image"),
    ("label=image", "label=image: it is of type Image, expected ClassLabel"),
    ("val=tests", "val=tests: did you mean 'test'. expected one of test"),
    ("config=x", "config=x: what save_to_disk wrote has none"),
])  # fmt: skip
def test_choices(choice: str, match: str, save: Save):
    with pytest.raises(ValueError, match=match):
        HfDataset(Path(f"{save()}#{choice}"))


def test_rows_without_labels_are_counted(save: Save):
    folder = save(train=table(), test=table(label=[-1, None]))
    with pytest.raises(ValueError, match=r"split 'test' of .*: 2 of 2 rows .* as in #test=valid"):
        HfDataset(folder)
    assert len(HfDataset(Path(f"{folder}#train=train")).split("train")) == 2


def test_a_label_beyond_the_classes(tmp_path: Path):
    table().save_to_disk(tmp_path / "pets")
    facts = tmp_path / "pets" / "dataset_info.json"
    text = facts.read_text()
    assert json.loads(text)["features"]["label"]["names"] == ["cat", "dog"]
    facts.write_text(re.sub(r',\s*"dog"', "", text))
    with pytest.raises(ValueError, match="label 1 is there; 'label' names 1 classes"):
        HfDataset(tmp_path / "pets")


def test_splits(tmp_path: Path):
    other = table({**FEATURES, "label": datasets.ClassLabel(names=["dog", "cat"])})
    for number, (splits, match) in enumerate((
        ({"a": table(), "b": table()}, r"splits a, b, none of train, val.* as in #test=a"),
        ({"val": table(), "validation": table()}, "val and validation would both be the val split"),
        ({"train": table(), "test": other}, "'test' has other columns or classes than 'train'"),
    )):  # fmt: skip
        write_saved(tmp_path / str(number), splits)
        with pytest.raises(ValueError, match=match):
            HfDataset(tmp_path / str(number))
    with pytest.raises(ValueError, match=r"can't be read: An error .* generating .*: BatchSize"):
        HfDataset(parquet(tmp_path / "none", table().select([])))


@pytest.mark.parametrize("place", ["gone", "../ann/pets", "../pets", "ann/pets/small"])
def test_no_such_place(place: str):
    match = "neither a folder, '.*' does not exist, nor the name .*owner/name"
    with pytest.raises(FileNotFoundError, match=match):
        get_dataset(f"hfds:{place}")


def test_what_other_folders_hold(tmp_path: Path):
    file = tmp_path / "pets.parquet"
    file.write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="is a file; give the folder it lies in"):
        HfDataset(file)
    for name, content, match in (
        ("a.csv", "image,label\n1,2\n", "read by 'csv', which gives no images with classes"),
        ("a.tar", "", "read by 'webdataset'"),
        ("a.parquet", "x", "can't be read"),
        ("notes.bin", "x", "can't be"),
        ("folder.py", "", "can't be read: Dataset scripts are no longer supported"),
    ):
        folder = tmp_path / name / "folder"
        folder.mkdir(parents=True)
        (folder / name).write_text(content)
        with pytest.raises((ValueError, OSError), match=match):
            HfDataset(folder)


def test_one_of_several_configs_must_be_named(tmp_path: Path):
    configs = [f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in ("a", "b")]
    folder = parquet(tmp_path / "pets", table())
    (folder / "README.md").write_text(f"---\nconfigs:\n{''.join(configs)}---\n")
    (folder / "test.parquet").rename(folder / "a.parquet")
    pq.write_table(table(label=[1, 1]).data.table, folder / "b.parquet")
    with pytest.raises(ValueError, match=r"\['a', 'b'\].* name it as in #config=CONFIG"):
        HfDataset(folder)
    dataset = HfDataset(Path(f"{folder}#config=b"))
    assert (dataset.name, dataset.labels("train").tolist()) == ("hfds-pets-b", [1, 1])


def test_pickles_are_left_alone_and_tables_that_are_cut_refused(save: Save, monkeypatch):
    folder = save()
    (folder / "a.pkl").write_bytes(pickle.dumps(print))
    monkeypatch.setattr(pickle, "load", pytest.fail)
    monkeypatch.setattr(pickle, "loads", pytest.fail)
    assert len(HfDataset(folder).split("test")) == 2
    [arrow] = (folder / "test").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:300])
    with pytest.raises((ValueError, OSError), match=f"folder '{folder}' can't be"):
        HfDataset(folder)


def test_the_library_is_optional(save: Save, monkeypatch: pytest.MonkeyPatch):
    folder = save()
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(ValueError, match=r"`datasets` 5 or newer, here is 3.6.0; `.*pip install"):
        HfDataset(folder)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"package `datasets`.*pip install 'datasets>=5'"):
        HfDataset(folder)


def test_flags_of_other_datasets(save: Save):
    folder = save()
    with pytest.raises(ValueError, match=r"--root: none of hfds:.* lies below a root"):
        names_of([f"hfds:{folder}"], root=folder)
    assert names_of([f"hfds:{folder}"], download=True) == ["hfds-pets"]
    with pytest.raises(ValueError, match="expected hfds:PATH of a folder, or owner/name"):
        get_dataset("hfds:")
    with pytest.raises(ValueError, match="'hfds-cats' is made from a dataset of the Hugging Face"):
        get_dataset("hfds-cats")


@pytest.mark.parametrize(("content", "path", "match"), [
    (b"\x89PNG", None, "in row 1 of split 'test' of folder .* can't be read"),
    (None, "http://127.0.0.1/a.png", "'http://127.0.0.1/a.png', in row 1 of .* is missing"),
    (b"", None, "in row 1 of .* the row has none"),
])  # fmt: skip
def test_bad_images_stop_with_their_row_and_can_be_left_out(
    content, path, match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images = [image(0), {"bytes": content, "path": path}, image(2)]
    folder = parquet(tmp_path / "pets", table(image=images, label=[0, 1, 1]))
    split = HfDataset(folder).split("test")
    assert [example.label for example in (split[0], split[2])] == [0, 1]
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        split[1]
    [name] = names_of([f"hfds:{folder}"], skip_bad=True)
    assert get_dataset(name).split("test").image_ids == ("hfds-pets/test/0", "hfds-pets/test/2")
    assert get_dataset(name).revision != HfDataset(folder).revision
    assert main(["datasets", "check", f"hfds:{folder}"]) == 1
    assert "problem: 1 unreadable image; --skip-bad leaves them out" in capsys.readouterr().out
