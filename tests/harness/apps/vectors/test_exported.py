"""Exported files as models: vectors are the file's own numbers, searches and texts work, the rest is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import zoo
from harness.apps.vectors.embed import Embedded, Encoder, read_vectors
from harness.apps.vectors.search import query_vector
from harness.apps.vectors.source import open_source
from harness.cli.entry import main
from zoo.core.digests import weights_digest
from zoo.deploy.runtime import EXPORTED_PROGRAM, ONNXRUNTIME, OPENVINO, find_runtime
from zoo.deploy.setup import Setup
from zoo.loading.preprocessing import build_preprocessing
from zoo.loading.towers import load_tower


@pytest.fixture(scope="module")
def photos(draw: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(4):
        (folder / f"{number}.png").write_bytes(draw(number))
    return folder


@pytest.fixture(scope="module", params=[ONNXRUNTIME, OPENVINO, EXPORTED_PROGRAM])
def file(request: pytest.FixtureRequest, tower: str, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if why := find_runtime(request.param).refusal("float32"):
        pytest.skip(why)
    path = tmp_path_factory.mktemp("file") / f"model{find_runtime(request.param).suffix}"
    words = ["export", "--model", tower, "--method", "rankmerge", "--keep", "0.5", "--runtime", request.param]
    assert main([*words, "--images", str(photos), "--output", str(path)]) == 0
    return path


def test_vectors_are_the_files_own(file: Path, photos: Path, tower: str, run: Callable[..., Embedded]):
    done = run(model=str(file), source=open_source([str(photos)]), storage="float32")
    [vectors], model = list(read_vectors(done.path)), zoo.load_exported(file)
    preprocess = build_preprocessing(model.preprocessing)
    images = torch.stack([preprocess(Image.open(photos / name)) for name in vectors.names])
    np.testing.assert_allclose(vectors.embeddings, F.normalize(model(images)).numpy(), atol=1e-6)
    by_name = run(how={"method": "rankmerge", "keep": 0.5}, source=open_source([str(photos)]), out=file.parent / "name")
    assert np.abs(next(read_vectors(by_name.path)).embeddings - vectors.embeddings).max() < 2e-3  # stored in float16
    assert (vectors.provenance.runtime, vectors.provenance.weights) == (model.runtime, model.digest[:16])
    place, moved = ["--in", str(done.path)], file.parent / "moved" / file.name
    code = file.suffix == ".pt2"
    assert main(["search", str(photos / "2.png"), *place]) == (2 if code else 0)  # a .pt2 may be machine code
    shutil.copytree(file.parent, moved.parent, ignore=shutil.ignore_patterns("moved", "name*"))
    vector = query_vector(str(photos / "2.png"), vectors.provenance, file=str(moved))
    assert vector @ vectors.embeddings[2] > 1 - 1e-5
    assert main(["search", str(photos / "2.png"), *place, "--model", str(moved)]) == 0
    with pytest.raises(ValueError, match=r"no exported file; leave it out"):
        query_vector(str(photos / "2.png"), next(read_vectors(by_name.path)).provenance, file=str(moved))


def test_words_are_embedded_by_the_towers_own_text_tower(file: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"model\..* has no text tower"):
        Encoder(Setup.of(str(file))).texts(["red apple"])
    shutil.copytree(file.parent, tmp_path / "copy", ignore=shutil.ignore_patterns("moved", "name*"))
    described, clip = tmp_path / "copy" / f"{file.name}.json", load_tower("clip_vit_s14").require_clip()
    facts = {"tower": "clip_vit_s14", "text_weights": weights_digest(clip.model.text.state_dict())}
    described.write_text(json.dumps(json.loads(described.read_text()) | facts))
    setup = Setup.of(str(described.with_suffix("")))
    wanted, _ = Encoder(Setup.of("clip_vit_s14")).texts(["red apple"])
    np.testing.assert_array_equal(Encoder(setup).texts(["red apple"])[0], wanted)
    described.write_text(json.dumps(json.loads(described.read_text()) | {"text_weights": "0" * 16}))
    with pytest.raises(ValueError, match="clip_vit_s14 has other text weights now"):
        Encoder(setup).texts(["red apple"])


@pytest.mark.parametrize(("words", "quoted"), [
    ("--method tome --keep 0.5", "with --method: an exported file is fixed"),
    ("--precision bfloat16", "with --precision: an exported file is fixed"),
    ("--runtime eager", "with --runtime: an exported file is fixed"),
    ("--random-weights", "--random-weights with model."),
    ("--device meta", "runs on cpu alone, not on meta"),
])  # fmt: skip
def test_refusals(words: str, quoted: str, file: Path, photos: Path, tmp_path: Path, capsys: Any):
    command = ["embed", str(photos), "--model", str(file), "--output", str(tmp_path / "out")]
    assert main([*command, *words.split()]) == 2
    assert quoted in capsys.readouterr().err


def test_a_file_without_its_description_is_refused(photos: Path, tmp_path: Path, capsys: Any):
    command = ["embed", str(photos), "--model", str(tmp_path / "x.onnx"), "--output", str(tmp_path / "out")]
    assert main(command) == 2
    assert "no exported model at" in capsys.readouterr().err
    (tmp_path / "x.onnx").touch()
    assert main(command) == 2
    assert "has no x.onnx.json beside it" in capsys.readouterr().err
