"""Archives that hold more, or less, than they say are told apart before anything is read."""

import zipfile
from pathlib import Path

import pytest
import torch

from zoo.weight_file import open_archive, read_weights


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    torch.save({"a": torch.arange(8.0), "b": torch.randn(500)}, tmp_path / "w.pt")
    return tmp_path / "w.pt"


def with_record(path: Path, name: str, content: bytes, how: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "a") as opened:
        opened.writestr(name, content, how)
    return path


def test_records_are_read_by_name(archive: Path):
    with open_archive(archive) as opened:
        assert opened.read("data/0") == torch.arange(8.0).numpy().tobytes()
        with pytest.raises(ValueError, match=r"lacks its record 'data/7': cut short or damaged"):
            opened.read("data/7")


def test_compressed_records_are_not_unpacked(archive: Path):
    with_record(archive, "w/data/2", b"\0" * 2**22, zipfile.ZIP_DEFLATED)
    assert archive.stat().st_size < 2**14
    match = r"w\.pt' has a compressed record 'data/2' of 4194304 bytes; torch compresses no weights"
    with pytest.raises(ValueError, match=match):
        read_weights(archive)


def test_source_may_be_compressed_unless_it_is_a_bomb(archive: Path):
    with_record(archive, "w/code/fine.py", b" " * 2**16, zipfile.ZIP_DEFLATED)
    assert read_weights(archive).keys() == {"a", "b"}
    with_record(archive, "w/code/bomb.py", b" " * 2**25, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"a compressed record 'code/bomb\.py' of 33554432 bytes"):
        read_weights(archive)


def test_records_that_overlap(archive: Path):
    """The sizes in the table of contents are changed; their sum is more than the file has."""
    raw = archive.read_bytes()
    place = raw.rindex(b"w/data/0") - 46  # the record's entry there, with its sizes at 20 and 24
    assert raw[place + 20 : place + 28] == (32).to_bytes(4, "little") * 2
    big = (2**30).to_bytes(4, "little")
    archive.write_bytes(raw[: place + 20] + big * 2 + raw[place + 28 :])
    with pytest.raises(ValueError, match=r"has records of 107\d+ bytes in a file of \d+: they o"):
        read_weights(archive)


@pytest.mark.parametrize(
    "name", ["w/../../evil", "w//evil", "w/a\\..\\evil", "w/./evil", "w/data/../evil", "w/evil/"]
)
def test_names_that_leave_the_archive(name: str, archive: Path):
    with_record(archive, name, b"x")
    with pytest.raises(ValueError, match=r"has a record named '.*evil/?', as torch names none"):
        read_weights(archive)
    assert list(archive.parent.parent.rglob("*evil*")) == []


@pytest.mark.parametrize("name", ["/evil", "other/evil", "evil"])
def test_records_outside_the_one_folder(name: str, archive: Path):
    with pytest.raises(ValueError, match=r"none that torch wrote: it has no single folder"):
        read_weights(with_record(archive, name, b"x"))


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_one_name_for_two_records(archive: Path):
    with pytest.raises(ValueError, match=r"has two records named 'data/0'"):
        read_weights(with_record(archive, "w/data/0", b"x"))


def test_archives_cut_short_or_changed_on_the_way(archive: Path):
    raw = archive.read_bytes()
    archive.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match=r"is cut short or damaged \(.*\); get it again"):
        read_weights(archive)
    place = raw.index(torch.arange(8.0).numpy().tobytes())
    archive.write_bytes(raw[:place] + b"\1" + raw[place + 1 :])
    match = r"is cut short or damaged \(Bad CRC-32 .*\); get it again"
    with open_archive(archive) as opened, pytest.raises(zipfile.BadZipFile, match="Bad CRC-32"):
        opened.read("data/0")
    with pytest.raises(ValueError, match=match), open_archive(archive) as opened:
        opened.read("data/0")
