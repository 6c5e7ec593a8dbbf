"""What holds for every dataset that is shipped, and the interface's refusals."""

import sys

import numpy as np
import pytest

from harness import datasets
from harness.datasets import get_dataset, list_datasets
from harness.datasets.base import DATA_DIR, FINAL, SPLITS, Dataset
from tools.shipping import read_known, write_or_check

NAMES = tuple(name for name in list_datasets() if get_dataset(name).files)
MEBIBYTE = 2**20


def test_a_file_of_the_folder_is_a_dataset(tmp_path, monkeypatch):
    assert set(NAMES) >= {"fashion", "emoji", "emoji-subcategory", "emoji-names", "photos"}
    assert list(NAMES) == sorted(NAMES)
    assert get_dataset("fashion") is get_dataset("fashion")
    text = 'from harness.datasets.fashion import Fashion\nclass Toy(Fashion):\n    name = "toy"\n'
    (tmp_path / "toy.py").write_text(text)
    datasets._classes.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(datasets, "__path__", [*datasets.__path__, str(tmp_path)])
            assert "toy" in list_datasets()
            assert get_dataset("toy").name == "toy"
    finally:
        datasets._classes.cache_clear()
        sys.modules.pop("harness.datasets.toy")


def test_unknown_names_get_the_nearest_one():
    with pytest.raises(ValueError, match=r"'fasion'.*Did you mean 'fashion'.*patchrank list"):
        get_dataset("fasion")
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'dev'"):
        get_dataset("fashion").split("dev")
    with pytest.raises(ValueError, match="only `patchrank study final`, and"):
        get_dataset("fashion").split("final")
    for read in (Dataset.released, lambda dataset: dataset.labels("final")):
        with pytest.raises(ValueError, match="'emoji-names' has no split 'final'; fashion, emoji and photos have"):
            read(get_dataset("emoji-names"))
    with pytest.raises(ValueError, match="got -1"):
        get_dataset("fashion").split("train").variant(-1)


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    dataset = get_dataset(name)
    assert len(dataset.classes) == len(set(dataset.classes)) == len(dataset.captions_seen)
    assert dataset.labelled == bool(dataset.classes) == (len(dataset.templates) >= 3)
    assert all(template.count("{}") == 1 for template in dataset.templates)
    assert all(caption == caption.lower().strip() for caption in dataset.classes)
    assert all((dataset.license, dataset.source, dataset.title))
    assert len(dataset.revision) == 12
    ids: set[str] = set()
    splits = SPLITS
    if dataset.has_final:
        dataset, splits = dataset.released(), (*SPLITS, FINAL)
    for split_name in splits:
        split = dataset.split(split_name)
        labels = dataset.labels(split_name)
        assert (labels.shape, labels.dtype) == ((len(split),), np.int64)
        if len(split):
            least = 0 if dataset.labelled else -1
            assert least <= labels.min() <= labels.max() < max(len(dataset.classes), least + 1)
            example = split[len(split) - 1]
            assert example.label == labels[-1]
            assert example.image.mode == "RGB"
            if dataset.labelled:
                assert (example.mask.shape, example.mask.dtype) == (example.image.size[::-1], np.bool_)
        ids |= set(split.image_ids)
    assert len(ids) == sum(len(dataset.split(split)) for split in splits)
    assert len(np.unique(dataset.labels("test"))) == max(len(dataset.classes), 1)


@pytest.mark.parametrize("split_name", SPLITS)
@pytest.mark.parametrize("name", NAMES)
def test_ids_are_the_drawn_examples_ids(name, split_name):
    split = get_dataset(name).split(split_name)
    assert len(split.image_ids) == len(set(split.image_ids)) == len(split)
    chosen = np.arange(len(split))[::-61]
    few = split.subset(chosen)
    other = few.variant(3)
    assert few.image_ids == tuple(split.image_ids[i] for i in chosen)
    both = few.variant(3).variants(2)
    for part in (few, other, both):
        assert part.image_ids == tuple(example.image_id for example in part)
    assert both.image_ids == other.image_ids + few.variant(1).image_ids
    for example in few.variant(1)[:1]:
        assert both[len(few)].image == example.image
    assert other.image_ids == tuple(f"{name}/3" for name in few.image_ids)
    assert other.variant(0).image_ids == few[:].image_ids == few.image_ids


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_labels_need_no_image(name, monkeypatch):
    module = sys.modules[type(get_dataset(name)).__module__]
    monkeypatch.setattr(module, "compose", lambda *_: pytest.fail("drawn"))
    split = get_dataset(name).split("test")
    assert len(split.image_ids) == len(split.labels) == len(split)
    with pytest.raises(pytest.fail.Exception, match="drawn"):
        split[0]


def test_a_missing_file_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr("harness.datasets.base.DATA_DIR", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"python -m harness\.embedded\.build_emoji"):
        get_dataset("emoji").path("emoji-noto.pack")


def test_shipped_files_stay_small():
    files = {file for name in NAMES for file in get_dataset(name).files}
    sizes = {file: (DATA_DIR / file).stat().st_size for file in files}
    assert max(sizes.values()) < 5 * MEBIBYTE
    assert sum(sizes.values()) < 17 * MEBIBYTE


def test_check_tells_equal_from_different(tmp_path, capsys):
    assert write_or_check({"a": b"1"}, tmp_path, check=True) == 1
    assert write_or_check({"a": b"1"}, tmp_path, check=False) == 0
    assert write_or_check({"a": b"1"}, tmp_path, check=True) == 0
    assert write_or_check({"a": b"2"}, tmp_path, check=True) == 1
    assert (tmp_path / "a").read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert capsys.readouterr().out.count("DIFFERS") == 2


def test_a_known_file_must_be_the_known_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="`get x` gets it"):
        read_known(tmp_path / "x", "0", "get x")
    (tmp_path / "x").write_bytes(b"1")
    with pytest.raises(ValueError, match=r"has sha256 6b86b273.*expected 0"):
        read_known(tmp_path / "x", "0", "get x")
