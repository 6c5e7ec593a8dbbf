"""Golden rankings on disk: what goes in comes back, and nothing else ever does."""

import errno
import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.base import store as shards
from harness.base.store import BrokenShardError, shard_path
from harness.golden import store as module
from harness.golden.store import Provenance, Rankings, Shard
from zoo.core.files import NoRoomError
from zoo.ranking.golden import GoldenConfig

MakeShard = Callable[..., Shard]
Make = Callable[..., Rankings]
COLUMNS = ("labels", "importance", "least", "ranking")
MODEL = "clip_vit_s14.imgfocus_lit"
SOURCE, SETTINGS = "--dataset fashion --split test", "--block 3 --window 2 --stride 1"
COMMAND = f"patchrank rank --model {MODEL} {SOURCE} --score preservation {SETTINGS}"


def same(left: Shard, right: Shard) -> bool:
    plain, other = vars(left).copy(), vars(right).copy()
    arrays = all(np.array_equal(plain.pop(name), other.pop(name)) for name in COLUMNS)
    versions = left.provenance.versions, right.provenance.versions
    return arrays and plain == other and versions[0] == versions[1]


def test_provenance_comes_back_from_json_and_versions_do_not_count(provenance: Provenance):
    full = replace(provenance, greedy=4, approximate="sketch:16", batch=8)
    again = Provenance.parse(full.json())
    assert again == full
    assert again.versions == full.versions == {"torch": "2.6"}
    other = replace(provenance, versions={"torch": "3.0"})
    assert other == provenance
    assert other.differences(provenance) == []
    assert other.json() != provenance.json()


@pytest.mark.parametrize(
    ("facts", "command"),
    [
        ({"greedy": 4, "approximate": "a:1"}, f"{COMMAND} --greedy 4 --approx a:1"),
        ({"dataset": "holiday", "split": "all"}, COMMAND.replace(SOURCE, "--images FOLDER")),
    ],
)
def test_the_command_that_makes_such_rankings(facts: dict, command: str, provenance: Provenance):
    assert replace(provenance, **facts).command() == command


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_shard_comes_back(count: int, make_shard: MakeShard):
    shard = make_shard(2, count)
    again = Shard.decode(shard.encode())
    assert same(again, shard)
    kinds = [getattr(again, name).dtype.name for name in COLUMNS]
    assert kinds == ["int32", "float16", "float32", "int16"]
    assert make_shard(2, count).encode() == shard.encode()


def test_columns_and_metadata_are_plain(make_shard: MakeShard):
    """What a reader without this package finds."""
    file = pq.ParquetFile(pa.BufferReader(make_shard(1).encode()))
    table = file.read()
    kinds = {name: str(table.schema.field(name).type) for name in table.column_names}
    assert kinds == {
        "image_id": "string",
        "label": "int32",
        "importance": "fixed_size_list<element: halffloat>[6]",
        "least": "float",
        "ranking": "fixed_size_list<element: int16>[6]",
    }
    assert table["label"].to_pylist() == [4, 5, None, 7]
    facts = json.loads(file.metadata.metadata[b"golden"])
    assert (facts["weights"], facts["batch"]) == ("0123456789abcdef", 8)
    assert facts["versions"] == {"torch": "2.6"}
    place = json.loads(file.metadata.metadata[b"shard"])
    assert {k: place[k] for k in ("first", "count", "size")} == {"first": 4, "count": 4, "size": 4}


def make_from(importance: list[list[float]], provenance: Provenance) -> Shard:
    values, facts = np.array(importance, dtype=np.float32), {"first": 0, "size": 1}
    facts |= {"image_ids": ("a",), "provenance": provenance}
    return Shard.from_importance(values, np.zeros(1), **facts)


def test_the_ranking_is_of_exact_importance_and_ties_go_to_the_lower_position(provenance):
    shard = make_from([[1, 2, 2 + 1e-5, 1, 0.5]], provenance)
    assert shard.least.tolist() == [0.5]  # the score is -(importance + least)
    assert shard.importance[0].tolist() == [0.5, 1.5, 1.5, 0.5, 0]
    assert shard.ranking.tolist() == [[2, 1, 0, 3, 4]]


def test_float16_keeps_the_order():
    """Cosines crowd below 1, where float16 can't tell 0.9999 from 1; their differences it can."""
    generator = np.random.default_rng(0)
    importance = (-1 + 1e-3 * generator.random((5, 196))).astype(np.float32)
    half = module.to_half(importance)
    assert half.dtype == np.float16
    assert half.min() == 0.0
    for before, after in zip(importance, half, strict=True):
        ordered = after[np.argsort(before, kind="stable")]
        assert (np.diff(ordered) >= 0).all()
        assert len(set(after)) > 180  # of 196
    assert len(set(importance.astype(np.float16)[0])) < 5


@pytest.mark.parametrize(
    ("value", "match"), [(np.nan, "no finite number"), (np.inf, "--dtype bfloat16 or float32"), (1e6, "above float16")]
)
def test_what_float16_can_not_hold_is_refused(value: float, match: str, provenance: Provenance):
    with pytest.raises(ValueError, match=match):
        make_from([[0.0, value]], provenance)


def test_no_changed_bit_goes_unnoticed(make_shard: MakeShard):
    """A flipped bit makes a shard broken, unless it is one that nobody reads."""
    shard = make_shard()
    content = shard.encode()
    generator = np.random.default_rng(0)
    refused = 0
    for position in generator.integers(0, len(content), 300):
        changed = bytearray(content)
        changed[position] ^= 1 << generator.integers(8)
        try:
            assert same(Shard.decode(bytes(changed)), shard)
        except BrokenShardError:
            refused += 1
    assert refused > 150


def test_every_cut_is_noticed(make_shard: MakeShard):
    content = make_shard().encode()
    for length in range(len(content)):
        with pytest.raises(BrokenShardError):
            Shard.decode(content[:length])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"ranking": np.zeros((4, 6), np.int16)}, "doesn't hold every patch once"),
        ({"importance": np.full((4, 6), np.inf, np.float16)}, "not finite"),
        ({"least": np.full(4, np.nan, np.float32)}, "not finite"),
        ({"size": 3}, "holds 4 images from 0, of 3 per shard"),
        ({"first": 2}, "holds 4 images from 2, of 4 per shard"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_content_is_broken_even_with_its_checksum(changes: dict[str, Any], match: str, make_shard: MakeShard):
    with pytest.raises(BrokenShardError, match=match):
        Shard.decode(replace(make_shard(), **changes).encode())


def test_provenance_that_does_not_fit_is_refused_and_not_called_broken(make_shard, provenance):
    facts = json.loads(provenance.json())
    later = json.dumps(facts | {"mood": "good"})
    content = make_shard(provenance=Mock(json=lambda: later)).encode()
    match = r"provenance .*'mood': 'good'.*: expected the fields"
    with pytest.raises(ValueError, match=match) as error:
        Shard.decode(content)
    assert not isinstance(error.value, BrokenShardError)
    del facts["weights"]
    with pytest.raises(ValueError, match=r"provenance .* missing .*'weights'"):
        Provenance.parse(json.dumps(facts))


def flip(content: bytes) -> bytes:
    middle = len(content) // 3
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_a_whole_store_is_left_alone_and_half_written_files_go(store: Path):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in store.iterdir()}
    (store / ".part-00003.parquet.host-7.partial").write_bytes(b"PAR1")
    present, removed = shards.survey(store, module.facts_of)
    assert [shard.images for shard in present.values()] == [4, 4, 2]
    assert removed == []
    assert before == {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in store.iterdir()}


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], flip, lambda c: b"", lambda c: b"x"])
def test_a_broken_shard_is_removed_and_told(damage: Callable[[bytes], bytes], store: Path):
    path = shard_path(store, 1)
    path.write_bytes(damage(path.read_bytes()))
    present, [line] = shards.survey(store, module.facts_of)
    assert list(present) == [0, 2]
    assert re.fullmatch(r"part-00001\.parquet is broken \(.+\): removed, to be made again", line)
    assert sorted(module.shard_paths(store)) == [0, 2]
    shard_path(store, 0).replace(path)  # under another name
    present, [line] = shards.survey(store, module.facts_of)
    assert list(present) == [2]
    assert "part-00001.parquet is broken (starts at image 0, not at 4)" in line


def test_somebody_elses_parquet_is_refused_and_kept(tmp_path):
    """Broken shards are removed; other people's data must not be."""
    pq.write_table(pa.table({"a": [1]}), tmp_path / "part-00000.parquet")
    before = (tmp_path / "part-00000.parquet").read_bytes()
    with pytest.raises(ValueError, match="not of golden rankings; use another folder") as error:
        shards.survey(tmp_path, module.facts_of)
    assert not isinstance(error.value, BrokenShardError)
    assert (tmp_path / "part-00000.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("total", "expected"), [(1, []), (8, []), (10, []), (11, [2]), (12, [2]), (13, [2, 3]), (17, [2, 3, 4])]
)
def test_only_what_a_larger_limit_adds_is_missing(total: int, expected: list[int], store: Path, provenance: Provenance):
    present, _ = shards.survey(store, module.facts_of)
    later = replace(provenance, versions={"torch": "3.0"})  # which is no other setting
    assert shards.missing(store, present, later, 4, total, "rankings") == expected
    del present[1]
    assert shards.missing(store, present, provenance, 4, 10, "rankings") == [1]


def test_other_settings_are_refused_by_name_with_both_values(store: Path, provenance: Provenance):
    present, _ = shards.survey(store, module.facts_of)
    other = replace(provenance, stride=2, weights="fedc", batch=16)
    with pytest.raises(ValueError, match="made with other settings") as error:
        shards.missing(store, present, other, 8, 10, "rankings")
    assert str(error.value) == (
        f"{str(store)!r} holds rankings made with other settings: "
        "weights='0123456789abcdef' there, 'fedc' wanted; stride=1 there, 2 wanted; "
        "batch=8 there, 16 wanted; shard size 4 there, 8 wanted. "
        "Use another --output, or delete that folder"
    )


def test_two_runs_can_not_write_to_one_folder(tmp_path):
    with shards.claim(tmp_path / "new"):
        with pytest.raises(ValueError, match=r"another run is writing to .*new"):
            shards.claim(tmp_path / "new").__enter__()
        assert module.shard_paths(tmp_path / "new") == {}
    with shards.claim(tmp_path / "new"):
        pass


@pytest.mark.parametrize(
    ("error", "free", "codec", "kept"),
    [
        (pa.ArrowMemoryError("malloc of 9 bytes failed"), 2**20, True, True),
        (pa.ArrowMemoryError("malloc of 9 exabytes failed"), shards.AMPLE, True, False),  # a damaged length
        (pa.ArrowNotImplementedError("Support for codec 'zstd' not built"), shards.AMPLE, False, True),
        (pa.ArrowNotImplementedError("codec 77"), shards.AMPLE, True, False),
    ],
)
def test_a_shard_goes_only_if_it_is_proven_broken(
    store: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, free: int, codec: bool, kept: bool
):
    before = shards.shard_paths(store)
    monkeypatch.setattr(shards, "free_memory", lambda: free)
    monkeypatch.setattr(shards, "has_codec", lambda: codec)
    monkeypatch.setattr(pq, "ParquetFile", Mock(side_effect=error))
    with pytest.raises(OSError, match=r"can't be read here .* it is kept; free") if kept else nullcontext():
        shards.survey(store, module.facts_of)
    assert before
    assert shards.shard_paths(store) == (before if kept else {})


@pytest.mark.parametrize(
    ("code", "why"), [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota is used"), (errno.EROFS, "read-only")]
)
def test_no_room_is_told_with_the_way_on(code: int, why: str, store, make_shard, monkeypatch):
    monkeypatch.setattr("os.fsync", Mock(side_effect=OSError(code, "no room")))
    with pytest.raises(NoRoomError, match=why) as error:
        module.write_shard(store, 3, make_shard(3), "patchrank rank --again")
    assert f"can't write {str(shard_path(store, 3))!r}" in str(error.value)
    assert re.search(r"; [\d,]+ bytes needed, [\d,]+ free\. ", str(error.value))
    assert str(error.value).endswith("go on with: patchrank rank --again")
    assert len(list(store.iterdir())) == 3


def test_other_errors_of_the_disk_stay_what_they_are(store, make_shard, monkeypatch):
    broken = OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr(shards, "write_whole", Mock(side_effect=broken))
    with pytest.raises(OSError, match="Input/output error") as error:
        module.write_shard(store, 3, make_shard(3), "")
    assert not isinstance(error.value, NoRoomError)


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from harness.base.store import shard_path
from harness.golden.store import read_shard, write_shard
folder, index = Path(sys.argv[1]), 0
shard = read_shard(shard_path(folder, 0), 0)
while True:
    index += 1
    write_shard(folder, index, replace(shard, first=index * shard.size), "")
"""


def test_whenever_a_writer_is_killed_every_shard_is_whole(store: Path):
    """SIGKILL a process that does nothing but write shards, at four different moments."""
    for index in (1, 2):
        shard_path(store, index).unlink()
    for attempt in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(store)])
        while len(module.shard_paths(store)) < 2 and writer.poll() is None:
            time.sleep(0.001)
        time.sleep(0.0014 * attempt)
        writer.kill()
        assert writer.wait() == -9
        paths = module.shard_paths(store)
        assert len(paths) > 1
        for index, path in paths.items():
            assert module.read_shard(path, index).image_ids
        others = [path.name for path in store.iterdir() if path not in paths.values()]
        assert all(re.fullmatch(r"\.part-\d+\.parquet\..+\.partial", name) for name in others)
        shards.survey(store, module.facts_of)
        assert set(store.iterdir()) == set(paths.values())
        for index in [*paths][1:]:
            paths[index].unlink()


def test_a_store_is_its_shards_in_order(store: Path, make_shard: MakeShard):
    read = Rankings.read(store)
    shards = [make_shard(index, count) for index, count in enumerate((4, 4, 2))]
    assert read.image_ids == tuple(f"fashion/ü-{i}" for i in range(10))
    for name in COLUMNS:
        joined = np.concatenate([getattr(shard, name) for shard in shards])
        assert np.array_equal(getattr(read, name), joined), name
    assert read.labels.tolist() == [0, 1, -1, 3, 4, 5, -1, 7, 8, 9]
    assert Rankings.read(shard_path(store, 1)).image_ids == read.image_ids[4:8]


def test_an_unfinished_store_gives_what_is_there(store: Path):
    """Holes too: processes that share the work finish shards in any order."""
    path = shard_path(store, 1)
    path.replace(path.with_name(f".{path.name}.host-1.partial"))
    images = Rankings.read(store).image_ids
    assert images == tuple(f"fashion/ü-{i}" for i in (0, 1, 2, 3, 8, 9))


def test_a_broken_store_is_refused(store: Path):
    path = shard_path(store, 1)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"is broken: cut off.* `rank` command that made") as error:
        Rankings.read(store)
    assert str(error.value).startswith(repr(str(path)))


def test_shards_of_one_store_agree_in_all_but_versions(store, make_shard, provenance):
    other = make_shard(1, provenance=replace(provenance, versions={"torch": "3.0"}))
    shard_path(store, 1).write_bytes(other.encode())
    assert len(Rankings.read(store).image_ids) == 10
    other = make_shard(1, provenance=replace(provenance, stride=2, approximate="sketch:16"))
    shard_path(store, 1).write_bytes(other.encode())
    with pytest.raises(ValueError, match="were made differently: part-00001") as error:
        Rankings.read(store)
    assert "stride=2 there, 1 wanted; approximate='sketch:16' there, None" in str(error.value)


def test_a_store_shrinks_to_a_small_file(store: Path, tmp_path):
    """The small file ships: ids, importance and provenance, the ranking made from importance."""
    whole, path = Rankings.read(store), tmp_path / "new" / "small.parquet"
    whole.write(path)
    small = Rankings.read(path)
    assert small.image_ids == whole.image_ids
    assert small.importance.dtype == np.float16
    assert np.array_equal(small.importance, whole.importance)
    assert np.array_equal(small.ranking, whole.ranking)
    assert small.provenance == whole.provenance
    assert (small.labels == -1).all()
    assert np.isnan(small.least).all()
    whole.write(tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()
    table = pq.read_table(path)
    assert table.column_names == ["image_id", "importance"]
    assert table["importance"][1].as_py() == pytest.approx(whole.importance[1].tolist())


def test_images_in_any_order_and_unknown_ones(rankings: Make):
    known = rankings()
    values = known.of([known.image_ids[2], "nobody", known.image_ids[0], known.image_ids[2]])
    assert values.dtype == np.float32
    assert np.array_equal(values[[0, 2, 3]], known.importance[[2, 0, 2]].astype(np.float32))
    assert np.isnan(values[1]).all()
    assert known.of([]).shape == (0, 6)


@pytest.mark.parametrize("field", [f.name for f in fields(Provenance) if f.compare])
def test_another_provenance_is_refused_with_the_command(field: str, rankings, provenance):
    rankings().require(**asdict(provenance))
    value: Any = 7 if field in ("block", "window", "stride", "greedy", "batch") else "val"
    with pytest.raises(ValueError, match="these rankings were made with") as error:
        rankings().require(**{"model": provenance.model, field: value})
    stored = asdict(provenance)[field]
    assert f"made with {field}={stored!r}, wanted {value!r}; make them with: " in str(error.value)
    facts = asdict(provenance) | {field: value}
    action = ["action"] if field == "action" else []
    options = ["model", "dataset", "split", "score", *action, "block", "window", "stride"]
    command = " ".join(f"--{option} {facts[option]}" for option in options)
    command += {"greedy": " --greedy 7", "approximate": " --approx val"}.get(field, "")
    assert str(error.value).endswith(f"patchrank rank {command}")


def test_files_that_hold_no_rankings(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape("none.parquet' do not exist")):
        Rankings.read(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="holds no golden rankings: no part-00000"):
        Rankings.read(tmp_path)
    (tmp_path / "text.parquet").write_text("importance")
    with pytest.raises(ValueError, match=re.escape("text.parquet' is not a Parquet file: ")):
        Rankings.read(tmp_path / "text.parquet")
    pq.write_table(pa.table({"image_id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="holds no golden rankings: no provenance inside"):
        Rankings.read(tmp_path / "other.parquet")


@pytest.fixture
def shipped(tmp_path, monkeypatch) -> Path:
    """Point data folder and user's cache at empty folders; return the file that would ship."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "DATA_DIR", tmp_path / "data")
    return tmp_path / "data" / f"golden-{MODEL}-fashion-test.parquet"


def own_file() -> Path:
    """A file beside the stores in the user's cache."""
    folder = module.own_store(MODEL, "fashion", "test", GoldenConfig()).parent
    return folder / f"golden-{MODEL}-fashion-test-b3w2s1.parquet"


def count(block: int = 3) -> int:
    rankings = module.find_rankings(MODEL, "fashion", "test", block=block)
    return 0 if rankings is None else len(rankings)


def test_every_setting_has_a_store_of_its_own(shipped: Path):
    others = {"block": 0, "stride": 2, "window": 3, "greedy": 8, "score": "label", "action": "merge"}
    settings = [GoldenConfig(), *(GoldenConfig(**{name: value}) for name, value in others.items())]
    assert len({module.own_store(MODEL, "fashion", "test", config) for config in settings}) == 7


def test_rankings_are_found_by_model_split_and_block(shipped: Path, rankings: Make):
    assert count() == 0
    rankings(5, block=0).write(own_file())
    assert (count(), count(block=0)) == (0, 5)
    rankings(2).write(own_file())
    assert count() == 2
    rankings(6, action="merge").write(own_file().with_name(f"golden-{MODEL}-fashion-test-merge.parquet"))
    assert count() == 2
    assert module.find_rankings(MODEL, "fashion", "val") is None
    assert module.find_rankings("clip_vit_b16.openai", "fashion", "test") is None


@pytest.mark.parametrize(("ships", "own", "expected"), [(3, 2, 3), (2, 3, 3)])
def test_who_knows_more_images_wins(ships: int, own: int, expected: int, shipped, rankings):
    """Shipped rankings may cover a part of the split; ``rank --full`` then makes the rest count."""
    rankings(ships).write(shipped)
    rankings(own).write(own_file())
    assert count() == expected


def test_a_store_in_the_cache_is_found_once_it_has_a_shard(shipped, store, rankings):
    rankings(3).write(shipped)
    folder = module.own_store(MODEL, "fashion", "test", GoldenConfig())
    folder.mkdir(parents=True)
    assert count() == 3
    folder.rmdir()
    store.replace(folder)
    assert count() == 10


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ((MODEL, "emoji", "val"), "golden-clip_vit_s14.imgfocus_lit-emoji-val"),
        (("open_clip:ViT-B-16/laion2b", "my photos", "all", "label"),
         "golden_label-open_clip-ViT-B-16-laion2b-my-photos-all"),
    ],
)  # fmt: skip
def test_names_of_stores_are_names_of_folders(facts: tuple[str, ...], name: str):
    assert module.store_name(*facts) == name


GUIDE = Path(__file__).resolve().parents[3] / "docs" / "rankings.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text("utf-8"), re.M | re.S)
CHECKS = {
    "harness": """
assert len(rankings.image_ids) == 10
print(rankings.ranking.tolist())
""",
    "pandas": """
assert importance.dtype == np.float16 and importance.shape == score.shape == (10, 6)
assert table["label"].isna().sum() == 2
print(np.stack(table["ranking"]).tolist())
""",
    "polars": """
assert table.schema["importance"] == pl.Array(pl.Float16, 6)
assert table["label"].null_count() == 2 and first.height == 10
print(table["ranking"].to_list())
""",
    "datasets": """
assert table["label"][:4] == [0, 1, None, 3] and len(table) == 10
assert row["importance"].shape == (6,)
print(table["ranking"][:])
""",
}


@pytest.mark.parametrize("reader", CHECKS)
def test_the_example_reads_the_store(reader: str, store: Path, tmp_path, monkeypatch):
    """In a process of its own: these libraries are large, and one has a cache."""
    if importlib.util.find_spec(reader) is None:
        pytest.skip(f"{reader} is not installed")
    assert len(EXAMPLES) == len(CHECKS)
    whole = Rankings.read(store)
    store.rename(tmp_path / "rankings")
    (tmp_path / "rankings" / ".part-00003.parquet.host-1.partial").write_bytes(b"PAR1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = EXAMPLES[[*CHECKS].index(reader)] + CHECKS[reader]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(whole.ranking.tolist())
