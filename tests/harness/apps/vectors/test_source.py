"""Pictures listed: in folders, tars, Parquet and `datasets`, whole and damaged."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packing import header, tarred

from harness.apps.vectors import source as module
from harness.apps.vectors.source import PictureSource, TextSource, open_source

Draw = Callable[[int], bytes]


def everything(source: PictureSource, first: int = 0) -> list[tuple[str, bytes | str]]:
    """Read all pictures from one on; what can't be read is its reason."""
    rows: list[tuple[str, bytes | str]] = []
    for picture in source.pictures(range(first, len(source))):
        try:
            rows.append((picture.path, picture.read()))
        except (ValueError, OSError) as error:
            rows.append((picture.path, str(error)))
    return rows


@pytest.fixture
def tars(tmp_path: Path, draw: Draw) -> Path:
    """Three tars of two pictures each, as img2dataset writes them."""
    for number in range(3):
        keys = [f"{number}{i}" for i in range(2)]
        members = {f"{key}.png": draw(int(key)) for key in keys} | {f"{key}.json": b"{}" for key in keys}
        (tmp_path / f"x-{number:03d}.tar").write_bytes(tarred(members.items()))
    return tmp_path


@pytest.fixture
def parquet(tmp_path: Path, draw: Draw) -> Path:
    """Two files of five pictures in groups of two rows, one of them null, another only named."""
    for number in range(2):
        rows = [{"bytes": draw(5 * number + i), "path": f"{i}.png"} for i in range(5)]
        rows[1]["bytes"] = None
        table = pa.table({"caption": ["x"] * 5, "image": pa.array([*rows[:3], None, rows[4]])})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=2)
    return tmp_path


def test_a_folder_is_in_the_order_of_its_names_without_what_is_too_large(pictures: Path, monkeypatch):
    source = open_source([str(pictures)])
    rows = everything(source)
    names = [path for path, _ in rows]
    assert names == sorted(names, key=lambda name: name.split("/"))
    assert len(source) == len(rows) == 44
    assert all(content == (pictures / path).read_bytes() for path, content in rows)
    monkeypatch.setattr(module, "LARGEST", 100)
    [first, *_] = source.pictures(range(1))
    with pytest.raises(ValueError, match="bytes; expected 100 at most"):
        first.read()


@pytest.mark.parametrize("word", ["x-{000..002}.tar", "**/*.tar"])
def test_tars_by_ranges_and_globs(tars: Path, word: str, draw: Draw):
    source = open_source([str(tars / word)])
    assert everything(source) == [(f"x-00{n}.tar/{n}{i}.png", draw(10 * n + i)) for n in range(3) for i in range(2)]
    assert source.words == tuple(str(tars / f"x-00{n}.tar") for n in range(3))


def test_of_a_damaged_tar_the_rest_is_named(tars: Path, draw: Draw):
    damaged = tars / "x-001.tar"
    whole = damaged.read_bytes()
    second = whole.index(b"11.png")
    damaged.write_bytes(whole[: second + 600])
    (tars / "x-002.tar").write_bytes(whole[:second] + b"\0" * 512 + b"no header" * 100)
    rows = dict(everything(open_source([str(tars / "x-*.tar")])))
    assert list(rows)[:3] == ["x-000.tar/00.png", "x-000.tar/01.png", "x-001.tar/10.png"]
    assert rows["x-001.tar/10.png"] == draw(10)
    wrong = [why for why in rows.values() if isinstance(why, str)]
    assert len(wrong) == 2
    assert all("truncated" in why or "ends within" in why for why in wrong)


def test_in_a_tar_hard_links_are_their_files_and_what_is_not_read_has_its_reason(tmp_path: Path, draw: Draw):
    members: list[Any] = [
        *(("store/0", draw(0)), header("a.png", tarfile.LNKTYPE, "store/0"), ("b.png", draw(1))),
        *(header("./c.png", tarfile.LNKTYPE, "b.png"), header("d.png", tarfile.LNKTYPE, "gone")),
        *(header("e.png", tarfile.SYMTYPE, "b.png"), header("f.png", tarfile.FIFOTYPE), ("._g.png", b"")),
        *(("h.jxl", b""), header("i.png", tarfile.DIRTYPE)),
    ]
    (tmp_path / "x.tar").write_bytes(tarred(members))
    rows = dict(everything(open_source([str(tmp_path / "x.tar")])))
    assert {path.removeprefix("x.tar/"): content for path, content in rows.items()} == {
        "a.png": draw(0),
        "b.png": draw(1),
        "./c.png": draw(1),
        "d.png": "it is a link to 'gone', which isn't a file before it in the tar",
        "e.png": "it is a link to 'b.png', which isn't a file before it in the tar",
        "f.png": "it is a pipe or a device; expected a file",
        "h.jxl": ".jxl files aren't read; convert it, for instance to .png",
    }


def test_the_revision_sees_another_time_where_names_and_sizes_are_equal(tars: Path, parquet: Path, draw: Draw):
    """A tar is padded, so one of other pictures may have its size."""
    (tars / "a.png").write_bytes(draw(0))
    for word, file in {"x-000.tar": "x-000.tar", "0.parquet": "0.parquet", ".": "a.png"}.items():
        before, size = open_source([str(tars / word)]).revision, (tars / file).stat().st_size
        assert open_source([str(tars / word)]).revision == before
        os.utime(tars / file, ns=(0, 1))
        assert (tars / file).stat().st_size == size
        assert open_source([str(tars / word)]).revision != before, word


def test_parquet_begins_at_any_row(parquet: Path, draw: Draw):
    source = open_source([str(parquet / "*.parquet")])
    rows = everything(source)
    assert [path for path, _ in rows] == [f"{n}.parquet/{i}" for n in range(2) for i in range(5)]
    for place, (_, content) in enumerate(rows):
        wrong = {1: "the row has no bytes; only its name is there, '1.png'", 3: "the row has no bytes"}
        assert content == (wrong.get(place % 5) or draw(place))
    for first in range(len(source)):
        assert everything(source, first) == rows[first:]


def test_parquet_of_plain_bytes_and_the_column_that_is_asked_for(tmp_path: Path, draw: Draw):
    pq.write_table(pa.table({"jpg": [draw(0), draw(1)], "other": [b"a", b"b"]}), tmp_path / "x.parquet")
    word = [str(tmp_path / "x.parquet")]
    assert [content for _, content in everything(open_source(word, column="jpg"))] == [draw(0), draw(1)]
    with pytest.raises(ValueError, match=r"2 columns of bytes .*jpg \(binary\).*--image-column jpg"):
        open_source(word)
    with pytest.raises(ValueError, match=r"--image-column 'jpg' with '.*': only Parquet files have columns"):
        open_source([str(tmp_path)], column="jpg")


def test_lines_of_a_text(tmp_path: Path):
    file = tmp_path / "texts.txt"
    file.write_bytes("\ufeffcat\r\n\r\n  Tür \nend\n".encode())
    assert TextSource(file).texts(range(4)) == ["cat", "", "Tür", "end"]
    assert len(TextSource(file)) == 4


@pytest.mark.parametrize(("words", "kind", "quoted"), [
    (["gone"], FileNotFoundError, "'gone': there is no such file or folder"),
    (["x-{002..001}.tar"], ValueError, r"range \{002\.\.001\} is empty"),
    (["x-000.tar", "0.parquet"], ValueError, "tars and Parquet files at once"),
    (["."], ValueError, r"no images below this folder.*for its tar files give"),
    (["broken.parquet"], ValueError, r"broken\.parquet' is no whole Parquet file"),
    (["plain.parquet"], ValueError, r"has no columns of bytes .*caption \(string\)"),
    (["none.tar"], ValueError, "no pictures inside"),
    (["pipe.tar"], ValueError, "'pipe.tar' is a pipe; expected a regular file"),
    (["pipe.parquet"], ValueError, "'pipe.parquet' is a pipe; expected a regular file"),
])  # fmt: skip
@pytest.mark.usefixtures("parquet")
def test_refusals(words: list[str], kind: type[Exception], quoted: str, tars: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tars)
    Path("notes.txt").write_text("x")
    Path("broken.parquet").write_bytes(b"PAR1")
    pq.write_table(pa.table({"caption": ["x"]}), "plain.parquet")
    Path("none.tar").write_bytes(tarred([("a.json", b"{}")]))
    os.mkfifo("pipe.tar")
    os.mkfifo("pipe.parquet")
    with pytest.raises(kind, match=quoted):
        open_source(words)
