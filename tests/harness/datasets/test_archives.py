"""Archives: downloaded, found, unpacked: whole, inside and in proportion, or not at all."""

import hashlib
import io
import os
import shutil
import socket
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from harness.datasets import archives as module
from harness.datasets.archives import CHUNK, Archive, Provider, download, unpack

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


def special(name: str, kind: bytes, link: str = "") -> Edit:
    def edit(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        tar.addfile(info)

    return edit


def pack(file: Path, *more: tuple[str | zipfile.ZipInfo, bytes] | Edit) -> Path:
    """Pack the files in the way that a name says."""
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in (*FILES.items(), *more):
                archive.writestr(name, data)
        return file
    plain = "plain" in file.name or file.suffix == ".tar"
    with tarfile.open(file, "w" if plain else "w:gz") as tar:
        for one in (*FILES.items(), *more):
            (one if callable(one) else add(*one))(tar)
    return file


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


@pytest.mark.parametrize("kind", ["x.tgz", "x.zip", "plain.tar.gz"])
def test_each_kind_gives_its_files(kind: str, tmp_path: Path):
    file, seen = pack(tmp_path / kind), list[int]()
    unpack(of(file), file, tmp_path / "goal", seen.append)
    assert content(tmp_path / "goal") == FILES
    assert len(seen) > 1
    assert max(seen) <= file.stat().st_size
    unpack(of(file, strip="top/a", holds="in/side", into="in/side"), file, tmp_path / "goal")
    assert sorted(content(tmp_path / "goal" / "in")) == ["side/one.txt", "side/two.txt"]


SYM, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.mark.parametrize("member", [
    add("../out.txt", b"out"), add("top/../../out.txt", b"out"),
    *(special("top/x", kind, end) for kind in (SYM, HARD) for end in ("/etc/passwd", "../../../x")),
    *(special("top/x", kind) for kind in (tarfile.FIFOTYPE, tarfile.CHRTYPE)),
])  # fmt: skip
def test_members_that_leave_or_are_devices(member: Edit, tmp_path: Path):
    refused(pack(tmp_path / "x.tgz", member), "x.tgz'.*(top/x|out.txt|/etc/passwd)")


def test_zips_stay_inside_and_hold_no_links(tmp_path: Path):
    link = zipfile.ZipInfo("top/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    file = pack(tmp_path / "x.zip", ("../../out.txt", b"out"), (link, b"/etc/passwd"))
    unpack(of(file), file, tmp_path / "in" / "goal")
    assert content(tmp_path / "in" / "goal").keys() <= {*FILES, "top/link", "out.txt"}
    assert not (tmp_path / "in" / "goal" / "top" / "link").is_symlink()
    assert not list(tmp_path.glob("*out.txt"))
    packed = bytearray(pack(tmp_path / "y.zip").read_bytes())
    packed[packed.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "y.zip").write_bytes(packed)
    refused(tmp_path / "y.zip", "y.zip'.*encrypted")


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "ALLOWANCE", 2**17)
    for kind in ("x.zip", "x.tgz"):
        refused(pack(tmp_path / kind, ("top/zeros", b"\0" * 2**22)), "by far more than its bytes, at 'top/zeros'")
        (tmp_path / "goal").rmdir()
    monkeypatch.setattr(module, "RATIO", 1)
    refused(pack(tmp_path / "z.tgz", *((f"top/{i}", b"") for i in range(999))), "by far more than its")


@pytest.mark.parametrize("kind", ["x.tgz", "x.zip"])
def test_damaged_ones(kind: str, tmp_path: Path):
    whole = pack(tmp_path / kind).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    for damaged in (whole[: len(whole) // 2], b"", b"<html>", flipped, whole[:-1]):
        (tmp_path / kind).write_bytes(damaged)
        refused(tmp_path / kind, f"{kind}' is truncated, damaged.* {len(damaged):,} bytes")
        (tmp_path / "goal").rmdir()


def test_another_archive_no_room_and_a_stop_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    file, goal = pack(tmp_path / "x.tgz"), tmp_path / "goal"
    refused(file, f"'images'.*{PAGE}", holds="images")
    refused(file, "'top'", strip="other")
    with pytest.raises(KeyboardInterrupt):
        unpack(of(file), file, goal, stop)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(OSError, match=r"x.tgz' needs [\d,]+ bytes, and '.*goal' has 10 free"):
        unpack(of(file), file, goal)
    assert not any(goal.iterdir())


@dataclass
class Served:
    """A server that can stop, forget ranges and send pages; ``asked`` has the ranges of its requests."""

    files: dict[str, bytes] = field(default_factory=dict)
    stop_after: int | None = None
    ranges: bool = True
    kind: str = "application/octet-stream"
    asked: list[str | None] = field(default_factory=list)
    address: str = ""

    def archive(self, path: str = "/x.tgz", **facts: object) -> Archive:
        sums = (f"sha256:{hashlib.sha256(self.files[path]).hexdigest()}",) if path in self.files else ()
        options = {"file": "x.tgz", "holds": "x", "page": PAGE, "url": f"{self.address}{path}", "checksums": sums}
        return Archive(**options | facts)


class Handler(BaseHTTPRequestHandler):
    served: Served

    def do_GET(self) -> None:
        served, options = self.served, self.headers.get("Range")
        served.asked.append(options)
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
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"served": facts})) as server:
        facts.address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever).start()
        yield facts
        server.shutdown()


CONTENT = os.urandom(300_000)


@pytest.mark.parametrize(("ranges", "part"), [
    (True, b""), (False, b"old" * 999), (True, CONTENT), (True, CONTENT + b"of a longer one"),
])  # fmt: skip
def test_a_file_comes_whole(ranges, part, served: Served, tmp_path: Path):
    """From a server with or without ranges, beside a part that is whole or too long."""
    served.files["/x.tgz"], served.ranges = CONTENT, ranges
    goal, seen = tmp_path / "in" / "x.tgz", []
    if part:
        goal.parent.mkdir()
        Path(f"{goal}.part").write_bytes(part)
    download(served.archive(), goal, lambda *done: seen.append(done))
    assert goal.read_bytes() == CONTENT
    assert part == CONTENT or seen[-1] == (len(CONTENT), len(CONTENT))
    assert list(goal.parent.iterdir()) == [goal]


def test_a_broken_one_goes_on_where_it_stopped(served: Served, tmp_path: Path):
    served.files["/x.tgz"], served.stop_after = CONTENT, 2 * CHUNK
    goal = tmp_path / "x.tgz"
    for times in (1, 2):
        with pytest.raises(OSError, match=f"'x.tgz' from http.* failed: .*{times * 2 * CHUNK:,} bytes are kept"):
            download(served.archive(), goal)
        assert not goal.exists()
    served.stop_after = None
    download(served.archive(), goal)
    assert goal.read_bytes() == CONTENT
    assert served.asked == [None, "bytes=131072-", "bytes=262144-"]


def test_downloads_that_fail(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By another sum, a web page, a missing file or a silent server; nothing is kept."""
    served.files = {"/x.tgz": CONTENT, "/page": b"<html>quota exceeded</html>"}
    monkeypatch.setattr(module, "TIMEOUT_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for archive, kind, error, match in (
            (served.archive(checksums=(f"md5:{'0' * 32}",)), Served.kind, ValueError, r"md5:\w{32} .*expected md5:0+"),
            (served.archive("/page"), "text/html; charset=utf-8", ValueError, f"web page .*'x.tgz'.*{PAGE}"),
            (served.archive("/gone"), Served.kind, OSError, f"'x.tgz' .*404.*{PAGE}"),
            (served.archive(url=f"http://127.0.0.1:{silent.getsockname()[1]}/x"), Served.kind, OSError, "timed out"),
        ):
            served.kind = kind
            with pytest.raises(error, match=match):
                download(archive, tmp_path / "x.tgz")
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
    with pytest.raises(FileNotFoundError, match=r"'images' is missing.*'all.zip'.* by hand only.*example"):
        provider.provide()


def test_nothing_is_downloaded_unless_asked_for(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    served.files["/all.zip"] = outer()
    url = served.archive("/all.zip")
    provider = Provider(dataset="x", folder=tmp_path / "data", archives=nested(url.url, checksums=url.checksums))
    with pytest.raises(
        FileNotFoundError, match=r"(?s)'x' .*data'.*'images' .*'images.tar.gz' or 'all.zip'.*--download"
    ):
        provider.provide()
    assert served.asked == []
    replace(provider, may_download=True).provide()
    assert (tmp_path / "data" / "images" / "a.jpg").read_bytes() == b"a"
    monkeypatch.setattr(Path, "mkdir", None)  # what is whole needs no right to write
    replace(provider, may_download=True).provide()
    assert len(served.asked) == 1


def test_of_many_that_start_together_one_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images.tar.gz").write_bytes(INNER)
    calls, unpack = [], module.unpack

    def slow(*args: object) -> None:
        calls.append(args)
        threading.Event().wait(0.2)
        unpack(*args)

    monkeypatch.setattr(module, "unpack", slow)
    provider = Provider(dataset="x", folder=tmp_path / "data", archives=nested()[:1])
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: provider.provide(), range(4)))
    assert len(calls) == 1
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".lock", "images", "images.tar.gz"]
