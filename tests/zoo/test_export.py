"""Models exported and compiled: every method, what a runtime that errs leaves behind, refusals."""

import contextlib
import errno
import importlib
import json
import logging
import os
import re
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lively import Build
from some_budgets import adaptive, pictures
from torch import Tensor, nn

import zoo
from zoo.core import attention
from zoo.core.errors import NoRoomError
from zoo.deploy import export
from zoo.deploy.export import (
    DisagreementError,
    FeatureAgreement,
    copy_exported,
    export_model,
    load_exported,
    read_description,
    read_digest,
)
from zoo.deploy.graph import record_graph
from zoo.deploy.quantization import INT8, is_made_for_int8
from zoo.deploy.runtime import AOTI, EXPORTED_PROGRAM, ONNXRUNTIME, OPENVINO, RUNTIMES, TOLERANCES, Prepared, Target

pytestmark = pytest.mark.usefixtures("no_grad")
BATCHES = (1, 2, 5)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(7, 3, 64, 64)


@pytest.fixture
def make(tiny: Build) -> Build:
    """Build a tower of three blocks that loses half of its patches in the second."""
    return lambda method, **options: tiny(f"clip_vit_b16_{method}50", **{"depth": 3, "reduce_at": 1, **options})


def check_same(call: Callable[[Tensor], Tensor], model: nn.Module) -> None:
    """Compare at other batch sizes than what was recorded with."""
    for count in BATCHES:
        images = torch.randn(count, 3, 64, 64)
        assert torch.allclose(call(images), model(images), atol=1e-5)


def check_again(path: Path, model: nn.Module) -> None:
    check_same(load_exported(path, threads=1), model)


def needs(*packages: str) -> None:
    for package in packages:
        pytest.importorskip(package, reason="needs the extra `export`")


# The others' operations are in these: evit's in evitfuse, clsattn's in tca, tome's in tofu.
OTHERS = sorted(zoo.METHODS.keys() - {"atc", "clsattn", "evit", "tome"})


@pytest.mark.parametrize("method", [*OTHERS, pytest.param("atc", marks=pytest.mark.slow)])
def test_every_method_in_onnx_runtime(method: str, make: Build, images: Tensor, tmp_path: Path):
    needs("onnxscript", "onnxruntime")
    half, path = make(method), tmp_path / "model.onnx"
    agreement = export_model(half, path, images, runtime=ONNXRUNTIME, batches=BATCHES, facts={"tower": "tiny"})
    assert agreement.deviation < 1e-4
    model = importlib.import_module("onnx").load(path)
    scatters = [node for part in (model.graph, *model.functions) for node in part.node if "Scatter" in node.op_type]
    assert not any(a.s == b"add" for node in scatters for a in node.attribute)  # TensorRT errs in scattered sums
    assert not scatters or method not in ("atc", "pitome", "rankmerge")  # what they merge is a product
    assert agreement.batches == BATCHES
    check_again(path, half)
    about = json.loads(path.with_name("model.onnx.json").read_text())
    assert (about["method"], about["tower"]) == (half.reducer.method, "tiny")
    assert about["options"] == half.reducer.config.plain()
    assert about["weights_sha256"] == zoo.core.digests.fingerprint(half)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.json"]


# Those with most ties: sorts of zeros and ones, a hash in 64 bits, and one that no sort can change.
@pytest.mark.parametrize("method", ["rankmerge", "tca", "random"])
def test_methods_in_openvino(method: str, make: Build, images: Tensor, tmp_path: Path):
    needs("openvino")
    model = make(method)
    export_model(model, tmp_path / "model.xml", images, runtime=OPENVINO, batches=BATCHES)
    check_again(tmp_path / "model.xml", model)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.bin", "model.xml", "model.xml.json"]


@pytest.mark.parametrize(("recipe", "count"), [("static", 14), ("static-ends", 6), ("static-down", 11), ("weights", 0)])
def test_int8_leaves_what_chooses_tokens_in_float(recipe: str, count: int, make: Build, tmp_path: Path):
    needs("openvino", "nncf")
    path, pictures = tmp_path / "model.xml", torch.randn(71, 3, 64, 64)
    how = {"runtime": OPENVINO, "precision": INT8, "recipe": recipe, "calibration": pictures[7:]}
    export_model(make("rankmerge"), path, pictures[:7], **how)
    graph = importlib.import_module("openvino").Core().read_model(path)
    products = [node for node in graph.get_ops() if node.get_type_name() in ("MatMul", "Convolution")]
    kinds = [[value.get_node().get_type_name() for value in node.input_values()] for node in products]
    assert sum("FakeQuantize" in each for each in kinds) == count


COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
RANKED = {"rank": "cls", "rank_at": 1}


@pytest.mark.parametrize("runtime", [EXPORTED_PROGRAM, OPENVINO])
def test_an_adaptive_tower_has_a_file_for_each_budget(runtime: str, tiny: Build, tmp_path: Path):
    """They give what the tower gives, wherever they were copied to."""
    images = pictures(64)
    vit = adaptive(tiny("clip_vit_b16", depth=3), images, reduce_at=1, cost=0.8)
    suffix, other = RUNTIMES[runtime].suffix, {EXPORTED_PROGRAM: OPENVINO, OPENVINO: EXPORTED_PROGRAM}[runtime]
    needs("openvino")
    path = tmp_path / "there" / f"m{suffix}"
    export_model(vit, path, images, runtime=runtime)
    copy = copy_exported(path, tmp_path / f"n{suffix}")
    assert read_description(copy).budget_files == tuple(f"n.keep{percent}{suffix}" for percent in (100, 75, 50))
    assert len(vit.assign(images).unique()) == 3
    assert torch.allclose(load_exported(copy)(images), vit(images), atol=1e-5)
    assert read_digest(copy) == read_digest(path)
    beside = tmp_path / f"n.keep50{suffix}.json"
    whole = beside.read_text()
    beside.write_text(json.dumps(json.loads(whole) | {"runtime": other}))
    with pytest.raises(ValueError, match=rf"n\.keep50{suffix}' (is for {other}|has the ending)"):
        load_exported(copy)
    beside.unlink()
    with pytest.raises(FileNotFoundError, match="keep50"):
        load_exported(copy)


@pytest.mark.parametrize(("runtime", "method", "options"), [
    (EXPORTED_PROGRAM, "clsattn", {}),
    (EXPORTED_PROGRAM, "patchrank", {"arch": "mixer"}),
    (EXPORTED_PROGRAM, "patchrank", {"arch": "transformer", "reduce_at": [0, 1]}),
    (EXPORTED_PROGRAM, "rankmerge", RANKED),
    pytest.param(AOTI, "rankmerge", RANKED, marks=[pytest.mark.slow, COMPILER]),
])  # fmt: skip
def test_programs_of_torch(runtime: str, method: str, options: dict, make: Build, images: Tensor, tmp_path: Path):
    model = make(method, **options)
    path = tmp_path / "model[1].pt2"
    export_model(model, path, images, runtime=runtime)
    check_again(path, model)


def test_merging_is_recorded_without_scattered_sums(make: Build, images: Tensor):
    program = torch.export.export(make("tome"), (images,))
    sums = [node.name for node in program.graph.nodes if re.search("scatter_[ar]|index_[ap]", str(node.target))]
    assert sums == []


def test_a_graph_of_many_keys_has_a_free_batch_size(make: Build, images: Tensor, monkeypatch):
    monkeypatch.setattr(attention, "LONG", 8)
    model = make("rankmerge")
    check_same(record_graph(model, images[:2], "float32").module(), model)


def test_lower_precision_is_measured_and_bounded(make: Build, images: Tensor, tmp_path: Path):
    model, path = make("clsattn"), tmp_path / "model.pt2"
    how = {"runtime": EXPORTED_PROGRAM, "precision": "bfloat16"}
    agreement = export_model(model, path, images, least_cosine=0.5, **how)
    assert 0.5 < agreement.cosine_q05 <= agreement.cosine_mean < 1
    before = path.read_bytes()
    with pytest.raises(DisagreementError, match=r"0\.\d+, below 1"):
        export_model(model, path, images, least_cosine=1.0, **how)
    assert path.read_bytes() == before


def test_a_wrong_runtime_leaves_nothing_behind(tiny: Build, images: Tensor, tmp_path: Path, monkeypatch):
    runtime = RUNTIMES[EXPORTED_PROGRAM]
    load = runtime.load

    def off_by_a_bit(path: Path, precision: str, threads: int, recipe: str | None = None) -> Prepared:
        prepared = load(path, precision, threads)
        return replace(prepared, call=lambda images: prepared.call(images) * torch.tensor([1.01, *[1.0] * 6]))

    monkeypatch.setattr(runtime, "load", off_by_a_bit)
    with pytest.raises(DisagreementError, match=r"by 0\.00\d+") as caught:
        export_model(tiny("clip_vit_b16"), tmp_path / "model.pt2", images, runtime=EXPORTED_PROGRAM)
    assert caught.value.agreement.deviation > runtime.tolerance("float32").deviation
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rooms", [[True, True], [True, False], [False]])  # before and after the writer fails
def test_a_full_disk_is_told(rooms: list[bool], tiny: Build, images: Tensor, tmp_path: Path, monkeypatch):
    def write(model: nn.Module, path: Path, *_: object) -> None:
        path.write_bytes(b"PK")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0")

    def allocate(handle: int, start: int, size: int) -> None:
        if not next(room):
            raise OSError(errno.ENOSPC, "No space left on device")

    model, path, room, free = tiny("clip_vit_b16"), tmp_path / "model.pt2", iter(rooms), rooms[-1]
    needed = 4 * sum(weight.numel() for weight in model.parameters()) + export.GRAPH
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    monkeypatch.setattr(RUNTIMES[EXPORTED_PROGRAM], "write", write)
    text = "PytorchStreamWriter" if free else rf"model\.pt2': the disk is full; {needed:,} bytes needed, [\d,]+ free"
    with pytest.raises(RuntimeError if free else NoRoomError, match=text):
        export_model(model, path, images, runtime=EXPORTED_PROGRAM)
    assert list(tmp_path.iterdir()) == []


def test_agreement_by_hand():
    eager = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    turned = torch.tensor([[1.0, 0.0], [0.9, 0.1], [1.0, 0.0]])  # the last one's features are the first one's
    agreement = FeatureAgreement.of([turned], eager, (3,))
    assert agreement.deviation == pytest.approx(2**0.5)
    assert agreement.median_deviation == 0
    assert agreement.cosine_mean == pytest.approx(2 / 3)
    assert agreement.same_nearest == pytest.approx(1 / 3)
    # One image of 2,000 whose tokens nearly tie is no reason to refuse a reduced model, one of three is.
    many = FeatureAgreement.of([turned[[0] * 1999 + [2]]], eager[[0] * 1999 + [2]], (2000,))
    exact = "float32", TOLERANCES["float32"]
    for one, reduced, refused in ((many, True, False), (many, False, True), (agreement, True, True)):
        assert bool(one.problem(*exact, reduced=reduced)) == refused
    assert FeatureAgreement.of([eager, eager], eager, (1, 3)).problem(*exact) == ""
    # Of two equal images either may be the nearest.
    twins = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1e-9]])
    assert FeatureAgreement.of([twins.flip(0)], twins, (3,)).same_nearest == 1
    assert "nan" in FeatureAgreement.of([eager * torch.nan], eager, (3,)).problem(*exact)


@pytest.mark.parametrize(("runtime", "package"), [(ONNXRUNTIME, "onnxruntime"), (OPENVINO, "openvino")])
def test_examples_of_the_guide(runtime: str, package: str, make: Build, tmp_path: Path, monkeypatch):
    needs(*{"onnxscript", package} if runtime == ONNXRUNTIME else {package})
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text("utf-8")
    [code] = re.findall(rf"<!-- example: {runtime} -->\n```python\n(.*?)```", page, re.S)
    model = make("random", img_size=196, patch_size=28)
    monkeypatch.chdir(tmp_path)
    export_model(model, Path(f"model{RUNTIMES[runtime].suffix}"), torch.randn(3, 3, 196, 196), runtime=runtime)
    values: dict = {}
    exec(code, values)
    assert torch.allclose(torch.tensor(values["features"]), model(torch.zeros(4, 3, 196, 196)), atol=1e-5)


@pytest.mark.parametrize(("wrong", "message"), [
    ({"runtime": "openvin"}, "'openvin': did you mean 'openvino'"),
    ({"runtime": "eager"}, "'eager' has no files"),
    ({"precision": "int8"}, "'int8'"),
    ({"path": "model.onnx"}, r"model\.onnx"),
    ({"images": torch.zeros(1, 3, 64, 64)}, r"\(1, 3, 64, 64\)"),
    ({"images": torch.zeros(2, 3, 64, 64).half()}, r"torch\.float16"),
    ({"model": lambda tiny: tiny("clip_vit_b16").train()}, "training mode"),
    ({"model": lambda tiny: tiny("clip_vit_b16").bfloat16()}, "bfloat16 on cpu"),
    ({"model": lambda tiny: tiny("clip_vit_b16", global_pool="")}, "no features"),
])  # fmt: skip
def test_refused(wrong: dict, message: str, tiny: Build, images: Tensor, tmp_path: Path):
    how = {"path": "model.pt2", "images": images, "runtime": EXPORTED_PROGRAM} | wrong
    make = how.pop("model", lambda tiny: tiny("clip_vit_b16"))
    with pytest.raises(ValueError, match=message):
        export_model(make(tiny), tmp_path / how.pop("path"), **how)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_exported_models(tiny: Build, images: Tensor, tmp_path: Path, evil):
    path = tmp_path / "model.pt2"
    with pytest.raises(FileNotFoundError, match=r"model\.pt2"):
        load_exported(path)
    export_model(tiny("clip_vit_b16"), path, images, runtime=EXPORTED_PROGRAM)
    torch.save(evil, tmp_path / "evil.pt")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    [name] = [name for name in parts if "sample_inputs" in name]  # what torch falls back to unpickling
    parts[name] = (tmp_path / "evil.pt").read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        for each, content in parts.items():
            archive.writestr(each, content)
    with pytest.raises(ValueError, match="would be unpickled"):
        load_exported(path)
    assert not evil.mark.exists()
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="no exported program"):
        load_exported(path)
    (tmp_path / "model.pt2.json").write_text("{}")
    with pytest.raises(ValueError, match="doesn't describe an exported model"):
        load_exported(path)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check_compiled(model: nn.Module, images: Tensor, backend: str) -> None:
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    assert torch.allclose(compiled(images), model(images), atol=1e-4)


# What evit and tome run is in evitfuse and tofu.
CASES = [(method, {}) for method in sorted(set(zoo.METHODS) - {"evit", "tome"})]
CASES += [("patchrank", {"arch": "transformer", "reduce_at": [0, 1]}), ("patchrank", {"arch": "mixer"})]


@pytest.mark.parametrize(("method", "options"), CASES, ids=str)
def test_compiles_in_one_graph(method: str, options: dict, make: Build, images: Tensor):
    check_compiled(make(method, **options), images, "aot_eager")


def test_an_optimised_model_compiles_in_one_graph(tiny: Build, images: Tensor):
    check_compiled(zoo.optimize(tiny("clip_vit_b16_tome50", depth=2, keep=0.6)), images, "aot_eager")


@pytest.mark.slow
@COMPILER
def test_compiles_to_machine_code(tiny: Build, images: Tensor):
    check_compiled(tiny("clip_vit_b16_tome50", depth=3, keep=0.6), images, "inductor")


@pytest.mark.parametrize("runtime", [name for name, each in RUNTIMES.items() if INT8 in each.precisions])
def test_int8_needs_vnni(runtime: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx_vnni": False}, raising=False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("zoo.deploy.runtime.is_made_for_int8", is_made_for_int8)
    assert "int8 needs a processor with VNNI" in RUNTIMES[runtime].refusal(INT8)
    assert "VNNI" in RUNTIMES[runtime].refusal(INT8, loading=True)
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert "VNNI" not in RUNTIMES[runtime].refusal(INT8)


@pytest.mark.parametrize("error", [None, ImportError("initialization failed")])
def test_ctrl_c_while_openvino_translates_stops(error: Exception | None, monkeypatch: pytest.MonkeyPatch):
    """It may go on, or raise an error of its own."""
    needs("openvino")

    def swallow(_: Any) -> None:
        handler: Any = signal.getsignal(signal.SIGINT)
        with contextlib.suppress(KeyboardInterrupt):
            handler(signal.SIGINT, None)  # as a signal would, of which xdist's workers die at times
        if error is not None:
            raise error

    monkeypatch.setattr("openvino.convert_model", swallow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background hasn't
    try:
        with pytest.raises(KeyboardInterrupt):
            RUNTIMES[OPENVINO].make(Pool().eval(), Target(torch.rand(2, 3, 8, 8), "float32", None, None, None))
    finally:
        signal.signal(signal.SIGINT, before)


def test_openvino_reports_to_nobody():
    needs("openvino")
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__.endswith("telemetry_stub")


class Pool(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, 0]).mean(1)


@pytest.mark.parametrize(("calibration", "quoted"), [
    (lambda pictures: pictures[:1].expand(100, -1, -1, -1), "1 different pictures to calibrate with, of 100"),
    (lambda pictures: pictures, "7 of 71 pictures to calibrate with are among the 7 that the model is checked on"),
])  # fmt: skip
def test_pictures_that_can_not_calibrate(calibration: Callable, quoted: str, tiny: Build, tmp_path: Path):
    needs("openvino", "nncf")
    pictures = torch.randn(71, 3, 64, 64)
    how = {"runtime": OPENVINO, "precision": INT8, "calibration": calibration(pictures)}
    with pytest.raises(ValueError, match=quoted):
        export_model(tiny("clip_vit_b16"), tmp_path / "model.xml", pictures[:7], **how)
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_that_openvino_refuses_leaves_the_log_as_it_was():
    needs("openvino")

    class Refused(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.qr(super().forward(x[:, 0])).R

    root = logging.root
    before = root.manager.disable, root.level, [*root.filters], [*root.handlers]
    with pytest.raises(Exception, match="qr"):
        RUNTIMES[OPENVINO].make(Refused(8, 8).eval(), Target(torch.rand(2, 3, 8, 8), "float32", None, None, None))
    assert (root.manager.disable, root.level, root.filters, root.handlers) == before
