"""Embeddings: what is in them, the same bytes however a run went, what is refused, what is said."""

import io
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from killing import kill_when
from packing import contents, tarred
from PIL import Image
from rich.console import Console
from some_budgets import file_of

from harness.apps.vectors.decode import Decoders
from harness.apps.vectors.embed import DECODING, Embedded, embed, errors_path, read_vectors
from harness.apps.vectors.lanes import LaneRing
from harness.apps.vectors.source import open_source
from harness.base.store import shard_paths
from harness.base.terminal import Progress
from harness.cli.entry import main
from harness.datasets.images import decode_image
from zoo.core.digests import digest
from zoo.deploy.setup import Setup
from zoo.loading.towers import load_tower

Run = Callable[..., Embedded]
BROKEN = {
    "bomb.png": "too large to be trusted",
    "cut.jpg": "can't be read",
    "deep/text.webp": "in no known format",
    "empty.png": "in no known format",
}


def test_each_embedding_is_the_tower_on_its_picture(whole: Path, pictures: Path, tower: str):
    model = load_tower(tower)
    shards = list(read_vectors(whole))
    assert [len(shard.ids) + len(shard.bad) for shard in shards] == [10, 10, 10, 10, 4]
    names = [name for shard in shards for name in shard.names]
    assert len(names) == 40
    order = [str(picture.path) for picture in open_source([str(pictures)]).pictures(range(44))]
    assert [order[position] for shard in shards for position in shard.ids] == names
    contents = [digest(pictures / name) for name in names]
    assert [one for shard in shards for one in shard.digests] == contents
    with torch.inference_mode():
        for shard in shards:
            assert shard.codes.codes.dtype == np.float16
            for name, own in zip(shard.names, shard.embeddings, strict=True):
                pixels = model.preprocess(decode_image((pictures / name).read_bytes(), "")).unsqueeze(0)
                wanted = F.normalize(model.vit(pixels), dim=-1)[0].numpy()
                assert np.abs(own.astype(np.float32) - wanted).max() < 1e-3


def test_bad_pictures_are_listed_beside_the_folder(whole: Path):
    rows = pq.read_table(errors_path(whole)).to_pylist()
    reasons = {row["path"]: row["reason"] for row in rows}
    assert reasons.keys() == BROKEN.keys()
    assert all(why in reasons[path] for path, why in BROKEN.items())
    assert [one.id for shard in read_vectors(whole) for one in shard.bad] == [row["id"] for row in rows]


def lives(session: int) -> bool:
    """Tell whether a process of a session goes on."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, own, *_ = file.read_text().rpartition(")")[2].split()
            if int(own) == session and state != "Z":
                return True
    return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds processes in /proc")
def test_killed_the_same_command_brings_the_same_bytes(pictures: Path, tower: str, tmp_path: Path, capsys):
    command = ["embed", str(pictures), "--model", tower, "--batch", "1", "--shard-size", "2"]
    command += ["--storage", "int8"]
    assert main([*command, "--output", str(tmp_path / "whole"), "--decoders", "0"]) == 0
    capsys.readouterr()
    whole, out = contents(tmp_path / "whole"), tmp_path / "vectors"
    command += ["--output", str(out)]
    words = [sys.executable, "-m", "harness", *command, "--decoders", "2"]
    parents, limit = set[int](), time.monotonic() + 300

    def has_written(parent: int) -> bool:
        parents.add(parent)
        return out.is_dir() and bool(shard_paths(out))

    kill_when(has_written, words, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)
    while lives(*parents):
        assert time.monotonic() < limit, "decoding processes outlive their parent"
        time.sleep(0.05)
    done = {path.name: path.read_bytes() for path in shard_paths(out).values()}
    assert 0 < len(done) < 22
    assert done.items() <= whole.items()
    assert main([*command, "--decoders", "1"]) == 0
    assert contents(out) == whole
    output, errors = capsys.readouterr()
    assert f"{2 * len(done)} of 44 images are there" in errors
    assert f"wrote {out}: 40 of 44 images; 4 can't be embedded; {errors_path(out)} lists them\n" in output


def test_where_the_last_run_crashed_pictures_are_decoded_in_a_process(
    run: Run, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Else threads do it on a CPU, and a picture that crashes them would end each run."""
    mark, counts = tmp_path / "vectors" / DECODING, list[int]()

    def decode_here(count: int, transform: Any) -> Decoders:
        counts.append(count)
        return Decoders(0, transform)

    monkeypatch.setattr("harness.apps.vectors.embed.Decoders", decode_here)
    with monkeypatch.context() as patch:
        patch.setattr(LaneRing, "run", Mock(side_effect=lambda _: pytest.fail(f"the file is there: {mark.exists()}")))
        with pytest.raises(pytest.fail.Exception, match="the file is there: True"):
            run(decoders=None)
    assert not mark.exists()
    mark.touch()
    run(decoders=None)
    assert (counts, mark.exists()) == ([0, 1], False)
    assert contents(mark.parent) == contents(whole)


def test_another_job_is_refused_with_what_differs(run: Run, whole: Path, pictures: Path, monkeypatch):
    for facts, quoted in (
        ({"batch": 7}, "batch=6 there, 7 wanted"),
        ({"how": {"runtime": "eager"}}, "runtime='optimized' there, 'eager' wanted"),
        ({"how": {"precision": "bfloat16"}}, "precision='float32' there, 'bfloat16' wanted"),
        ({"how": {"method": "tome", "keep": 0.5}}, "method=None there, 'tome' wanted"),
        ({"source": open_source([str(pictures / "deep")])}, r"revision='\w+' there, '\w+' wanted; count=44 there, 27"),
    ):
        with pytest.raises(ValueError, match=quoted):
            run(out=whole, **facts)
    monkeypatch.setattr("harness.apps.vectors.embed.fingerprint", lambda vit: "other")
    with pytest.raises(ValueError, match=r"weights='.*' there, 'other' wanted"):
        run(out=whole)


@pytest.fixture
def changing(tmp_path: Path, draw: Any) -> Path:
    """Five bitmaps of one size: others have no other sizes."""
    (tmp_path / "changing").mkdir()
    for number in range(5):
        (tmp_path / "changing" / f"{number}.bmp").write_bytes(flat(number))
    return tmp_path / "changing"


def flat(shade: int) -> bytes:
    Image.new("RGB", (8, 8), (shade, 50, 50)).save(sink := io.BytesIO(), "bmp")
    return sink.getvalue()


@pytest.mark.parametrize(("change", "told"), [
    (lambda folder: (folder / "3.bmp").write_bytes(flat(9)), "'3.bmp' has other content"),
    (lambda folder: (folder / "3.bmp").rename(folder / "6.bmp"), "'4.bmp' is in the place of '3.bmp'"),
    (lambda folder: (folder / "a.heic").touch(), "5 then, 6 now"),
    (lambda folder: (folder / "0.bmp").unlink(), "5 then, 4 now, '1.bmp' is in the place of '0.bmp'"),
])  # fmt: skip
def test_what_changed_since_the_shards_were_made_is_told(run: Run, changing: Path, change: Any, told: str):
    before = contents(run(source=open_source([str(changing)]), shard_size=2).path)
    change(changing)
    told = f"have changed since they were embedded: {told}. Use another --output"
    with pytest.raises(ValueError, match=told) as error:
        run(source=open_source([str(changing)]), shard_size=2)
    assert contents(Path(re.findall("'(.*?)'", str(error.value))[0])) == before


def test_a_tar_that_was_made_again_is_told(run: Run, tmp_path: Path):
    tar, sizes = tmp_path / "x.tar", []
    for shade in (0, 100):
        tar.write_bytes(tarred((f"{number}.bmp", flat(shade + number)) for number in range(4)))
        sizes.append(tar.stat().st_size)
        if not shade:
            run(source=open_source([str(tar)]))
    assert sizes[0] == sizes[1]
    with pytest.raises(ValueError, match=r"'x\.tar/0\.bmp' has other content"):
        run(source=open_source([str(tar)]))


def test_a_touched_folder_goes_on_with_the_same_bytes(job: Any, changing: Path, capsys):
    (changing / "bad.png").write_bytes(b"no picture")
    arguments = {"source": open_source([str(changing)]), "shard_size": 2}
    whole = contents(embed(job(**arguments), Progress()).path)
    out = job().out
    (out / "part-00001.parquet").unlink()
    (out / "part-00002.parquet").write_bytes(b"cut off")
    os.utime(changing / "0.bmp", ns=(0, 1))
    console = Console(record=True, width=300)
    done = embed(job(**arguments | {"source": open_source([str(changing)])}), Progress(console))
    assert "other times than when it was embedded, and the same content" in console.export_text()
    assert contents(done.path) == whole


def test_a_change_while_it_runs_is_an_error(run: Run, changing: Path):
    source = open_source([str(changing)])
    os.utime(changing / "0.bmp", ns=(0, 1))  # as it would after that
    with pytest.raises(ValueError, match="the pictures changed while they were embedded"):
        run(source=source)
    assert run(source=open_source([str(changing)])).binds is None  # nothing is left to do


def test_bad_pictures_alone_and_an_overflow_are_refused(run: Run, tmp_path: Path, monkeypatch):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"none of the 1 images can be embedded; '.*vectors\.errors\.parquet'"):
        run(source=open_source([str(tmp_path / "bad")]))
    infinite = torch.full((1, 7), torch.inf)
    monkeypatch.setattr("harness.apps.vectors.embed.Encoder.forward", lambda _, x, budget: infinite.expand(len(x), 7))
    with pytest.raises(ValueError, match="overflowed in float32; use --precision bfloat16"):
        run(out=tmp_path / "infinite")


@pytest.fixture
def budgets(pictures: Path, tower: str, tmp_path: Path) -> str:
    """Write budgets fitted to the pictures."""
    model = load_tower(tower)
    images = [model.preprocess(decode_image(path.read_bytes(), "")) for path in pictures.rglob("[0-9]*.*g")]
    with torch.no_grad():
        return str(file_of(model.vit, torch.stack(images), tmp_path))


@pytest.mark.parametrize("runtime", ["eager", "optimized"])
def test_each_picture_takes_its_budget(runtime: str, run: Run, budgets: str, pictures: Path, tower: str):
    how = {"budgets": budgets, "runtime": runtime}
    done = run(how=how, storage="float32")
    model = Setup.of(tower, **how).load()
    taken = [keep for path in shard_paths(done.path).values() for keep in pq.read_table(path)["keep"].to_pylist()]
    assert (len(taken), len({*taken})) == (40, 3)
    keeps = iter(taken)
    for shard in read_vectors(done.path):
        for name, own in zip(shard.names, shard.embeddings, strict=True):
            pixels = model.preprocess(decode_image((pictures / name).read_bytes(), "")).unsqueeze(0)
            with torch.inference_mode():
                wanted = F.normalize(model.vit(pixels), dim=-1)[0].numpy()
                assert model.vit.assign(pixels).item() == next(keeps)
            assert np.abs(own - wanted).max() < 1e-5


def test_a_resumed_run_with_budgets_brings_the_same_bytes(run: Run, budgets: str, tmp_path: Path):
    how = {"how": {"budgets": budgets, "precision": "bfloat16"}, "out": tmp_path / "whole"}
    run(**how)
    whole = contents(tmp_path / "whole")
    for number in (1, 3):
        shard_paths(tmp_path / "whole")[number].unlink()
    run(**how)
    assert contents(tmp_path / "whole") == whole
    with pytest.raises(ValueError, match=r"cost=0\.75 there, 0\.7 wanted"):
        run(how={**how["how"], "cost": 0.7}, out=how["out"])


def test_texts_are_in_the_space_of_the_shipped_tower(tmp_path: Path):
    file = tmp_path / "texts.txt"
    file.write_text("t-shirt\nankle boot\nzebrafishes\n\nred apple\n")
    assert main(["embed", "--texts", str(file), "--output", str(tmp_path / "vectors"), "--batch", "2", "-q"]) == 0
    [shard] = read_vectors(tmp_path / "vectors")
    assert shard.names == ["t-shirt", "ankle boot", "red apple"]
    assert [(bad.id, bad.name) for bad in shard.bad] == [(2, "zebrafishes"), (3, "")]
    clip = load_tower("clip_vit_s14").clip
    assert clip is not None
    with torch.inference_mode():
        wanted = clip.model.encode_text(clip.tokenizer(list(shard.names)), normalize=True).numpy()
    assert np.abs(wanted - shard.embeddings.astype(np.float32)).max() < 1e-3


@pytest.mark.parametrize(("words", "quoted"), [
    ("embed", "nothing to embed: give a folder of pictures"),
    ("embed gone", "'gone': there is no such file or folder"),
    ("embed gone --texts other", "--texts 'other' with 'gone'"),
    ("embed . --storage int4", "storage='int4': did you mean 'int8'?"),
    ("embed . --runtime openvin", "runtime 'openvin': did you mean 'openvino'?"),
    ("embed . --runtime onnxruntime --precision bfloat16", "precision 'bfloat16' of onnxruntime: did"),
    ("embed . --runtime openvino --device meta", "openvino runs on cpu alone, not on meta"),
])  # fmt: skip
def test_mistakes(words: str, quoted: str, capsys, tmp_path: Path, monkeypatch, draw: Any):
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(draw(1))
    assert main([*words.split(), "--output", "new/vectors"]) == 2
    assert quoted in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster", "one_thread")
def test_workers_that_decode_in_processes_change_no_byte(
    pictures: Path, tower: str, whole: Path, tmp_path: Path, capsys
):
    words = ["embed", str(pictures), "--model", tower, "--batch", "6", "--shard-size", "10"]
    assert main([*words, "--output", str(tmp_path / "out"), "--workers", "1", "--decoders", "1"]) == 0
    assert contents(tmp_path / "out") == contents(whole)
    output = capsys.readouterr().out
    assert f"wrote {tmp_path / 'out'}: 40 of 44 images; 4 can't be embedded" in output
    assert re.search(r"is the bottleneck: 1 process decodes \S+ images/s, copying takes \S+ images/s, the", output)
