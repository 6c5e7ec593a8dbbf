"""Learned files and schedules: whole or not there, what is written comes back, damaged ones are refused by name."""

import contextlib
import json
import math
import os
import socket as socket_module
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from lively import Build
from safetensors.torch import load_file, save_file
from torch import Tensor

import zoo
from zoo.core.errors import NoRoomError
from zoo.core.files import cache_file, write_whole
from zoo.core.learned import Predictor
from zoo.core.recipes import FitConfig
from zoo.learning.fit import save_predictor
from zoo.loading.learned_files import (
    PredictorFile,
    PromptFile,
    ScheduleFile,
    read_facts,
    read_schedule,
    save_prompts,
    write_learned,
)


def test_files_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file"
    write_whole(path, b"first")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="the disk is full; 6 bytes needed"):
        write_whole(path, b"second")
    assert path.read_bytes() == b"first"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


@pytest.mark.skipif(os.name != "posix", reason="Windows can't be asked which processes are over")
def test_what_a_killed_process_left_of_a_file_goes_when_it_is_written_again(tmp_path: Path):
    with subprocess.Popen(["true"]) as over:
        over.wait()
    start = f".file.{socket_module.gethostname()}"
    for name in (f"{start}-{over.pid}", f"{start}-{os.getppid()}", ".file.elsewhere-1", ".fil.1"):
        (tmp_path / f"{name}.partial").touch()
    write_whole(tmp_path / "file", b"whole")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"file", f"{start}-{os.getppid()}.partial", ".file.elsewhere-1.partial", ".fil.1.partial"}


def test_a_link_stays_and_what_it_leads_to_is_replaced_with_its_mode(tmp_path: Path):
    target, link, dangling = tmp_path / "there" / "file", tmp_path / "link", tmp_path / "dangling"
    target.parent.mkdir()
    target.write_bytes(b"first")
    target.chmod(0o640)
    link.symlink_to("there/file")
    dangling.symlink_to("there/new")
    write_whole(link, b"second")
    write_whole(dangling, b"new")
    assert (link.is_symlink(), dangling.is_symlink()) == (True, True)
    assert {path.name: path.read_bytes() for path in target.parent.iterdir()} == {"file": b"second", "new": b"new"}
    assert target.stat().st_mode & 0o777 == 0o640
    write_whole(link, tmp_path / "there" / "new")  # a file is moved
    assert {path.name: path.read_bytes() for path in target.parent.iterdir()} == {"file": b"new"}


def test_pipes_and_devices_are_written_to_and_stay(tmp_path: Path):
    pipe, socket = tmp_path / "pipe", tmp_path / "socket"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        write_whole(pipe, b"whole")
        assert reader.communicate(timeout=60)[0] == b"whole"
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        write_whole(Path(f"/dev/fd/{reader.stdin.fileno()}"), b"whole")
        assert reader.communicate(timeout=60)[0] == b"whole"
    with contextlib.closing(socket_module.socket(socket_module.AF_UNIX)) as bound:
        bound.bind(str(socket))
        with pytest.raises(OSError, match=r"socket': it is a socket; expected a file, a pipe or a device"):
            write_whole(socket, b"")
    with pytest.raises(NoRoomError, match="can't write '/dev/full': the disk is full; 5 bytes needed"):
        write_whole(Path("/dev/full"), b"whole")
    assert [pipe.is_fifo(), socket.is_socket(), Path("/dev/full").is_char_device()] == [True] * 3
    assert len(list(tmp_path.iterdir())) == 2


def test_a_cache_that_cannot_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_file("fits", "a.pt") == tmp_path / "clip-patchrank" / "fits" / "a.pt"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"patchrank.fits' can't be written to \(Not a directory\); .*XDG_CACHE"):
        cache_file("fits", "a.pt")


KINDS = pytest.mark.parametrize("kind", ["predictor", "prompts"])
MADE: dict[str, Any] = {"model": "m", "tag": "t", "provenance": {"images": 9}}
TUNED: dict[str, Any] = {"weights": "0" * 16, "width": 48, "classes": ("a", "b", "c"), "dataset": "toy", "recipe": {}}


def make(kind: str, folder: Path) -> Path:
    path = folder / "learned.safetensors"
    if kind == "predictor":
        config = FitConfig(arch="mlp", width=8)
        save_predictor(Predictor("mlp", 48, 8, (8, 8)), path, config=config, block=3, **MADE)
    else:
        tensors = {"classifier": torch.eye(3), "logit_scale": torch.tensor(1.0), "visual": torch.ones(2, 48)}
        save_prompts(path, tensors, **MADE, **TUNED)
    return path


def load(kind: str, path: Path) -> dict[str, Tensor]:
    return (PredictorFile if kind == "predictor" else PromptFile).read(path).load()


def contents(kind: str, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    facts = read_facts(path, kind)
    facts.pop("hash")
    return facts, load_file(path)


@KINDS
def test_one_flipped_bit_anywhere_is_refused_by_the_file_s_name(kind: str, tmp_path: Path):
    path = make(kind, tmp_path)
    whole = path.read_bytes()
    assert load(kind, path)
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=r"learned\.safetensors'"):
            load(kind, path)


@KINDS
def test_values_that_are_not_finite_are_refused(kind: str, tmp_path: Path):
    path = make(kind, tmp_path)
    facts, tensors = contents(kind, path)
    write_learned(path, kind, {name: torch.full_like(each, math.nan) for name, each in tensors.items()}, facts)
    with pytest.raises(ValueError, match=r"learned\.safetensors' has values that aren't finite in '") as caught:
        load(kind, path)
    assert caught.value.remedy == (kind, facts)


@pytest.mark.parametrize(("kind", "change"), [
    *[("predictor", metadata) for metadata in ("[]", "{", "[" * 100_000)],
    *[("prompts", facts) for facts in ({"model": 3}, {"path": "/etc/passwd"})],
    ("predictor", {"options": {"arch": ["mlp"], "width": 8}}),
    ("prompts", {"classes": "abc"}),
    ("prompts", {"shape": {"tokens": 1}}),
])  # fmt: skip
def test_metadata_of_another_form_is_refused_in_one_line(kind: str, change: Any, tmp_path: Path):
    path = make(kind, tmp_path)
    facts, tensors = contents(kind, path)
    if isinstance(change, str):
        save_file(tensors, path, {kind: change})
    else:
        write_learned(path, kind, tensors, facts | change)
    with pytest.raises(ValueError, match=rf"learned\.safetensors' holds no {kind}: ") as error:
        load(kind, path)
    assert "\n" not in str(error.value)


NUMBERS: dict[str, Any] = {"reduce_at": (1, 2, 5), "schedule": (0.75, 0.5), "keep": 0.25}
SCHEDULE = ScheduleFile(
    **NUMBERS, model="clip_vit_b16", tag="openai", weights="0" * 16, method="rankmerge", options={"rank": "none"},
    cost={"match": "gflops", "of": "50 % of dense", "asked": 1.0, "reached": 1.0}, found=True,
    datasets=[{"name": "toy", "before": 0.2, "after": 0.1, "difference": [-0.1, -0.2, -0.05]}],
    candidates=3, seconds=1.5, version="0.1.0",
)  # fmt: skip


def test_any_tower_takes_the_numbers(tiny: Build, tmp_path: Path):
    path = tmp_path / "new" / "s.json"
    SCHEDULE.write(path)
    assert ScheduleFile.read(path) == SCHEDULE
    assert read_schedule(path) == read_schedule(str(path)) == NUMBERS
    named = tiny("clip_vit_b16_rankmerge60", **read_schedule(path))
    reduced = zoo.reduce(tiny("deit_small_patch16_224"), method="rankmerge", **read_schedule(path)).eval()
    for model in (named, reduced):
        assert asdict(model.reducer.config).items() >= NUMBERS.items()
        assert model.reducer.counts(64) == {1: 48, 2: 32, 5: 16}


@pytest.mark.parametrize(("change", "words"), [
    ({"format": 2}, "has format 2, this version reads 1"),
    ({"keep": 1.5}, "keep=1.5"),
    ({"schedule": [0.5, 0.75]}, r"schedule=\(0.5, 0.75\)"),
    ({"more": 1}, "more"),
    ({"keep": ...}, "missing field 'keep'"),
    ({"keep": "0.5"}, "keep must be float, got '0.5'"),
    ({"keep": math.nan}, "NaN is no number"),
    ({"reduce_at": [-1, 2, 5]}, r"reduce_at=\(-1, 2, 5\): expected block indices"),
    ({"candidates": 10**30}, "has 31 digits"),
    ({"options": {"rnak": "cls"}}, "rankmerge has no option 'rnak': did you mean 'rank'"),
    ({"method": "patchrank", "options": {"arch": ["mlp"]}}, r"arch=\['mlp'\]: did you mean 'mlp'"),
    ({"datasets": [{}]}, "'name' of a data set must be str, got None"),
    *((text, "schedule must be ScheduleFile, got ") for text in ("[]", "null", '"x"')),
    *((text, "holds no schedule") for text in ("{", "", "\0\1PAR1", '{"keep": 1, "keep": 1}', "[" * 100_000)),
    (None, "the file does not exist"),
])  # fmt: skip
def test_refused_schedules(change: Any, words: str, tmp_path: Path):
    path = tmp_path / "s.json"
    SCHEDULE.write(path)
    if isinstance(change, dict):
        facts = json.loads(path.read_text()) | change
        path.write_text(json.dumps({name: value for name, value in facts.items() if value is not ...}))
    elif change is None:
        path.unlink()
    else:
        path.write_text(change)
    with pytest.raises(FileNotFoundError if change is None else ValueError, match=words) as caught:
        read_schedule(path)
    assert repr(str(path)) in str(caught.value)
