"""What is no dataset of images with classes is refused, with the way out."""

import io
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness.cli import main
from harness.datasets import forget, get_dataset, names_of
from harness.datasets.huggingface import HfDataset

FEATURES = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}


@pytest.fixture(autouse=True)
def _own_cache_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()
    forget()


def image(shade: int = 0) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def table(features: dict[str, Any] | None = None, **columns: list[Any]) -> datasets.Dataset:
    told = {"image": [image(0), image(1)], "label": [0, 1], **columns}
    features = FEATURES if features is None else features
    told = {name: told[name] for name in features}
    return datasets.Dataset.from_dict(told, features=datasets.Features(features))


Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def call(**splits: datasets.Dataset) -> Path:
        datasets.DatasetDict(splits or {"test": table()}).save_to_disk(tmp_path / "pets")
        return tmp_path / "pets"

    return call


def parquet(folder: Path, rows: datasets.Dataset) -> Path:
    """Write rows as they are; the library's own ways look for images that are only named."""
    folder.mkdir()
    pq.write_table(rows.data.table, folder / "test.parquet")
    return folder


@pytest.mark.parametrize(
    ("features", "match"),
    [
        (
            {"image": datasets.Image(), "label": datasets.Value("int64")},
            r"no column of type ClassLabel; there is image \(Image\), label \(Value\); "
            "`datasets.Dataset.class_encode_column` makes one",
        ),
        (
            {"label": FEATURES["label"], "more": datasets.Value("int64")},
            "no column of type Image; there is .*cast_column",
        ),
        (
            {**FEATURES, "more": datasets.Image()},
            "has 2 columns of type Image: image, more; say which, as in #image=image",
        ),
        (
            {**FEATURES, "more": FEATURES["label"]},
            "has 2 columns of type ClassLabel: label, more; say which, as in #label=label",
        ),
        (
            {**FEATURES, "label": datasets.ClassLabel(names=["a_cat", "a cat"])},
            "column 'label': classes 'a_cat' and 'a cat' are both 'a cat'",
        ),
        (
            {**FEATURES, "label": datasets.ClassLabel(names=["cat", "_"])},
            "column 'label': class name '_' can't be put into a prompt",
        ),
    ],
)
def test_columns(features: dict[str, Any], match: str, save: Save):
    kind = features.get("more")
    more = [image(), image()] if isinstance(kind, datasets.Image) else [0, 1]
    with pytest.raises(ValueError, match=match):
        HfDataset(save(test=table(features, more=more)))


@pytest.mark.parametrize(
    ("choice", "match"),
    [
        (
            "img=image",
            "'img=image' after '#': .*did you mean 'image'. expected one of config, image",
        ),
        ("image", "'image' after '#': expected one value for image"),
        ("image=a,image=b", "'image=b' after '#': expected one value for image"),
        ("", "'' after '#': expected one of config"),
        ("image=imag", "image=imag: did you mean 'image'. expected one of image"),
        ("label=image", "label=image: it is of type Image, expected ClassLabel"),
        ("val=tests", "val=tests: did you mean 'test'. expected one of test"),
        ("config=x", "config=x: what save_to_disk wrote has no configs"),
    ],
)
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
    told = json.loads(facts.read_text())
    told["features"]["label"]["names"] = ["cat"]
    facts.write_text(json.dumps(told))
    with pytest.raises(ValueError, match="label 1 is there; 'label' names 1 classes"):
        HfDataset(tmp_path / "pets")


def test_splits(save: Save, tmp_path: Path):
    with pytest.raises(ValueError, match=r"splits a, b, none of train, val.* as in #test=a"):
        HfDataset(save(a=table(), b=table()))
    two = {"val": table(), "validation": table()}
    datasets.DatasetDict(two).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match="val and validation would both be the val split"):
        HfDataset(tmp_path / "two")
    other = table({**FEATURES, "label": datasets.ClassLabel(names=["dog", "cat"])})
    datasets.DatasetDict(train=table(), test=other).save_to_disk(tmp_path / "other")
    with pytest.raises(ValueError, match="'test' has other columns or classes than 'train'"):
        HfDataset(tmp_path / "other")
    with pytest.raises(ValueError, match=r"can't be read: An error .* generating .*: BatchSize"):
        HfDataset(parquet(tmp_path / "none", table().select([])))


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("gone", "neither a folder, .*gone' does not exist, nor the name .*owner/name"),
        ("../ann/pets", "neither a folder"),
        ("../pets", "neither a folder"),
        ("ann/pets/small", "neither a folder"),
    ],
)
def test_no_such_place(given: str, match: str):
    with pytest.raises(FileNotFoundError, match=match):
        get_dataset(f"hfds:{given}")


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


@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
def test_folders_that_name_files_elsewhere(file: str, tmp_path: Path):
    told = "configs:\n- config_name: default\n  data_files: http://127.0.0.1/a.parquet\n"
    (tmp_path / file).write_text(f"---\n{told}---\n" if file == "README.md" else told)
    with pytest.raises(ValueError, match=r"names files by URL"):
        HfDataset(tmp_path)


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


def test_pickles_are_left_alone(save: Save, monkeypatch: pytest.MonkeyPatch):
    folder = save()
    (folder / "a.pkl").write_bytes(pickle.dumps(print))
    monkeypatch.setattr(pickle, "load", pytest.fail)
    monkeypatch.setattr(pickle, "loads", pytest.fail)
    assert len(HfDataset(folder).split("test")) == 2


def test_tables_that_are_cut(save: Save):
    folder = save()
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


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (
            {"bytes": b"\x89PNG", "path": None},
            "in row 1 of split 'test' of folder .* can't be read",
        ),
        ({"bytes": None, "path": "a.png"}, "row 1 of .* only named, as 'a.png', which is none of"),
        ({"bytes": None, "path": "http://127.0.0.1/a.png"}, "which is none of the dataset's files"),
        ({"bytes": b"", "path": None}, "in row 1 of .* the row has none"),
    ],
)
def test_bad_images_stop_with_their_row_and_can_be_left_out(
    bad: dict[str, Any], match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images = [image(0), bad, image(2)]
    folder = parquet(tmp_path / "pets", table(image=images, label=[0, 1, 1]))
    split = HfDataset(folder).split("test")
    assert [example.label for example in (split[0], split[2])] == [0, 1]
    with pytest.raises(ValueError, match=match):
        split[1]
    [name] = names_of([f"hfds:{folder}"], skip_bad=True)
    assert get_dataset(name).split("test").image_ids == ("hfds-pets/test/0", "hfds-pets/test/2")
    assert get_dataset(name).revision != HfDataset(folder).revision
    assert main(["datasets", "check", f"hfds:{folder}"]) == 1
    assert "problem: 1 unreadable image; --skip-bad leaves them out" in capsys.readouterr().out


def test_images_that_are_only_named_may_not_lie_elsewhere(tmp_path: Path):
    """Neither by their path nor by a link."""
    outside, folder = tmp_path / "secret.png", tmp_path / "pets"
    outside.write_bytes(image()["bytes"])
    inside = {"bytes": None, "path": str(folder / "b.png")}
    parquet(folder, table(image=[{"bytes": None, "path": str(outside)}, inside]))
    (folder / "b.png").symlink_to(outside)
    dataset = HfDataset(folder)
    for row in range(2):
        with pytest.raises(ValueError, match=rf"image in row {row} of .* is none of the dataset's"):
            dataset.split("test")[row]
    before = dataset.revision
    (folder / "b.png").unlink()
    (folder / "b.png").write_bytes(image()["bytes"])
    assert HfDataset(folder).split("test")[1].label == 1
    assert HfDataset(folder).revision != before
