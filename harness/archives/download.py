"""Download files with a known sum; a broken download goes on where it stopped.

Of kept libraries pooch starts anew each time, and huggingface_hub and gdown each know one server.
"""

import hashlib
import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import IO, Any

from harness.datasets.archives import Archive, require_room

PART = ".part"
BLOCK = 2**20
TIMEOUT_S = 60
LOCAL = ("127.0.0.1", "localhost")
AGENT = "clip-patchrank"


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but never from https to what isn't."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Check where it goes."""
        _require_safe(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(
    archive: Archive, to: Path, on_bytes: Callable[[int, int], None] = lambda *_: None
) -> None:
    """Get a file of a source; it is there whole, with the sum it should have, or not at all.

    What came before a stop stays beside it as NAME.part and is gone on with.

    Args:
        archive: what to get.
        to: path of the file.
        on_bytes: told how many bytes are there, and of how many (0 where the server doesn't say).

    Raises:
        ValueError: it has another sum, or a web page came in its place.
        OSError: the server can't be reached, says no, or stops too early; or there is no room.
    """
    assert archive.url is not None
    part = to.with_name(to.name + PART)
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        _get(archive, part, on_bytes)
    except urllib.error.HTTPError as error:
        raise OSError(_failed(archive, part, f"it answered {error.code} {error.reason}")) from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
        reason = getattr(error, "reason", None) or error
        raise OSError(_failed(archive, part, str(reason) or type(error).__name__)) from error
    try:
        require_sum(archive, part)
    except ValueError:
        part.unlink()
        raise
    part.replace(to)


def require_sum(
    archive: Archive, file: Path, on_bytes: Callable[[int], None] = lambda _: None
) -> None:
    """Refuse a file that isn't the source's.

    Raises:
        ValueError: none of the sums is its own.
    """
    if not archive.checksums:
        return
    kinds = sorted({told.partition(":")[0] for told in archive.checksums})
    digests = {kind: hashlib.new(kind, usedforsecurity=False) for kind in kinds}
    with file.open("rb") as content:
        while block := content.read(BLOCK):
            for digest in digests.values():
                digest.update(block)
            on_bytes(content.tell())
    found = [f"{kind}:{digest.hexdigest()}" for kind, digest in digests.items()]
    if not set(found) & set(archive.checksums):
        raise ValueError(
            f"archive {str(file)!r} has {', '.join(found)} at {file.stat().st_size:,} bytes; "
            f"expected {' or '.join(archive.checksums)}: it is damaged or another version; delete "
            "it and get it again, by --download or by hand"
        )


def _get(archive: Archive, part: Path, on_bytes: Callable[[int, int], None]) -> None:
    """Append to the part what it lacks."""
    assert archive.url is not None
    _require_safe(archive.url)
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(archive.url, headers=headers)
    opener = urllib.request.build_opener(_SafeRedirects)
    try:
        answer = opener.open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            if (whole := _whole(error.headers)) != have:  # else all of it came before a stop
                part.unlink()
                _get(archive, part, on_bytes)
            return
        raise
    with answer:
        _require_file(archive, answer.headers, part)
        if have and answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0  # the server doesn't go on, or has another file by now
        length = int(answer.headers.get("Content-Length") or 0)
        require_room(part.parent, length, f"the download of {archive.file!r}")
        whole = have + length if length else 0
        with part.open("ab" if have else "wb") as file:
            while block := answer.read(BLOCK):
                file.write(block)
                on_bytes(file.tell(), whole)
            have = file.tell()
        if whole and have != whole:
            raise http.client.IncompleteRead(b"", whole - have)


def _whole(headers: Message | Any) -> int:
    """Return the file's size as a refused range tells it, else -1."""
    told = str(headers.get("Content-Range") or "").rpartition("/")[2]
    return int(told) if told.isdecimal() else -1


def _require_safe(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOCAL):
        raise ValueError(f"address {url!r} isn't https, so anybody on the way could change it")


def _require_file(archive: Archive, headers: Message, part: Path) -> None:
    """Refuse a page that a person should read, as of Google Drive when many want a file."""
    if headers.get_content_type() == "text/html":
        raise ValueError(
            f"{archive.url} answered with a web page instead of {archive.file!r}; open "
            f"{archive.page} in a browser and put the file at "
            f"{str(part.with_name(archive.file))!r}"
        )


def _failed(archive: Archive, part: Path, why: str) -> str:
    there = f"; {part.stat().st_size:,} bytes are kept" if part.exists() else ""
    return (
        f"the download of {archive.file!r} from {archive.url} failed: {why}{there}; the same "
        f"command goes on, or get it from {archive.page} and put it at "
        f"{str(part.with_name(archive.file))!r}"
    )
