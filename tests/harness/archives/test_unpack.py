"""Unpacking what nobody vouches for: whole, inside, in proportion, or not at all."""

import io
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.datasets import archives as module
from harness.datasets.archives import Archive, unpack

PAGE = "https://example.org/data"
FILES = {"top/a/one.txt": b"one", "top/a/two.txt": b"two" * 9000, "top/b.txt": os.urandom(70_000)}
Edit = Callable[[tarfile.TarFile], None]


def of(file: Path, **facts: object) -> Archive:
    return Archive(**{"file": file.name, "holds": "top", "page": PAGE} | facts)


def add(name: str, data: bytes) -> Edit:
    def edit(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))

    return edit


def tar_of(path: Path, edit: Edit | None = None, kind: str = "w:gz") -> Path:
    with tarfile.open(path, kind) as tar:
        for name, data in FILES.items():
            add(name, data)(tar)
        if edit is not None:
            edit(tar)
    return path


def zip_of(path: Path, *more: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (*FILES.items(), *more):
            archive.writestr(name, data)
    return path


def special(name: str, kind: bytes, link: str = "") -> Edit:
    def edit(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        tar.addfile(info)

    return edit


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def refused(file: Path, match: str, **facts: object) -> None:
    """Unpack, be refused, and see that nothing came of it."""
    goal = file.parent / "goal"
    before = content(file.parent)
    with pytest.raises(ValueError, match=match):
        unpack(of(file, **facts), file, goal)
    assert content(file.parent) == before
    assert not any(goal.iterdir())


@pytest.mark.parametrize("kind", ["x.tar.gz", "x.tgz", "x.tar", "x.zip", "plain.tar.gz"])
def test_each_kind_gives_its_files(kind: str, tmp_path: Path):
    file = tmp_path / kind
    if kind.endswith("zip"):
        zip_of(file)
    else:
        tar_of(file, kind="w" if "plain" in kind or kind.endswith(".tar") else "w:gz")
    seen: list[int] = []
    unpack(of(file), file, tmp_path / "goal", seen.append)
    assert content(tmp_path / "goal") == FILES
    assert max(seen) <= file.stat().st_size
    assert len(seen) > 1


def test_a_folder_in_it_is_taken_and_put_where_it_belongs(tmp_path: Path):
    file = tar_of(tmp_path / "x.tgz")
    unpack(of(file, strip="top/a", holds="in/side", into="in/side"), file, tmp_path / "goal")
    assert sorted(content(tmp_path / "goal")) == ["in/side/one.txt", "in/side/two.txt"]


def test_inner_tars_become_folders(tmp_path: Path):
    file = tmp_path / "x.tar"
    inner = tar_of(tmp_path / "n01.tar", kind="w").read_bytes()
    with tarfile.open(file, "w") as tar:
        add("n01.tar", inner)(tar)
    unpack(of(file, holds="train", into="train", nested=True), file, tmp_path / "goal")
    assert content(tmp_path / "goal") == {f"train/n01/{name}": d for name, d in FILES.items()}
    file.write_bytes(file.read_bytes().replace(b"ustar", b"ussar"))
    shutil.rmtree(tmp_path / "goal")
    refused(file, r"x.tar' is truncated or damaged", nested=True)


def test_what_is_there_stays_and_what_is_missing_comes(tmp_path: Path):
    file, goal = tar_of(tmp_path / "x.tgz"), tmp_path / "goal"
    (goal / "top").mkdir(parents=True)
    (goal / "top" / "b.txt").write_text("mine")
    (goal / "other.txt").write_text("mine, too")
    unpack(of(file, holds="top/a"), file, goal)
    assert content(goal) == FILES | {"top/b.txt": b"mine", "other.txt": b"mine, too"}


def test_what_is_held_is_placed_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file, goal = tar_of(tmp_path / "x.tgz"), tmp_path / "goal"
    placed, rename = [], Path.rename

    def note(self: Path, to: Path) -> Path:
        placed.append(to.name)
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", note)
    unpack(of(file, strip="top", holds="a"), file, goal)
    assert placed[1:] == ["b.txt", "a"]  # after the folder in the archive that is taken


@pytest.mark.parametrize(
    "name", ["../out.txt", "top/../../out.txt", "/abs.txt", "C:/x", "a\\..\\x"]
)
@pytest.mark.parametrize("kind", ["x.tar", "x.tgz", "x.zip"])
def test_paths_that_leave(kind: str, name: str, tmp_path: Path):
    file = tmp_path / kind
    if kind == "x.zip":
        zip_of(file, (name, b"out"))
    else:
        tar_of(file, special(name, tarfile.REGTYPE), "w" if kind == "x.tar" else "w:gz")
    refused(file, rf"{kind}' holds '.*', which leaves the folder; it isn't unpacked")
    assert not (tmp_path / "out.txt").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("end", ["/etc/passwd", "../../../x", "../../.."])
def test_links_out_of_the_folder(kind: bytes, end: str, tmp_path: Path):
    file = tar_of(tmp_path / "x.tgz", special("top/a/link", kind, end))
    refused(file, "holds 'top/a/link': .*link.* (outside the dest|an absolute path)")


def test_links_to_files_of_it_become_copies(tmp_path: Path):
    def edit(tar: tarfile.TarFile) -> None:
        special("top/soft", tarfile.SYMTYPE, "a/one.txt")(tar)
        special("top/hard", tarfile.LNKTYPE, "top/a/one.txt")(tar)

    file = tar_of(tmp_path / "x.tgz", edit)
    unpack(of(file), file, tmp_path / "goal")
    assert content(tmp_path / "goal") == FILES | {"top/soft": b"one", "top/hard": b"one"}
    assert not any(path.is_symlink() for path in (tmp_path / "goal").rglob("*"))


@pytest.mark.parametrize("end", ["a", "nothing"])
def test_links_to_no_file_of_it(end: str, tmp_path: Path):
    file = tar_of(tmp_path / "x.tgz", special("top/link", tarfile.SYMTYPE, end))
    refused(file, f"holds 'top/link', a link to 'top/{end}', which is no file of it")


def test_nothing_is_written_through_a_link(tmp_path: Path):
    def edit(tar: tarfile.TarFile) -> None:
        special("top/here", tarfile.SYMTYPE, ".")(tar)
        special("top/here/up", tarfile.SYMTYPE, "..")(tar)

    refused(tar_of(tmp_path / "x.tgz", edit), "a link to 'top', which is no file of it")


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_devices(kind: bytes, tmp_path: Path):
    refused(tar_of(tmp_path / "x.tgz", special("top/dev", kind)), "holds 'top/dev': .*special file")


def test_links_and_encrypted_members_of_zips(tmp_path: Path):
    link = zipfile.ZipInfo("top/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    refused(zip_of(tmp_path / "x.zip", (link, b"/etc/passwd")), "'top/link', a link or device")
    shutil.rmtree(tmp_path / "goal")
    file = zip_of(tmp_path / "y.zip")
    packed = bytearray(file.read_bytes())
    packed[packed.index(b"PK\1\2") + 8] |= 1
    file.write_bytes(packed)
    refused(file, "y.zip' holds 'top/a/one.txt', encrypted")


@pytest.mark.parametrize("kind", ["x.zip", "x.tgz"])
def test_bombs(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "ALLOWANCE", 2**20)
    file, zeros = tmp_path / kind, b"\0" * (4 * 2**20)
    if kind == "x.zip":
        zip_of(file, ("top/zeros", zeros))
    else:
        tar_of(file, add("top/zeros", zeros))
    refused(file, r"unpacks to more than [\d,]+ bytes, .* at 'top/zeros'; it isn't unpacked")


def test_bombs_of_empty_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "RATIO", 1)
    monkeypatch.setattr(module, "ALLOWANCE", 2**17)

    def edit(tar: tarfile.TarFile) -> None:
        for number in range(999):
            add(f"top/{number}", b"")(tar)

    refused(tar_of(tmp_path / "x.tgz", edit), r"unpacks to more than [\d,]+ bytes")


def test_one_of_something_else(tmp_path: Path):
    file = tar_of(tmp_path / "x.tgz")
    refused(file, f"doesn't hold 'images', so it isn't the one of {PAGE}", holds="images")
    refused(file, "doesn't hold 'top', so", strip="other")


def test_no_room_is_said_before_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tar_of(tmp_path / "x.tgz")
    full = shutil._ntuple_diskusage(100, 90, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(OSError, match=r"x.tgz' needs [\d,]+ bytes, and '.*goal' has 10 free; make"):
        unpack(of(file), file, tmp_path / "goal")
    assert not any((tmp_path / "goal").iterdir())


def test_what_a_killed_run_left_goes(tmp_path: Path):
    file, goal = tar_of(tmp_path / "x.tgz"), tmp_path / "goal"
    (goal / ".x.tgz.unpacking" / "whole" / "top").mkdir(parents=True)
    (goal / ".x.tgz.unpacking" / "whole" / "top" / "stale").touch()
    unpack(of(file), file, goal)
    assert content(goal) == FILES
    assert [path.name for path in goal.iterdir()] == ["top"]


def test_hard_links_count_as_what_they_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "RATIO", 1)
    monkeypatch.setattr(module, "ALLOWANCE", 2**20)

    def edit(tar: tarfile.TarFile) -> None:
        for number in range(99):
            special(f"top/{number}", tarfile.LNKTYPE, "top/b.txt")(tar)

    refused(tar_of(tmp_path / "x.tgz", edit), r"unpacks to more than [\d,]+ bytes, .* at 'top/\d+'")


def test_headers_that_fill_the_memory(tmp_path: Path):
    """A name of a gigabyte of zeros, which tarfile would read in one piece."""

    def edit(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo("top/long")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**30
        tar.addfile(info)

    refused(
        tar_of(tmp_path / "x.tgz", edit), "is truncated or damaged: .* a header of 1,073,741,824"
    )


def test_a_stop_leaves_nothing(tmp_path: Path):
    file = tar_of(tmp_path / "x.tgz")

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(of(file), file, tmp_path / "goal", stop)
    assert not any((tmp_path / "goal").iterdir())


NOISE = os.urandom(70_000)
KINDS = ("x.tar", "x.tgz", "x.zip")


def packed(file: Path) -> Path:
    """Make an archive of three files."""
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in "abc":
                archive.writestr(f"top/{name}", NOISE)
    else:
        with tarfile.open(file, "w:gz" if file.suffix == ".tgz" else "w") as tar:
            for name in "abc":
                info = tarfile.TarInfo(f"top/{name}")
                info.size = len(NOISE)
                tar.addfile(info, io.BytesIO(NOISE))
    return file


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_truncated_ones(kind: str, share: float, tmp_path: Path):
    file = packed(tmp_path / kind)
    size = int(file.stat().st_size * share)
    os.truncate(file, size)
    refused(
        file, rf"{kind}' is truncated or damaged: {size:,} bytes, .*get it again, by --download"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_one_byte_too_few(kind: str, tmp_path: Path):
    file = packed(tmp_path / kind)
    size = file.stat().st_size
    if kind == "x.tar":  # after the last member come blocks of zeros, which are no loss
        with tarfile.open(file) as tar:
            last = tar.getmembers()[-1]
        size = last.offset_data + last.size
    os.truncate(file, size - 1)
    refused(file, rf"{kind}' is truncated or damaged")


def test_a_tar_that_ends_between_two_members_is_truncated(tmp_path: Path):
    file = packed(tmp_path / "x.tar")
    with tarfile.open(file) as tar:
        last = tar.getmembers()[-1]
    os.truncate(file, last.offset)
    refused(file, "is truncated or damaged: .*ends without an end marker")


@pytest.mark.parametrize("junk", [b"", b"<html>no such file</html>", b"PK\3\4", b"\x1f\x8b\x08"])
def test_what_is_no_archive(junk: bytes, tmp_path: Path):
    file = tmp_path / "x.tgz"
    file.write_bytes(junk)
    refused(file, f"x.tgz' is truncated or damaged: {len(junk)} bytes")


@pytest.mark.parametrize("kind", ["x.tgz", "x.zip"])
def test_a_flipped_bit_is_seen(kind: str, tmp_path: Path):
    file = packed(tmp_path / kind)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    refused(file, f"{kind}' is truncated or damaged")
