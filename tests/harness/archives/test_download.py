"""Downloads: whole with the right sum, gone on with after a stop, or refused by name."""

import os
import shutil
from pathlib import Path

import pytest

from harness.datasets import archives as module
from harness.datasets.archives import CHUNK, Archive, download

PAGE = "https://example.org/data"
CONTENT = os.urandom(300_000)


def of(served: object, path: str = "/x.tgz", **facts: object) -> Archive:
    told = {"file": "x.tgz", "holds": "x", "page": PAGE, "url": f"{served.address}{path}"}
    sums = served.sums(path) if path in served.files else ()
    return Archive(**told | {"checksums": sums} | facts)


def test_a_file_comes_whole(served: object, tmp_path: Path):
    served.files["/x.tgz"] = CONTENT
    seen: list[tuple[int, int]] = []
    download(of(served), tmp_path / "in" / "x.tgz", lambda *done: seen.append(done))
    assert (tmp_path / "in" / "x.tgz").read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["x.tgz"]


def test_a_broken_one_goes_on_where_it_stopped(served: object, tmp_path: Path):
    served.files["/x.tgz"], served.stop_after = CONTENT, 2 * CHUNK
    goal = tmp_path / "x.tgz"
    for times in (1, 2):
        kept = f"{times * 2 * CHUNK:,}"
        match = rf"'x.tgz' from http.* failed: .*; {kept} bytes are kept; the same command"
        with pytest.raises(OSError, match=match):
            download(of(served), goal)
        assert not goal.exists()
    served.stop_after = None
    download(of(served), goal)
    assert goal.read_bytes() == CONTENT
    assert [told for _, told in served.asked] == [None, "bytes=131072-", "bytes=262144-"]


def test_a_part_that_is_whole_already_needs_no_more(served: object, tmp_path: Path):
    served.files["/x.tgz"] = CONTENT
    (tmp_path / "x.tgz.part").write_bytes(CONTENT)
    download(of(served), tmp_path / "x.tgz")
    assert (tmp_path / "x.tgz").read_bytes() == CONTENT
    (tmp_path / "x.tgz.part").write_bytes(CONTENT + b"of a longer one")
    download(of(served), tmp_path / "x.tgz")
    assert (tmp_path / "x.tgz").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_anew(served: object, tmp_path: Path):
    served.files["/x.tgz"], served.ranges = CONTENT, False
    (tmp_path / "x.tgz.part").write_bytes(b"old" * 999)
    download(of(served), tmp_path / "x.tgz")
    assert (tmp_path / "x.tgz").read_bytes() == CONTENT


def test_another_sum_is_refused_and_nothing_is_kept(served: object, tmp_path: Path):
    served.files["/x.tgz"] = CONTENT
    wanted = ("md5:" + "0" * 32, "sha256:" + "1" * 64)
    match = r"has md5:\w{32}, sha256:\w{64} at 300,000 bytes; expected md5:0+ or sha256:1+: it is"
    with pytest.raises(ValueError, match=match):
        download(of(served, checksums=wanted), tmp_path / "x.tgz")
    assert not any(tmp_path.iterdir())
    own = served.sums("/x.tgz")
    download(of(served, checksums=(wanted[1], *own)), tmp_path / "x.tgz")


def test_a_page_instead_of_the_file_is_refused(served: object, tmp_path: Path):
    served.files["/x.tgz"], served.kind = b"<html>quota exceeded</html>", "text/html; charset=utf-8"
    match = rf"answered with a web page instead of 'x.tgz'; open {PAGE} in a browser and put .*tgz'"
    with pytest.raises(ValueError, match=match):
        download(of(served), tmp_path / "x.tgz")
    assert not any(tmp_path.iterdir())


def test_what_a_server_says_is_passed_on(served: object, tmp_path: Path):
    match = rf"'x.tgz' from http://127.* failed: it answered 404 Not Found; .*or get it from {PAGE}"
    with pytest.raises(OSError, match=match):
        download(of(served), tmp_path / "x.tgz")
    with pytest.raises(OSError, match=r"'x.tgz' from http://127.0.0.1:9/x failed: .*refused"):
        download(of(served, url="http://127.0.0.1:9/x"), tmp_path / "x.tgz")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["http://example.org/x", "ftp://example.org/x", "file:///etc/x"])
def test_only_https_is_trusted(url: str, served: object, tmp_path: Path):
    with pytest.raises(ValueError, match=rf"address '{url}' isn't https"):
        download(of(served, url=url), tmp_path / "x.tgz")
    served.redirects["/x.tgz"] = url
    with pytest.raises((ValueError, OSError), match=rf"'{url}' (isn't https|is not allowed)"):
        download(of(served), tmp_path / "x.tgz")
    assert not any(tmp_path.iterdir())


def test_redirects_are_followed(served: object, tmp_path: Path):
    served.files["/there"] = CONTENT
    served.redirects["/x.tgz"] = f"{served.address}/there"
    download(of(served), tmp_path / "x.tgz")
    assert (tmp_path / "x.tgz").read_bytes() == CONTENT


def test_no_room_is_said_before(served: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    served.files["/x.tgz"] = CONTENT
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1))
    with pytest.raises(OSError, match=r"'x.tgz' needs 300,000 bytes, and .* has 1 free"):
        download(of(served), tmp_path / "x.tgz")
    assert not any(tmp_path.iterdir())


def test_a_silent_server_is_given_up(
    served: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import socket

    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        with pytest.raises(OSError, match=r"failed: .*timed out"):
            download(of(served, url=url), tmp_path / "x.tgz")
