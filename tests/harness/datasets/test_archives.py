"""Archives: downloaded, found, unpacked: whole, inside and in proportion, or not at all."""

import hashlib
import os
import shutil
import socket
import stat
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from packing import contents, header, tarred, zipped

from harness.base.terminal import Progress
from harness.datasets import archives as module
from harness.datasets.archives import CHUNK, Archive, fetch, members_of, provide, unpack

PAGE = "https://example.org/data"
FILES = {"top/a/one.txt": b"one", "top/a/two.txt": b"two" * 9000, "top/b.txt": os.urandom(70_000)}
CONTENT = os.urandom(300_000)
INNER = tarred([("images/a.jpg", b"a")], "w:gz")
OUTER = zipped([("all/images.tar.gz", INNER)])


def of(file: Path, **facts: Any) -> Archive:
    return Archive(**{"file": file.name, "holds": "top", "page": PAGE} | facts)


def pack(file: Path, *more: Any) -> Path:
    members: list[Any] = [*FILES.items(), *more]
    file.write_bytes(zipped(members) if file.suffix == ".zip" else tarred(members, "w:gz" if "z" in file.name else "w"))
    return file


def refused(file: Path, match: str, **facts: Any) -> None:
    before = contents(file.parent)
    with pytest.raises(ValueError, match=match):
        unpack(of(file, **facts), file, file.parent / "goal")
    assert contents(file.parent) == before
    assert not any((file.parent / "goal").glob("*"))


def test_members_that_leave_or_are_devices(tmp_path: Path):
    links = (tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "../../x"), (tarfile.CHRTYPE, "")
    for member in (("../out", b""), ("top/../../out", b""), *(header("top/x", *link) for link in links)):
        refused(pack(tmp_path / "x.tgz", member), "x.tgz'.*(top/x|out|/etc/passwd)")


def test_zips_stay_inside_and_hold_no_links(tmp_path: Path):
    link = zipfile.ZipInfo("top/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    file = pack(tmp_path / "x.zip", ("../../out.txt", b"out"), (link, b"/etc/passwd"))
    (tmp_path / "in" / "goal").mkdir(parents=True)
    unpack(of(file), file, tmp_path / "in" / "goal")
    assert contents(tmp_path / "in" / "goal").keys() <= {*FILES, "top/link", "out.txt"}
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
    monkeypatch.setattr(module, "RATIO", 1)
    refused(pack(tmp_path / "z.tgz", *((f"top/{i}", b"") for i in range(999))), "by far more than its")


@pytest.mark.parametrize("kind", ["x.tgz", "x.zip"])
def test_damaged_ones(kind: str, tmp_path: Path):
    whole = pack(tmp_path / kind).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    for damaged in (whole[: len(whole) // 2], b"", flipped, whole[:-1]):
        (tmp_path / kind).write_bytes(damaged)
        refused(tmp_path / kind, f"{kind}' is truncated, damaged.* {len(damaged):,} bytes")


def test_a_tar_whose_sizes_lead_back_or_are_beyond_numbers(tmp_path: Path):
    for size in (-512, 2**70):
        info = header("a.png")
        info.size = size
        (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(20 * 512))
        with (tmp_path / "x.tar").open("rb") as file, pytest.raises(ValueError, match=f"'x'.*{size:,} bytes"):
            list(islice(members_of(file, "tar 'x'"), 99))
        refused(tmp_path / "x.tar", "by far more than its bytes, at 'a.png'")


def test_another_archive_a_stop_and_a_pipe_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file, goal = pack(tmp_path / "x.tgz"), tmp_path / "goal"
    goal.mkdir()
    refused(file, f"'images'.*{PAGE}", holds="images")
    refused(file, "'top'", strip="other")
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "data_filter", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            unpack(of(file), file, goal)
    assert not any(goal.iterdir())
    os.mkfifo(tmp_path / "y.tgz")
    with pytest.raises(ValueError, match=r"/y.tgz' is a pipe"):
        provide("x", tmp_path, [Archive("y.tgz", holds="images")], download=False, progress=Progress())


@dataclass
class Served:
    """A server that can stop and send pages."""

    files: dict[str, bytes] = field(default_factory=dict)
    stop_after: int | None = None
    kind: str = "application/octet-stream"
    asked: list[str] = field(default_factory=list)
    address: str = ""

    def archive(self, path: str = "/x.tgz", **facts: Any) -> Archive:
        sums = (f"sha256:{hashlib.sha256(self.files[path]).hexdigest()}",) if path in self.files else ()
        return Archive(**{"file": "x.tgz", "page": PAGE, "url": f"{self.address}{path}", "sums": sums} | facts)


class Handler(BaseHTTPRequestHandler):
    served: Served

    def do_GET(self) -> None:
        self.served.asked.append(self.path)
        if (content := self.served.files.get(self.path)) is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", self.served.kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.served.stop_after])
        self.close_connection = True


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    facts = Served()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"served": facts})) as server:
        facts.address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield facts
        server.shutdown()


def test_a_file_comes_whole_or_not_at_all(served: Served, tmp_path: Path):
    served.files["/x.tgz"], served.stop_after = CONTENT, 2 * CHUNK
    with pytest.raises(OSError, match=r"'x.tgz' from http.* failed: .*try again"):
        fetch(served.archive(), tmp_path / "x.tgz", Mock())
    assert not any(tmp_path.iterdir())
    served.stop_after = None
    fetch(served.archive(), tmp_path / "x.tgz", Mock())
    assert contents(tmp_path) == {"x.tgz": CONTENT}


def test_downloads_that_fail(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By another sum, a web page, a missing file or a silent server; nothing is kept."""
    served.files = {"/x.tgz": CONTENT, "/page": b"<html>quota exceeded</html>"}
    monkeypatch.setattr(module, "TIMEOUT_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for archive, kind, match in (
            (served.archive(sums=(f"md5:{'0' * 32}",)), Served.kind, r"md5:\w{32}, expected md5:0+"),
            (served.archive("/page"), "text/html; charset=utf-8", f"web page .*'x.tgz'.*{PAGE}"),
            (served.archive("/gone"), Served.kind, f"'x.tgz' .*404.*{PAGE}"),
            (served.archive(url=f"http://127.0.0.1:{silent.getsockname()[1]}/x"), Served.kind, "timed out"),
        ):
            served.kind = kind
            with pytest.raises((ValueError, OSError), match=match):
                fetch(archive, tmp_path / "x.tgz", Mock())
            assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("file", ["all.zip", "images.tar.gz"])
def test_an_archive_may_lie_in_another_and_comes_only_if_asked_for(
    file: str, served: Served, tmp_path: Path, monkeypatch
):
    served.files["/all.zip"] = OUTER
    outer = served.archive("/all.zip", file="all.zip", holds="images.tar.gz", strip="all")
    archives = (outer, Archive("images.tar.gz", holds="images", page=PAGE))
    call = partial(provide, "x", tmp_path / "data", archives, progress=Progress())
    with pytest.raises(FileNotFoundError, match=r"(?s)'all.zip' by --download.*'images.tar.gz' by hand"):
        call(download=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / file).write_bytes(OUTER if file == "all.zip" else INNER)
    call(download=False)
    assert (tmp_path / "data" / "images" / "a.jpg").read_bytes() == b"a"
    assert served.asked == []
    shutil.rmtree(tmp_path / "data")
    call(download=True)
    assert (tmp_path / "data" / "images" / "a.jpg").read_bytes() == b"a"
    monkeypatch.setattr(Path, "mkdir", None)  # what is whole needs no right to write
    call(download=True)
    assert len(served.asked) == 1


def test_of_many_that_start_together_one_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "images.tar.gz").write_bytes(INNER)
    calls = []

    def slow(*args: object) -> None:
        calls.append(args)
        time.sleep(0.2)
        unpack(*args)

    monkeypatch.setattr(module, "unpack", slow)
    archives = (Archive("images.tar.gz", holds="images"),)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: provide("x", tmp_path, archives, download=False, progress=Progress()), range(4)))
    assert len(calls) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "images.tar.gz"]
