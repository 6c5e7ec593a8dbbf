"""Search: the plain matrix product, refusals, and the command as a newcomer uses it."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from harness.apps.vectors.embed import BINARY, INT8, VECTORS, Codes, Encoder, read_vectors
from harness.apps.vectors.search import nearest, query_vector, write_sheet
from harness.apps.vectors.source import open_source
from harness.base.store import Shard, shard_path, to_lists
from harness.cli.entry import main
from harness.datasets import get_dataset

WORDS = ("t-shirt", "trousers", "ankle boot", "bag")


@pytest.fixture(scope="module")
def clothing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, dataset = tmp_path_factory.mktemp("clothing"), get_dataset("fashion")
    split = dataset.split("val")
    for word in WORDS:
        (folder / "pictures" / word).mkdir(parents=True)
        for number, place in enumerate(np.flatnonzero(split.labels == dataset.classes.index(word))[:4].tolist()):
            split[place].image.save(folder / "pictures" / word / f"{number}.png")
    command = ["embed", str(folder / "pictures"), "--output", str(folder / "vectors"), "--shard-size", "5"]
    assert main([*command, "--decoders", "0", "--quiet"]) == 0
    return folder


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_stored_in_bytes_and_bits(width: int, seed: int):
    """Within half a step of int8; bits are the signs, eight to a byte, the first highest."""
    floats = np.random.default_rng(seed).normal(size=(3, width)).astype(np.float32)
    floats /= np.linalg.norm(floats, axis=1, keepdims=True)
    int8, bits = Codes.of(floats, INT8), Codes.of(floats, BINARY)
    steps = np.abs(floats).max(axis=1, keepdims=True) / 127
    assert np.abs(int8.codes - floats / steps).max() <= 0.5 + 1e-4
    assert (np.abs(int8.codes).max(axis=1) == 127).all()
    assert np.allclose(int8.decode(), int8.codes * int8.scale[:, None], atol=1e-6)
    assert np.allclose(np.linalg.norm(int8.decode(), axis=1), 1)
    assert not Codes.of(0 * floats, INT8).decode().any()
    for row, stored in zip(floats, bits.codes, strict=True):
        text = "".join(str(int(value > 0)) for value in row)
        assert "".join(f"{byte:08b}" for byte in stored) == text + "0" * (-width % 8)
    assert np.allclose(bits.decode(), np.where(floats > 0, 1, -1) / np.sqrt(width))
    for codes in (int8, bits):
        again = Codes.from_table(pa.table(codes.columns()), codes.storage, width)
        assert np.array_equal(again.decode(), codes.decode())


def written(folder: Path, like: Path, floats: np.ndarray, storage: str) -> Path:
    """Write embeddings in shards of 250, with a provenance as there."""
    facts = {"count": len(floats), "width": floats.shape[1], "storage": storage}
    provenance = replace(next(read_vectors(like)).provenance, **facts)
    folder.mkdir()
    for index, first in enumerate(range(0, len(floats), 250)):
        part = floats[first : first + 250]
        names = [str(first + row) for row in range(len(part))]
        columns = {"id": np.arange(len(part)) + first, "path": names, "digest": names}
        table = pa.table(columns | Codes.of(part, storage).columns())
        shard = Shard(table=table, provenance=provenance, first=first, covers=len(part), size=250)
        shard_path(folder, index).write_bytes(VECTORS.encode(shard))
    return folder


@pytest.fixture(scope="module")
def floats() -> np.ndarray:
    floats = np.random.default_rng(0).normal(size=(600, 20)).astype(np.float32)
    return floats / np.linalg.norm(floats, axis=1, keepdims=True)


@pytest.mark.parametrize("top", [7, 130])
@pytest.mark.parametrize("storage", ["float32", INT8, BINARY])
def test_a_search_is_that_of_a_loop(storage: str, top: int, floats: np.ndarray, whole: Path, tmp_path: Path):
    """Of bits the hundred that differ in the fewest are ordered by cosine with the query as it is."""
    vector = np.random.default_rng(1).normal(size=20).astype(np.float32)
    decoded = floats.tolist()
    if storage == INT8:
        steps = [max(map(abs, row)) / 127 for row in floats]
        codes = [[round(x / step) for x in row] for row, step in zip(floats, steps, strict=True)]
        decoded = [[x / np.linalg.norm(row) for x in row] for row in codes]
    if storage == BINARY:
        decoded = [[(1 if x > 0 else -1) / 20**0.5 for x in row] for row in floats]
    scores = [sum(x * q for x, q in zip(row, vector, strict=True)) for row in decoded]
    rows = range(600)
    if storage == BINARY:
        differences = [sum((x > 0) != (q > 0) for x, q in zip(row, vector, strict=True)) for row in floats]
        rows = sorted(rows, key=lambda row: (differences[row], row))[: max(top, 100)]
    wanted = sorted(rows, key=lambda row: (-scores[row], row))[:top]
    hits = nearest(written(tmp_path / "vectors", whole, floats, storage), vector, top).hits
    assert [hit.id for hit in hits] == wanted
    assert np.allclose([hit.score for hit in hits], [scores[row] for row in wanted], atol=1e-6)


def test_losses_are_those_of_each_embedding_among_the_others(floats: np.ndarray, whole: Path, tmp_path: Path, capsys):
    where = written(tmp_path / "vectors", whole, floats, "float32")
    assert main(["search", "--losses", "--in", str(where), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    signs = np.where(floats > 0, 1, -1)
    differences, cosines, exact = -signs @ signs.T, floats @ signs.T, floats @ floats.T
    shares = dict[str, list[float]](by_hamming=[], rescored=[])
    for own in range(600):
        true, order = np.argsort(-exact[own]), np.argsort(differences[own], kind="stable")[:100]
        best = order[np.argsort(-cosines[own, order], kind="stable")]
        for name, found in {"by_hamming": order, "rescored": best}.items():
            shares[name].append(len(set(found[found != own][:10]) & set(true[true != own][:10])) / 10)
    rows = {row["stored"]: row for row in facts["losses"]}
    assert [row["bytes"] for row in rows.values()] == [80, 40, 24, 3, 3]
    assert rows["float32"]["overlap"]["estimate"] == 1
    assert rows["binary, by Hamming distance"]["overlap"]["estimate"] == pytest.approx(np.mean(shares["by_hamming"]))
    assert rows["binary, best 100 rescored"]["overlap"]["estimate"] == pytest.approx(np.mean(shares["rescored"]))
    cosine = (np.abs(floats).sum(axis=1) / 20**0.5).mean()
    assert rows["binary, best 100 rescored"]["cosine"] == pytest.approx(cosine, abs=1e-6)
    assert facts["count"] == 600


def test_pictures_and_texts_are_in_the_joint_space_of_the_shipped_tower(clothing: Path):
    provenance = next(read_vectors(clothing / "vectors")).provenance
    hits = {word: nearest(clothing / "vectors", query_vector(word, provenance), 4).hits for word in WORDS}
    assert sum(hit.name.startswith(f"{word}/") for word in WORDS for hit in hits[word]) >= 12  # of 16; by chance 4


def test_the_command_shows_paths_and_a_sheet(clothing: Path, tmp_path: Path, capsys):
    sheet, where = tmp_path / "new" / "hits.png", clothing / "vectors"
    command = ["search", "ankle boot", "--in", str(where), "--top", "7"]
    assert main([*command, "--sheet", str(sheet)]) == 0
    out, err = capsys.readouterr()
    assert err.count("learned the words of clothing and emoji only; for any words") == 1
    assert f"searched 16 images, embedded by clip_vit_s14; paths are below {clothing / 'pictures'}\n" in out
    assert np.asarray(Image.open(sheet))[44 : 44 + 240, 12 : 12 + 240].std() > 10
    assert main([*command, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    found = nearest(where, query_vector("ankle boot", next(read_vectors(where)).provenance), 7)
    hits = [{"rank": hit.rank, "score": hit.score, "id": hit.id, "path": hit.name} for hit in found.hits]
    assert (facts["hits"], facts["searched"], facts["sheet"]) == (hits, 16, None)


@pytest.mark.command("embed", "search")
def test_a_picture_finds_texts(clothing: Path, tmp_path: Path, capsys):
    (tmp_path / "texts.txt").write_text("\n".join(WORDS))
    where = str(tmp_path / "texts")
    assert main(["embed", "--texts", str(tmp_path / "texts.txt"), "--output", where]) == 0
    capsys.readouterr()
    assert main(["search", str(clothing / "pictures" / "bag" / "0.png"), "--in", where, "--top", "4", "--json"]) == 0
    assert {hit["text"] for hit in json.loads(capsys.readouterr().out)["hits"]} == set(WORDS)
    assert main(["search", "bag", "--in", where, "--sheet", str(tmp_path / "sheet.png")]) == 2


def test_what_a_folder_lacks_is_told(whole: Path, tmp_path: Path, draw: Any, capsys):
    """Of 44 pictures four can't be read, so that these aren't missing; the third shard is, with ten."""
    picture, where = tmp_path / "q.png", tmp_path / "vectors"
    picture.write_bytes(draw(3))
    command = ["search", str(picture), "--top", "1", "--json", "--in"]
    assert main([*command, str(whole)]) == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert (err, facts["searched"], facts["of"], facts["missing"]) == ("", 40, 44, 0)
    shutil.copytree(whole, where)
    shard_path(where, 2).unlink()
    lacking = "covers 34 of 44 images: the `embed` command isn't finished; the same command goes on"
    with pytest.warns(UserWarning, match=lacking):
        count = sum(len(shard.ids) for shard in read_vectors(where))
    assert main([*command, str(where)]) == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert lacking in err
    assert (facts["searched"], facts["of"], facts["missing"]) == (count, 44, 10)


def test_embeddings_that_are_no_numbers_are_refused(whole: Path, tmp_path: Path):
    path, shard = tmp_path / "part-00000.parquet", VECTORS.read(shard_path(whole, 0), 0)
    place = shard.table.column_names.index("embedding")
    for width, quoted in ((shard.provenance.width, "an embedding is not finite"), (7, "its columns aren't")):
        nothing = to_lists(np.full((len(shard.table), width), np.nan, np.float16))
        path.write_bytes(VECTORS.encode(replace(shard, table=shard.table.set_column(place, "embedding", nothing))))
        with pytest.raises(ValueError, match=rf"part-00000\.parquet' is broken: {quoted}"):
            nearest(tmp_path, np.ones(width, np.float32), 1)


@pytest.mark.parametrize(("precision", "size"), [("bfloat16", 6), ("float32", 1)])
def test_a_picture_that_is_there_is_found_as_itself(precision: str, size: int, run: Any, pictures: Path):
    """In bfloat16 features depend on the batch, so that the query is embedded in one as large."""
    done = run(how={"method": "rankmerge", "keep": 0.3, "precision": precision}, storage="float32")
    provenance = next(read_vectors(done.path)).provenance
    with patch.object(Encoder, "pictures", autospec=True, side_effect=Encoder.pictures) as embedded:
        vector = query_vector(str(pictures / "00.png"), provenance)
    [hit] = nearest(done.path, vector, 1).hits
    assert (hit.name, hit.score) == ("00.png", pytest.approx(1, abs=1e-5))
    assert [len(call.args[1]) for call in embedded.call_args_list] == [size]


def test_names_can_not_steer_a_terminal(tower: str, draw: Any, tmp_path: Path, capsys):
    name, folder = "\x1b]0;x\x07\x1b[31m\nb [bold]\u202e\x9b2J.png", tmp_path / "pictures"
    folder.mkdir()
    (folder / name).write_bytes(draw(1))
    (folder / f"bad{name}").write_bytes(b"no picture")
    place = ["--in", str(tmp_path / "vectors"), "--sheet", str(tmp_path / "sheet.png")]
    for words, code in (
        (["embed", str(folder), "--model", tower, "--output", place[1], "--decoders", "0"], 0),
        (["search", str(folder / name), *place], 0),
        (["search", str(folder / f"bad{name}"), *place], 2),
        (["search", str(folder / name), *place, "--json"], 0),
    ):
        assert main(words) == code
        out, err = capsys.readouterr()
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", out + err)
        assert "embed" in words or "[bold]" in out + err
    assert json.loads(out)["hits"][0]["path"] == name


@pytest.mark.parametrize(("words", "quoted"), [
    ("zebrafishes", "query 'zebrafishes': "),
    ("gone.jpg", "query 'gone.jpg' looks like a picture, and there is no such file"),
    ("bag --top 0", "--top 0"),
    ("--losses", "is in float16: expected float32"),
    ("bag --losses", "or --losses, not both"),
    ("zebrafish" * 30, "the embedded text tower never saw '"),  # longer than a file's name may be
    ("bag --in gone", "'gone' holds no embeddings: no part-00000.parquet; make them with: patchrank embed"),
])  # fmt: skip
def test_mistakes(words: str, quoted: str, clothing: Path, capsys):
    place = [] if "--in" in words else ["--in", str(clothing / "vectors")]
    assert main(["search", *words.split(), *place]) == 2
    assert quoted in capsys.readouterr().err


def test_what_changed_since_the_embeddings_is_refused(clothing: Path):
    provenance: Any = next(read_vectors(clothing / "vectors")).provenance
    for change in ({"weights": "other"}, {"kind": "texts", "text_weights": "other"}):
        with pytest.raises(ValueError, match=f"has other {list(change)[-1]} now"):
            query_vector("bag", replace(provenance, **change))


@pytest.mark.parametrize(
    "change", [lambda hit: hit.write_bytes(b"other"), lambda hit: hit.rename(hit.with_name("9.png"))]
)
def test_a_sheet_needs_the_pictures_of_its_hits_as_they_were(change: Any, clothing: Path, tmp_path: Path):
    shutil.copytree(clothing, tmp_path / "copy")
    found = nearest(clothing / "vectors", query_vector("bag", next(read_vectors(clothing / "vectors")).provenance), 3)
    (tmp_path / "copy" / "pictures" / "zzz.png").write_bytes(b"new, behind the others")
    pictures = [str(tmp_path / "copy" / "pictures")]
    write_sheet(tmp_path / "sheet.png", "bag", found, open_source(pictures))
    change(tmp_path / "copy" / "pictures" / found.hits[1].name)
    with pytest.raises(ValueError, match="has changed since it was embedded"):
        write_sheet(tmp_path / "sheet.png", "bag", found, open_source(pictures))
