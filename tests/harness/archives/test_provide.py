"""What a dataset needs: there, in an archive, in an archive's archive, or downloaded."""

import io
import json
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from harness.datasets import get_dataset
from harness.datasets.archives import Archive, Provider, required_paths
from harness.datasets.coop import DescribableTextures
from harness.datasets.imagenet import ImageNet

PAGE = "https://example.org/data"


def tar_gz(name: str, data: bytes) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


INNER = tar_gz("images/a.jpg", b"a")


def nested(url: str | None = None, **facts: object) -> tuple[Archive, ...]:
    outer = {"file": "all.zip", "holds": "images.tar.gz", "page": PAGE, "url": url, "strip": "all"}
    return (Archive(file="images.tar.gz", holds="images", page=PAGE), Archive(**outer | facts))


def outer() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("all/images.tar.gz", INNER)
    return content.getvalue()


def test_what_is_needed_is_no_archive():
    assert required_paths(nested()) == ["images"]
    assert required_paths((Archive(file="x.json", holds="x.json", page=PAGE),)) == ["x.json"]


@pytest.mark.parametrize("where", ["data/all.zip", "all.zip", "data/images.tar.gz"])
def test_archives_lie_in_the_folder_or_beside_it(where: str, tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / where).write_bytes(outer() if "all" in where else INNER)
    Provider(dataset="x", folder=tmp_path / "data", archives=nested()).provide()
    assert (tmp_path / "data" / "images" / "a.jpg").read_bytes() == b"a"


def test_beside_the_folder_only_what_holds_a_folder_of_its_own_counts(tmp_path: Path):
    (tmp_path / "images.tar.gz").write_bytes(b"of another dataset")
    with pytest.raises(FileNotFoundError, match="'images' is missing, which is in"):
        Provider(dataset="x", folder=tmp_path / "data", archives=nested()).provide()


def test_nothing_is_downloaded_unless_asked_for(served: object, tmp_path: Path):
    served.files["/all.zip"] = outer()
    archives = nested(f"{served.address}/all.zip", checksums=served.sums("/all.zip"))
    provider = Provider(dataset="x", folder=tmp_path / "data", archives=archives)
    match = (
        r"(?s)dataset 'x' isn't complete in '.*data':\n  'images' is missing, which is in "
        r"'images.tar.gz' or 'all.zip'; get that by --download, or by hand, from https://example"
    )
    with pytest.raises(FileNotFoundError, match=match):
        provider.provide()
    assert served.asked == []
    replace(provider, may_download=True).provide()
    assert (tmp_path / "data" / "images" / "a.jpg").read_bytes() == b"a"
    replace(provider, may_download=True).provide()
    assert len(served.asked) == 1


def test_what_needs_a_person_is_said(tmp_path: Path):
    provider = Provider(dataset="x", folder=tmp_path / "data", archives=nested(), may_download=True)
    with pytest.raises(FileNotFoundError, match=r"get that by hand only, from https://ex"):
        provider.provide()
    with pytest.raises(FileNotFoundError, match=r"ILSVRC2012_img_val.tar'; get that by hand only"):
        get_dataset("imagenet").at(tmp_path, download=True)
    assert all(archive.url is None for archive in ImageNet.archives)


def test_a_wrong_archive_is_not_unpacked(tmp_path: Path):
    (tmp_path / "all.zip").write_bytes(outer())
    archives = nested(checksums=("md5:" + "0" * 32,))
    with pytest.raises(ValueError, match=r"all.zip' has md5:\w+ at \d+ bytes; expected md5:000"):
        Provider(dataset="x", folder=tmp_path / "data", archives=archives).provide()
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".lock"]


def test_a_dataset_is_downloaded_and_read(
    served: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGB", (9, 9), (200, 0, 0)).save(content, "PNG")
    served.files["/dtd-r1.0.1.tar.gz"] = tar_gz("dtd/images/banded/a.jpg", content.getvalue())
    lists = {"train": [], "val": [], "test": [["banded/a.jpg", 0, "banded"]]}
    served.files["/split"] = json.dumps(lists).encode()
    packed, split = DescribableTextures.archives
    known = (
        replace(
            packed,
            url=f"{served.address}/dtd-r1.0.1.tar.gz",
            checksums=served.sums("/dtd-r1.0.1.tar.gz"),
        ),
        replace(split, url=f"{served.address}/split"),
    )
    monkeypatch.setattr(DescribableTextures, "archives", known)
    dataset = get_dataset("dtd").at(tmp_path / "new", download=True)
    assert dataset.classes == ("banded",)
    assert dataset.split("test")[0].image.getpixel((3, 3)) == (200, 0, 0)
    assert sorted(path.name for path in (tmp_path / "new" / "dtd").iterdir()) == [
        ".lock",
        "dtd-r1.0.1.tar.gz",
        "images",
        "split_zhou_DescribableTextures.json",
    ]


def test_of_many_that_start_together_one_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import threading

    from harness.datasets import archives as module

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images.tar.gz").write_bytes(INNER)
    archives, calls, unpack = nested()[:1], [], module.unpack

    def slow(*told: object) -> None:
        calls.append(told)
        threading.Event().wait(0.2)
        unpack(*told)

    monkeypatch.setattr(module, "unpack", slow)
    provider = Provider(dataset="x", folder=tmp_path / "data", archives=archives)
    threads = [threading.Thread(target=provider.provide) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    names = sorted(path.name for path in (tmp_path / "data").iterdir())
    assert names == [".lock", "images", "images.tar.gz"]


def test_what_is_whole_needs_no_right_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "data" / "images").mkdir(parents=True)
    monkeypatch.setattr(Path, "mkdir", None)
    Provider(dataset="x", folder=tmp_path / "data", archives=nested(), may_download=True).provide()
