"""Datasets of the hub: from the cache alone, until the network is asked for by --download."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import datasets
import pytest
from huggingface_hub import constants
from PIL import Image

from harness.datasets import get_dataset, names_of

ROOT = Path(__file__).parents[3]
SHA = "a" * 40


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """What a repository holds: two splits."""
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    found = {}
    datasets.disable_progress_bars()
    for split, shade in (("train", 1), ("test", 2)):
        image = io.BytesIO()
        Image.new("RGB", (4, 5), (shade, 0, 0)).save(image, "png")
        rows = {"image": [{"bytes": image.getvalue(), "path": None}] * 2, "label": [0, 1]}
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        file = tmp_path / "pets" / "data" / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(file)
        found[f"data/{file.name}"] = file.read_bytes()
    datasets.enable_progress_bars()
    return found


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the library's cache in a folder, and let it go to the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.socket.connect", pytest.fail)
    return tmp_path / "cache"


def test_what_the_cache_holds_is_read_without_a_network(tmp_path: Path, files, cache: Path):
    local = get_dataset(f"hfds:{tmp_path / 'pets'}")
    (cache / "pets").rename(cache / "ann___pets")  # as the library names what is from the hub
    shutil.rmtree(tmp_path / "pets")
    dataset = get_dataset("hfds:ann/pets")
    assert (dataset.name, dataset.asked_as) == ("hfds-ann-pets", "hfds:ann/pets")
    assert dataset.revision == local.revision
    assert [e.image.getpixel((0, 0)) for e in dataset.split("test")] == [(2, 0, 0)] * 2
    assert not datasets.config.HF_HUB_OFFLINE | constants.HF_HUB_OFFLINE
    with pytest.raises(ValueError, match=r"can't be read: .*config 'x'.*\['default'\].*--download"):
        get_dataset("hfds:ann/pets#config=x")


def test_what_it_lacks_is_told_with_ways_to_get_it(cache: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FileNotFoundError) as caught:
        names_of(["hfds:ann/pets#config=small"])
    for text in (
        f"dataset 'ann/pets' of the hub is not in the cache of `datasets`, '{cache}'",
        "--download gets it",
    ):
        assert text in str(caught.value)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    match = r"'ann/pets' of the hub can't be opened: .*HF_HUB_OFFLINE is"
    with pytest.raises(OSError, match=match):
        names_of(["hfds:ann/pets"], download=True)


class Hub(ThreadingHTTPServer):
    """A hub with one dataset on this machine; ``asked`` is what it was asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def told(self, path: str) -> object:
        """What its API tells: of the repository, its top folder, or the folder of files."""
        if path.endswith(f"/tree/{SHA}"):
            return [{"type": "directory", "path": "data", "oid": "0" * 40}]
        if "/tree/" in path:
            sizes = {name: len(content) for name, content in self.files.items()}
            facts = {"type": "file", "oid": "0" * 40}
            return [{"path": name, "size": size, **facts} for name, size in sizes.items()]
        names = [{"rfilename": name} for name in self.files]
        return {"id": "ann/pets", "sha": SHA, "siblings": names, "private": False, "tags": []}


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        content = self.server.files.get(path.partition(f"resolve/{SHA}/")[2])
        if path.startswith("/api/datasets/ann/pets"):
            self.answer(json.dumps(self.server.told(path)).encode())
        elif content is not None:
            self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')
        else:
            self.answer(b"{}", 404, **{"X-Error-Code": "EntryNotFound"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        headers |= {"X-Repo-Commit": SHA, "Content-Length": str(len(content))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    with Hub(files) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, hub: Hub) -> Run:
    """Run the command in a process of its own, since the hub's address is read at import."""
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}

    def call(*flags: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "harness", "datasets", "check", *flags]
        env = {**os.environ, **own, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    return call


def test_only_download_goes_to_the_network(run: Run, hub: Hub, tmp_path: Path):
    code, text = run("hfds:ann/pets", "--fast")
    assert (code, hub.asked) == (2, [])
    assert f"is not in the cache of `datasets`, '{tmp_path / 'hf' / 'datasets'}'" in text
    code, text = run("hfds:ann/pets", "--fast", "--download")
    assert "4 images listed, no problem found" in text
    assert sum(path.endswith(".parquet") for path in hub.asked) >= 2
    hub.asked.clear()
    code, text = run("hfds:ann/pets")
    assert (code, hub.asked) == (1, [])
    assert "images that are in two classes, pixel for pixel: 2" in text


def test_a_dataset_with_a_script_is_refused(run: Run, files: dict[str, bytes], tmp_path: Path):
    files["pets.py"] = f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
    code, text = run("hfds:ann/pets", "--download")
    assert (code, (tmp_path / "ran").exists()) == (2, False)
    assert "can't be read: Dataset scripts are no longer supported, but found pets.py" in text
