"""Archives: downloaded, found, unpacked: whole, inside and in proportion, or not at all."""

import hashlib
import io
import json
import os
import shutil
import socket
import stat
import tarfile
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from harness.datasets import archives as module
from harness.datasets import get_dataset
from harness.datasets.archives import CHUNK, Archive, Provider, download, unpack
from harness.datasets.coop import DescribableTextures
from harness.datasets.imagenet import ImageNet

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


def pack(file: Path, *more: tuple[str, bytes]) -> Path:
    """Pack the files in the way that a name says."""
    if file.suffix == ".zip":
        return zip_of(file, *more)
    plain = "plain" in file.name or file.suffix == ".tar"
    return tar_of(file, lambda tar: [add(*one)(tar) for one in more], "w" if plain else "w:gz")


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
    file = pack(tmp_path / kind)
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
    inner = pack(tmp_path / "n01.tar").read_bytes()
    file = tmp_path / "x.tar"
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


@pytest.mark.parametrize("name", ["../out.txt", "top/../../out.txt", "/abs.txt", "C:/x", "a\\..\\x"])
@pytest.mark.parametrize("kind", ["x.tar", "x.tgz", "x.zip"])
def test_paths_that_leave(kind: str, name: str, tmp_path: Path):
    file = pack(tmp_path / kind, (name, b"out"))
    refused(file, rf"{kind}' holds '.*', which leaves the folder; it isn't unpacked")
    assert not (tmp_path / "out.txt").exists()


def test_links_to_files_of_it_become_copies(tmp_path: Path):
    def edit(tar: tarfile.TarFile) -> None:
        special("top/soft", tarfile.SYMTYPE, "a/one.txt")(tar)
        special("top/hard", tarfile.LNKTYPE, "top/a/one.txt")(tar)

    file = tar_of(tmp_path / "x.tgz", edit)
    unpack(of(file), file, tmp_path / "goal")
    assert content(tmp_path / "goal") == FILES | {"top/soft": b"one", "top/hard": b"one"}
    assert not any(path.is_symlink() for path in (tmp_path / "goal").rglob("*"))


def through_a_link(tar: tarfile.TarFile) -> None:
    special("top/here", tarfile.SYMTYPE, ".")(tar)
    special("top/here/up", tarfile.SYMTYPE, "..")(tar)


def long_name(tar: tarfile.TarFile) -> None:
    """Add a name of a gigabyte of zeros, which tarfile would read in one piece."""
    info = tarfile.TarInfo("top/long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**30
    tar.addfile(info)


OUT = "holds 'top/x': .*link.* (outside the dest|an absolute path)"
NO_FILE = "holds 'top/x', a link to 'top/{}', which is no file of it"
LINKS, DEVICES = ("SYMTYPE", "LNKTYPE"), ("FIFOTYPE", "CHRTYPE", "BLKTYPE")
BAD_MEMBERS = [
    *((special("top/x", getattr(tarfile, kind), end), OUT)
      for kind in LINKS for end in ("/etc/passwd", "../../../x", "../../..")),
    *((special("top/x", tarfile.SYMTYPE, end), NO_FILE.format(end)) for end in ("a", "nothing")),
    *((special("top/x", getattr(tarfile, kind)), "holds 'top/x': .*special f") for kind in DEVICES),
    (through_a_link, "a link to 'top', which is no file of it"),
    (long_name, "is truncated or damaged: .* a header of 1,073,741,824"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "match"), BAD_MEMBERS)
def test_members_that_are_refused(edit: Edit, match: str, tmp_path: Path):
    refused(tar_of(tmp_path / "x.tgz", edit), match)


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


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of zeros, of hard links, which count as what they copy, and of empty files."""

    def links(tar: tarfile.TarFile) -> None:
        for number in range(99):
            special(f"top/{number}", tarfile.LNKTYPE, "top/b.txt")(tar)

    monkeypatch.setattr(module, "ALLOWANCE", 2**20)
    match = r"unpacks to more than [\d,]+ bytes, .* at 'top/{}'; it isn't unpacked"
    for kind in ("x.zip", "x.tgz"):
        file = pack(tmp_path / kind, ("top/zeros", b"\0" * (4 * 2**20)))
        refused(file, match.format("zeros"))
        (tmp_path / "goal").rmdir()
    monkeypatch.setattr(module, "RATIO", 1)
    refused(tar_of(tmp_path / "y.tgz", links), match.format(r"\d+"))
    (tmp_path / "goal").rmdir()
    monkeypatch.setattr(module, "ALLOWANCE", 2**17)
    refused(pack(tmp_path / "z.tgz", *((f"top/{i}", b"") for i in range(999))), match.format(".*"))


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(("count", "length"), [(600, 2**15), (3, 2**18), (1, 5000)])
def test_headers_can_not_fill_the_memory(form: int, count: int, length: int, tmp_path: Path):
    """Long names shrink to nothing; all of them together would take more than 16 MiB."""
    file = tmp_path / "x.tgz"
    with tarfile.open(file, "w:gz", format=form) as tar:
        for number in range(count):
            tar.addfile(tarfile.TarInfo(f"other/{number}/" + "n" * length))
    assert file.stat().st_size < 2**20
    tracemalloc.start()
    refused(file, "(headers? .*names and the like|a header of|characters, too long for a path)", strip="top")
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_one_of_something_else(tmp_path: Path):
    file = tar_of(tmp_path / "x.tgz")
    refused(file, f"doesn't hold 'images', so it isn't the one of {PAGE}", holds="images")
    refused(file, "doesn't hold 'top', so", strip="other")


def test_no_room_and_a_stop_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    file, goal = tar_of(tmp_path / "x.tgz"), tmp_path / "goal"
    with pytest.raises(KeyboardInterrupt):
        unpack(of(file), file, goal, stop)
    assert not any(goal.iterdir())
    full = shutil._ntuple_diskusage(100, 90, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(OSError, match=r"x.tgz' needs [\d,]+ bytes, and '.*goal' has 10 free; make"):
        unpack(of(file), file, goal)
    assert not any(goal.iterdir())


def test_what_a_killed_run_left_goes(tmp_path: Path):
    file, goal = tar_of(tmp_path / "x.tgz"), tmp_path / "goal"
    (goal / ".x.tgz.unpacking" / "whole" / "top").mkdir(parents=True)
    (goal / ".x.tgz.unpacking" / "whole" / "top" / "stale").touch()
    unpack(of(file), file, goal)
    assert content(goal) == FILES
    assert [path.name for path in goal.iterdir()] == ["top"]


@pytest.mark.parametrize("kind", ["x.tar", "x.tgz", "x.zip"])
def test_truncated_ones(kind: str, tmp_path: Path):
    file = pack(tmp_path / kind)
    size = file.stat().st_size
    if kind == "x.tar":  # after the last member come blocks of zeros, which are no loss
        with tarfile.open(file) as tar:
            last = tar.getmembers()[-1]
        size = last.offset_data + last.size
    for end in (size - 1, int(size * 0.9), size // 2, size // 100):
        os.truncate(file, end)
        refused(file, rf"{kind}' is truncated or damaged: {end:,} bytes, .*get it again, by --down")
        (tmp_path / "goal").rmdir()
    if kind == "x.tar":
        os.truncate(pack(file), last.offset)
        refused(file, "is truncated or damaged: .*ends without an end marker")


@pytest.mark.parametrize("junk", [b"", b"<html>no such file</html>", b"PK\3\4", b"\x1f\x8b\x08"])
def test_what_is_no_archive(junk: bytes, tmp_path: Path):
    (tmp_path / "x.tgz").write_bytes(junk)
    refused(tmp_path / "x.tgz", f"x.tgz' is truncated or damaged: {len(junk)} bytes")


@pytest.mark.parametrize("kind", ["x.tgz", "x.zip"])
def test_a_flipped_bit_is_seen(kind: str, tmp_path: Path):
    content = bytearray(pack(tmp_path / kind).read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / kind).write_bytes(content)
    refused(tmp_path / kind, f"{kind}' is truncated or damaged")


@dataclass
class Served:
    """A server that can stop, forget ranges and send pages; ``asked`` has its requests."""

    files: dict[str, bytes] = field(default_factory=dict)
    stop_after: int | None = None
    ranges: bool = True
    kind: str = "application/octet-stream"
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    address: str = ""

    def sums(self, path: str) -> tuple[str, ...]:
        return (f"sha256:{hashlib.sha256(self.files[path]).hexdigest()}",)


class _Handler(BaseHTTPRequestHandler):
    served: Served

    def do_GET(self) -> None:
        served, options = self.served, self.headers.get("Range")
        served.asked.append((self.path, options))
        if to := served.redirects.get(self.path):
            self.send_response(302)
            self.send_header("Location", to)
            self.end_headers()
            return
        if (content := served.files.get(self.path)) is None:
            self.send_error(404)
            return
        start = int(options.removeprefix("bytes=").rstrip("-")) if options and served.ranges else 0
        if start >= len(content) > 0 and start:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", served.kind)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content) if served.stop_after is None else start + served.stop_after
        self.wfile.write(content[start:end])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    facts = Served()
    handler = type("Handler", (_Handler,), {"served": facts})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        facts.address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever).start()
        yield facts
        server.shutdown()


CONTENT = os.urandom(300_000)


def archive_of(served: Served, path: str = "/x.tgz", **facts: object) -> Archive:
    options = {"file": "x.tgz", "holds": "x", "page": PAGE, "url": f"{served.address}{path}"}
    sums = served.sums(path) if path in served.files else ()
    return Archive(**options | {"checksums": sums} | facts)


@pytest.mark.parametrize(("path", "ranges", "part"), [
    ("/x.tgz", True, b""), ("/there", True, b""), ("/x.tgz", False, b"old" * 999),
    ("/x.tgz", True, CONTENT), ("/x.tgz", True, CONTENT + b"of a longer one"),
])  # fmt: skip
def test_a_file_comes_whole(path, ranges, part, served: Served, tmp_path: Path):
    """By a redirect, from a server without ranges, beside a part that is whole or too long."""
    served.files[path], served.ranges = CONTENT, ranges
    served.redirects = {} if path == "/x.tgz" else {"/x.tgz": f"{served.address}{path}"}
    goal, seen = tmp_path / "in" / "x.tgz", []
    if part:
        goal.parent.mkdir()
        Path(f"{goal}.part").write_bytes(part)
    download(archive_of(served), goal, lambda *done: seen.append(done))
    assert goal.read_bytes() == CONTENT
    assert part == CONTENT or seen[-1] == (len(CONTENT), len(CONTENT))
    assert list(goal.parent.iterdir()) == [goal]


def test_a_broken_one_goes_on_where_it_stopped(served: Served, tmp_path: Path):
    served.files["/x.tgz"], served.stop_after = CONTENT, 2 * CHUNK
    goal = tmp_path / "x.tgz"
    for times in (1, 2):
        kept = f"{times * 2 * CHUNK:,}"
        match = rf"'x.tgz' from http.* failed: .*; {kept} bytes are kept; the same command"
        with pytest.raises(OSError, match=match):
            download(archive_of(served), goal)
        assert not goal.exists()
    served.stop_after = None
    download(archive_of(served), goal)
    assert goal.read_bytes() == CONTENT
    assert [options for _, options in served.asked] == [None, "bytes=131072-", "bytes=262144-"]


def test_another_sum_is_refused_and_nothing_is_kept(served: Served, tmp_path: Path):
    served.files["/x.tgz"] = CONTENT
    wanted = ("md5:" + "0" * 32, "sha256:" + "1" * 64)
    match = r"has md5:\w{32}, sha256:\w{64} at 300,000 bytes; expected md5:0+ or sha256:1+: it is"
    with pytest.raises(ValueError, match=match):
        download(archive_of(served, checksums=wanted), tmp_path / "x.tgz")
    assert not any(tmp_path.iterdir())
    own = served.sums("/x.tgz")
    download(archive_of(served, checksums=(wanted[1], *own)), tmp_path / "x.tgz")


def test_downloads_that_fail(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By a web page, a missing file, a closed port or a silent server; nothing is kept."""
    served.files["/page"], served.kind = b"<html>quota exceeded</html>", "text/html; charset=utf-8"
    monkeypatch.setattr(module, "TIMEOUT_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for url, error, match in (
            (f"{served.address}/page", ValueError, rf"answered with a web page instead of 'x.tgz'; "
             rf"open {PAGE} in a browser and put .*tgz'"),
            (f"{served.address}/gone", OSError, rf"'x.tgz' from http://127.* failed: it answered "
             rf"404 Not Found; .*or get it from {PAGE}"),
            ("http://127.0.0.1:9/x", OSError, r"from http://127.0.0.1:9/x failed: .*refused"),
            (f"http://127.0.0.1:{port}/x", OSError, r"failed: .*timed out"),
        ):  # fmt: skip
            with pytest.raises(error, match=match):
                download(archive_of(served, url=url), tmp_path / "x.tgz")
            assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["http://example.org/x", "ftp://example.org/x", "file:///etc/x"])
def test_only_https_is_trusted(url: str, served: Served, tmp_path: Path):
    with pytest.raises(ValueError, match=rf"address '{url}' isn't https"):
        download(archive_of(served, url=url), tmp_path / "x.tgz")
    served.redirects["/x.tgz"] = url
    with pytest.raises((ValueError, OSError), match=rf"'{url}' (isn't https|is not allowed)"):
        download(archive_of(served), tmp_path / "x.tgz")
    assert not any(tmp_path.iterdir())


def tar_gz(name: str, data: bytes) -> bytes:
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w:gz") as tar:
        add(name, data)(tar)
    return file.getvalue()


INNER = tar_gz("images/a.jpg", b"a")


def nested(url: str | None = None, **facts: object) -> tuple[Archive, ...]:
    outer = {"file": "all.zip", "holds": "images.tar.gz", "page": PAGE, "url": url, "strip": "all"}
    return (Archive(file="images.tar.gz", holds="images", page=PAGE), Archive(**outer | facts))


def outer() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("all/images.tar.gz", INNER)
    return content.getvalue()


@pytest.mark.parametrize("where", ["data/all.zip", "all.zip", "data/images.tar.gz"])
def test_archives_lie_in_the_folder_or_beside_it(where: str, tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / where).write_bytes(outer() if "all" in where else INNER)
    provider = Provider(dataset="x", folder=tmp_path / "data", archives=nested())
    provider.provide()
    assert (tmp_path / "data" / "images" / "a.jpg").read_bytes() == b"a"
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "all.zip").unlink(missing_ok=True)
    (tmp_path / "images.tar.gz").write_bytes(b"beside it, it may be of another dataset")
    with pytest.raises(FileNotFoundError, match="'images' is missing, which is in"):
        provider.provide()


def test_nothing_is_downloaded_unless_asked_for(served: Served, tmp_path: Path):
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


def test_a_wrong_archive_is_not_unpack(tmp_path: Path):
    (tmp_path / "all.zip").write_bytes(outer())
    archives = nested(checksums=("md5:" + "0" * 32,))
    with pytest.raises(ValueError, match=r"all.zip' has md5:\w+ at \d+ bytes; expected md5:000"):
        Provider(dataset="x", folder=tmp_path / "data", archives=archives).provide()
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".lock"]


def test_a_dataset_is_downloaded_and_read(served: Served, tmp_path: Path, monkeypatch):
    image = io.BytesIO()
    Image.new("RGB", (9, 9), (200, 0, 0)).save(image, "PNG")
    served.files["/dtd"] = tar_gz("dtd/images/banded/a.jpg", image.getvalue())
    lists = {"train": [], "val": [], "test": [["banded/a.jpg", 0, "banded"]]}
    served.files["/split"] = json.dumps(lists).encode()
    packed, split = DescribableTextures.archives
    url, sums = f"{served.address}/dtd", served.sums("/dtd")
    known = (replace(packed, url=url, checksums=sums), replace(split, url=f"{url[:-3]}split"))
    monkeypatch.setattr(DescribableTextures, "archives", known)
    dataset = get_dataset("dtd").at(tmp_path / "new", download=True)
    assert dataset.classes == ("banded",)
    assert dataset.split("test")[0].image.getpixel((3, 3)) == (200, 0, 0)
    names = {path.name for path in (tmp_path / "new" / "dtd").iterdir()}
    assert names == {".lock", packed.file, "images", split.file}


def test_of_many_that_start_together_one_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images.tar.gz").write_bytes(INNER)
    archives, calls, unpack = nested()[:1], [], module.unpack

    def slow(*args: object) -> None:
        calls.append(args)
        threading.Event().wait(0.2)
        unpack(*args)

    monkeypatch.setattr(module, "unpack", slow)
    provider = Provider(dataset="x", folder=tmp_path / "data", archives=archives)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: provider.provide(), range(4)))
    assert len(calls) == 1
    names = sorted(path.name for path in (tmp_path / "data").iterdir())
    assert names == [".lock", "images", "images.tar.gz"]


def test_what_is_whole_needs_no_right_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "data" / "images").mkdir(parents=True)
    monkeypatch.setattr(Path, "mkdir", None)
    Provider(dataset="x", folder=tmp_path / "data", archives=nested(), may_download=True).provide()
