"""What lies beside tars in CLIP_benchmark's layout, and what of it is refused."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.datasets import get_dataset
from harness.datasets.webdataset import TarDataset

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write two tars, the second one empty, and what lies beside them; return the folder."""

    def call(names: str = "cat\ndog\n", **files: str) -> Path:
        folder = tmp_path / "Pets"
        (folder / "test").mkdir(parents=True, exist_ok=True)
        for number in range(2):
            with tarfile.open(folder / "test" / f"{number}.tar", "w") as tar:
                for name in ("a.png", "a.cls") if number == 0 else ():
                    header = tarfile.TarInfo(name)
                    header.size = 1
                    tar.addfile(header, io.BytesIO(b"0"))
        (folder / "classnames.txt").write_text(names)
        for name, text in files.items():
            (folder / f"{name}.txt").write_text(text)
        return folder

    return call


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"dataset_type": "retrieval"}, "dataset_type.txt says 'retrieval'; only classification"),
        ({"dataset_type": "multilabel"}, "says 'multilabel'"),
        ({"names": "cat\ncat\n"}, "classnames.txt: lines 1 and 2 are 'cat'"),
        ({"names": "cat\n\ndog\n"}, "line 2: expected a name, got ''"),
        ({"zeroshot_classification_templates": "a {}\na photo"}, "line 2: template 'a photo'"),
        ({"zeroshot_classification_templates": "a {x}"}, "line 1: template 'a {x}'.*here it is {c"),
    ],
)
def test_texts_that_are_refused(files: dict[str, str], match: str, make: Make):
    with pytest.raises(ValueError, match=match):
        TarDataset(make(**files))


def test_classification_may_be_said(make: Make):
    assert len(TarDataset(make(dataset_type="classification\n")).split("test")) == 1


@pytest.mark.parametrize("told", ["3", "3\n"])
def test_tars_that_are_missing(told: str, make: Make):
    folder = make()
    (folder / "test" / "nshards.txt").write_text(told)
    with pytest.raises(FileNotFoundError, match=r"2.tar' is missing; nshards.txt beside it says 3"):
        TarDataset(folder)


@pytest.mark.parametrize("told", ["two", "2\n2", "-1", "²", "99999999"])
def test_numbers_of_tars_that_are_none(told: str, make: Make):
    folder = make()
    (folder / "test" / "nshards.txt").write_text(told)
    with pytest.raises(ValueError, match=r"nshards.txt': expected the number of tars"):
        TarDataset(folder)


def test_folders_that_hold_no_tars(make: Make, tmp_path: Path):
    folder = make()
    (folder / "val").mkdir()
    (folder / "validation").mkdir()
    with pytest.raises(ValueError, match="val and validation would both be the val split"):
        TarDataset(folder)
    (folder / "classnames.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"classnames.txt is missing; write the class"):
        TarDataset(folder)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "classnames.txt").write_text("a")
    with pytest.raises(FileNotFoundError, match=r"has no tars; expected test/0.tar"):
        get_dataset(f"wds:{tmp_path / 'none'}")
    with pytest.raises(FileNotFoundError, match=r"folder of tars '.*gone' does not exist"):
        get_dataset(f"wds:{tmp_path / 'gone'}")
