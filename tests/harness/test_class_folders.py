"""Listings of class folders: what is there now, whether or not it was kept."""

import json
import os
import time
from pathlib import Path

import pytest

from harness.datasets import imagenet as module
from harness.datasets.imagenet import class_folders


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "CACHED_FROM", 1)
    for path in ("b/2.JPEG", "b/10.png", "a/1.jpg", "a/notes.txt", "a/.hidden.jpg", ".git/x.jpg"):
        file = tmp_path / "images" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * len(path))
    (tmp_path / "images" / "top.jpg").touch()
    (tmp_path / "images" / "a" / "deeper.jpg").mkdir()
    return tmp_path / "images"


def names(folder: Path, **how: bool) -> dict[str, list[str]]:
    return {name: listed.names for name, listed in class_folders(folder, **how).items()}


def count_scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    scanned, scan = [], os.scandir

    def note(path: Path) -> object:
        scanned.append(Path(path).name)
        return scan(path)

    monkeypatch.setattr(os, "scandir", note)
    return scanned


def kept(folder: Path) -> list[Path]:
    return list((folder.parent / "cache").rglob("*.json"))


def test_images_are_listed_in_order(folder: Path):
    assert names(folder) == {"a": ["1.jpg"], "b": ["10.png", "2.JPEG"]}
    assert list(class_folders(folder)) == ["a", "b"]
    assert class_folders(folder)["b"].sizes == [8, 8]


def test_a_kept_listing_is_used_until_a_name_changes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    first = class_folders(folder)
    scanned = count_scans(monkeypatch)
    assert class_folders(folder) == first
    assert scanned == ["images"]
    os.utime(folder / "b", ns=(1, 1))
    (folder / "c").mkdir()
    scanned.clear()
    assert names(folder) == {"a": ["1.jpg"], "b": ["10.png", "2.JPEG"], "c": []}
    assert scanned == ["images", "b", "c"]
    (folder / "a" / "1.jpg").unlink()
    (folder / "c").rmdir()
    os.utime(folder / "a", ns=(2, 2))
    assert names(folder) == {"a": [], "b": ["10.png", "2.JPEG"]}
    assert names(folder, fresh=True) == names(folder)


def test_a_fresh_one_sees_what_was_overwritten(folder: Path):
    class_folders(folder)
    (folder / "a" / "1.jpg").write_bytes(b"longer than before")
    assert class_folders(folder)["a"].sizes == [7]
    assert class_folders(folder, fresh=True)["a"].sizes == [18]
    assert class_folders(folder)["a"].sizes == [18]


def test_few_files_are_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CACHED_FROM", 4)
    class_folders(folder)
    assert kept(folder) == []


@pytest.mark.parametrize(
    "content", [b"", b"\x80\4", b"[]", b'{"version": 0}', b'{"version": 1, "folders": {"a": [1]}}']
)
def test_what_can_not_be_understood_is_listed_anew(content: bytes, folder: Path):
    first = class_folders(folder)
    [file] = kept(folder)
    assert set(json.loads(file.read_bytes())) == {"version", "folders"}
    file.write_bytes(content)
    assert class_folders(folder) == first


def test_a_cache_that_can_not_be_written_costs_nothing_but_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    (folder.parent / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "file"))
    assert names(folder) == {"a": ["1.jpg"], "b": ["10.png", "2.JPEG"]}


def test_no_folder_is_said(folder: Path):
    with pytest.raises(FileNotFoundError, match="none"):
        class_folders(folder / "none")
    with pytest.raises(NotADirectoryError, match=r"top.jpg"):
        class_folders(folder / "top.jpg")


def test_listings_of_two_folders_are_kept_apart(folder: Path):
    other = folder.with_name("other")
    (other / "z").mkdir(parents=True)
    (other / "z" / "9.jpg").touch()
    assert names(other) == {"z": ["9.jpg"]}
    assert set(names(folder)) == {"a", "b"}
    assert len(kept(folder)) == 2
    assert time.time_ns() > class_folders(other)["z"].changed
