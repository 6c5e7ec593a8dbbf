"""Write a model, dense or reduced, as a file that another runtime runs, and hold that runtime to the eager model.

A file maps images (B, 3, H, W) float32 to features (B, D) float32, for any B. A JSON file beside it says what it is.
"""

import copy
import glob
import io
import itertools
import json
import logging
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.core.digests import fingerprint
from zoo.core.errors import add_remedy, no_room
from zoo.core.files import PARTIAL, write_whole
from zoo.core.host import Host
from zoo.core.json_reader import strict_json
from zoo.core.settings import PRECISIONS, expected, torch_dtype

Call = Callable[[Tensor], Tensor]

EXPORTED_PROGRAM, AOTI, ONNX, OPENVINO = "exported-program", "aoti", "onnx", "openvino"
DEVIATION = 1e-3  # of the features' length, allowed in float32
LEAST_COSINE, LEAST_FLOAT32 = 0.99, 0.999  # on average, in lower precision and in float32
TIED = 1e-5  # two images this equally similar to a third are both its nearest
BATCHES = (2, 5)  # images per call when a file is checked
GRAPH = 2**22  # bytes beside the weights that a file takes at most
_IN, _OUT = "images", "features"
_OPENVINO = {"float32": ("FP32", "f32"), "bfloat16": ("BF16", "bf16"), "float16": ("FP16", "f16")}  # ability, hint


@dataclass(frozen=True, kw_only=True)
class FeatureAgreement:
    """How features of an exported file agree with the eager float32 model's on real images."""

    images: int  # how many were run, once per batch size
    batches: tuple[int, ...]  # images per call
    deviation: float  # largest difference of an image's features, by their length
    median_deviation: float
    cosine_mean: float  # of an image's features with the eager ones
    cosine_q05: float  # its 5 % quantile
    same_nearest: float  # share of images whose nearest other image is the same

    @classmethod
    def of(cls, features: Sequence[Tensor], eager: Tensor, batches: Sequence[int]) -> "FeatureAgreement":
        """Compare features (n, D), one tensor per batch size, with the eager model's (n, D)."""
        ours, wanted = torch.stack(list(features)).double(), eager.double()
        deviations = ((ours - wanted).norm(dim=2) / wanted.norm(dim=1)).flatten()
        cosine = F.cosine_similarity(ours, wanted, dim=2).flatten()
        # An image's nearest other one by our features has to be the nearest by the eager ones, or to tie with it.
        theirs, mine = (F.normalize(x, dim=-1) @ F.normalize(x, dim=-1).mT for x in (wanted, ours))
        own = torch.eye(len(eager), dtype=torch.bool)
        nearest = mine.masked_fill(own, -2.0).argmax(dim=2, keepdim=True)
        best = theirs.masked_fill_(own, -2.0).amax(dim=1)
        same = theirs.expand_as(mine).gather(2, nearest).squeeze(2) >= best - TIED
        return cls(
            images=len(eager),
            batches=tuple(batches),
            deviation=float(deviations.max()),
            median_deviation=float(deviations.median()),
            cosine_mean=float(cosine.mean()),
            cosine_q05=float(cosine.quantile(0.05)),
            same_nearest=float(same.double().mean()),
        )

    def problem(self, dtype: str, least_cosine: float = LEAST_COSINE, *, reduced: bool = False) -> str:
        """Say why the file may not be used, nothing if it may; near ties may move images of a ``reduced`` model."""
        if dtype == "float32":
            if not (self.median_deviation if reduced else self.deviation) <= DEVIATION:  # NaN, too
                size = f"{self.deviation:.2g} of their length (median {self.median_deviation:.2g})"
                return f"features differ from eager's by {size}, above {DEVIATION:g}"
            if self.same_nearest < 1 and not reduced:
                return f"the nearest image is another one for {100 * (1 - self.same_nearest):.1f} % of the images"
            least_cosine = LEAST_FLOAT32
        if not self.cosine_mean >= least_cosine:
            return f"the mean cosine with eager float32 is {self.cosine_mean:.5f}, below {least_cosine:g}"
        return ""


class DisagreementError(RuntimeError):
    """An exported file computes something else than the model; it was not kept."""

    def __init__(self, text: str, agreement: FeatureAgreement) -> None:
        super().__init__(text)
        self.agreement = agreement


def export_model(
    model: nn.Module,
    path: str | Path,
    images: Tensor,
    *,
    format: str,
    dtype: str = "float32",
    batches: Sequence[int] = BATCHES,
    least_cosine: float = LEAST_COSINE,
    facts: Mapping[str, Any] | None = None,
    tick: Callable[[int], object] = lambda _: None,
) -> FeatureAgreement:
    """Write a model for a runtime, run real images through that runtime, and keep the file if it agrees.

    Args:
        model: a tower with features (B, D) as output, in float32 on the CPU and in evaluation mode.
        path: file to write; ``FORMATS`` says how it ends. OpenVINO has a ``.bin`` beside it.
        images: (n, 3, H, W) float32 preprocessed real images, two at least.
        format: of ``FORMATS``.
        dtype: precision, of the format's.
        batches: images per call in the check.
        least_cosine: mean with the eager float32 features, in lower precision; for float32 see ``problem``.
        facts: more JSON values for the file beside it.
        tick: takes the number of images checked so far, of ``len(batches) * n``.

    Raises:
        ValueError: a format, precision, path or model that doesn't fit, or a package that is missing.
        DisagreementError: the runtime gives other features; nothing is left at ``path``.
        NoRoomError: there is no room on the disk.
    """
    path = Path(path)
    kind = require_format(format, dtype, path=path)
    _require_model(model, images)
    with torch.no_grad():
        first = model(images[:2])
        if not isinstance(first, Tensor) or first.ndim != 2:
            given = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
            raise ValueError(f"{type(model).__name__} gives no features (B, D) but {given}: expected a pool")
        eager = torch.cat([model(part) for part in images.split(max(batches))])
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without gradients: exporters cannot undo views of what needs them.
    size = 8 if format == OPENVINO else torch_dtype(dtype).itemsize  # float32, with ONNX's file beside it
    weights = sum(weight.numel() for weight in model.parameters()) * size
    real = Path(os.path.realpath(path))
    _require_room(real, weights + GRAPH)  # torch's writer aborts the process later
    beside: dict[str, Any] = {"prefix": f".{real.name}.", "suffix": PARTIAL, "dir": real.parent}
    with tempfile.TemporaryDirectory(**beside) as folder, _quiet(), torch.no_grad():
        # Under its final name, which files with weights apart keep inside.
        place = Path(folder) / path.name
        try:
            kind.write(model, place, images[:2], dtype)
        except Exception:  # some writers say in their own words that the disk is full
            written = sum(file.stat().st_size for file in Path(folder).iterdir())
            shutil.rmtree(folder)
            _require_room(real, max(weights, written) + GRAPH)
            raise
        call = kind.load(place, dtype, torch.get_num_threads())
        features, done = [], 0
        for part in itertools.chain.from_iterable(images.split(batch) for batch in batches):
            features.append(call(part))
            done += len(part)
            tick(done)
        agreement = FeatureAgreement.of(torch.cat(features).split(len(images)), eager, batches)
        if problem := agreement.problem(dtype, least_cosine, reduced=getattr(model, "reducer", None) is not None):
            raise DisagreementError(f"{format} in {dtype}: {problem}; {path.name} was not written", agreement)
        about = {**_describe(model), "features": eager.shape[1], **(facts or {}), "format": format, "dtype": dtype}
        about["agreement"] = asdict(agreement)
        write_whole(_about(path), (json.dumps(about, indent=2, allow_nan=False) + "\n").encode())
        # The file that is asked for comes last: who finds it finds the others.
        for file in sorted(Path(folder).glob(f"{glob.escape(path.stem)}.*"), key=lambda file: file == place):
            write_whole(path.with_name(file.name), file)
    return agreement


def _require_room(path: Path, size: int) -> None:
    """Raise NoRoomError if ``size`` bytes can't be written beside ``path``."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as full:
        if (told := no_room(path, size, full)) is not None:
            raise told from full
    except AttributeError:  # not on macOS and Windows
        pass


def as_runtime(model: nn.Module, images: Tensor, *, format: str, dtype: str = "float32") -> Call:
    """Return a model as a format's runtime runs it, unchecked; see ``export_model``; two ``images`` are enough."""
    kind = require_format(format, dtype)
    _require_model(model, images)
    # What comes of inference mode can't be recorded.
    with tempfile.TemporaryDirectory() as folder, _quiet(), torch.inference_mode(mode=False), torch.no_grad():
        place = Path(folder) / f"model{kind.suffix}"
        kind.write(model, place, images[:2].clone(), dtype)
        return kind.load(place, dtype, torch.get_num_threads())


def load_exported(path: str | Path, *, threads: int | None = None) -> Call:
    """Return what maps images (B, 3, H, W) to features (B, D) float32, run by the runtime that a file is for.

    ONNX and OpenVINO files are data. Torch evaluates expressions in an exported program, and an AOTInductor package is
    machine code: load only those that somebody wrote whom you trust.

    Args:
        path: what ``export_model`` wrote, with the JSON file beside it.
        threads: of ONNX Runtime and OpenVINO; None for torch's number. Torch's own formats go by torch's.

    Raises:
        FileNotFoundError: no such file, or no JSON file beside it.
        ValueError: not such a file, or a package that is missing.
    """
    path = Path(path)
    beside = _about(path)
    for file in (path, beside):
        if not file.is_file():
            raise add_remedy(FileNotFoundError(f"no exported model at {str(file)!r}"), "exported model")
    try:
        about = strict_json(beside.read_bytes())
        format, dtype = about["format"], about["dtype"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(beside)!r} doesn't describe an exported model: {error!r}") from error
    kind = require_format(format, dtype, path=path, writing=False)
    with _quiet():
        return kind.load(path, dtype, threads or torch.get_num_threads())


def _about(path: Path) -> Path:
    """Return the place of the JSON file that describes an exported one."""
    return path.with_name(f"{path.name}.json")


def _describe(model: nn.Module) -> dict[str, Any]:
    facts: dict[str, Any] = {"version": version("clip-patchrank"), "method": None, "options": {}}
    if isinstance(model, Host):
        facts |= {"weights_sha256": fingerprint(model), "image_size": list(model.input_size)}
        if model.reducer is not None:
            facts |= {"method": model.reducer.method, "options": model.reducer.config.plain()}
    return facts


class Served(nn.Module):
    """A model, in lower precision a copy, behind float32 images and features."""

    def __init__(self, model: nn.Module, dtype: str) -> None:
        super().__init__()
        self.dtype = torch_dtype(dtype)
        self.model = model if self.dtype == torch.float32 else copy.deepcopy(model).to(self.dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) float32 to features (B, D) float32."""
        features: Tensor = self.model(images.to(self.dtype))
        return features.float()


def _record(model: nn.Module, images: Tensor, dtype: str) -> Any:
    """Record a model as a graph of a free batch size; ``images`` are an example of two."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    return torch.export.export(Served(model, dtype).eval(), (images,), dynamic_shapes=({0: batch},))


def _write_program(model: nn.Module, path: Path, images: Tensor, dtype: str) -> None:
    program = _record(model, images, dtype)
    program._example_inputs = None  # else they are pickled into the file
    torch.export.save(program, path)


def _load_program(path: Path, _dtype: str, _threads: int) -> Call:
    _refuse_pickles(path)
    return torch.no_grad()(torch.export.load(path).module())


def _refuse_pickles(path: Path) -> None:
    """Raise ValueError if torch would unpickle a part of an exported program; of ours it doesn't."""
    try:
        with zipfile.ZipFile(path) as archive:
            for file in archive.infolist():
                if file.filename.endswith("_config.json"):
                    entries = json.loads(archive.read(file))["config"].values()
                    odd = any(one["use_pickle"] or "obj" in one["path_name"] for one in entries)
                else:
                    odd = file.filename.endswith(".pt") and file.file_size > 0
                if odd:
                    raise ValueError(f"{str(path)!r}: {file.filename} would be unpickled, which can run any code")
    except (zipfile.BadZipFile, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} is no exported program: {error!r}") from error


def _write_aoti(model: nn.Module, path: Path, images: Tensor, dtype: str) -> None:
    from torch._inductor import aoti_compile_and_package

    aoti_compile_and_package(_record(model, images, dtype), package_path=str(path))


def _load_aoti(path: Path, _dtype: str, _threads: int) -> Call:
    from torch._inductor import aoti_load_package

    return torch.no_grad()(aoti_load_package(str(path)))


def _write_onnx(model: nn.Module, path: Path, images: Tensor, _dtype: str) -> None:
    from onnxscript import opset18 as op

    # ONNX has no stable sort, but TopK, which breaks ties by the lower index as we do.
    def stable_sort(x: Any, dim: int = -1, descending: bool = False, **_stable: Any) -> Any:
        count = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
        values, indices = op.TopK(x, count, axis=dim, largest=descending, sorted=1)
        return values, indices

    program = torch.onnx.export(
        _record(model, images, "float32"),
        input_names=[_IN],
        output_names=[_OUT],
        dynamo=True,
        verbose=False,
        custom_translation_table={
            torch.ops.aten.sort.stable: stable_sort,
            torch.ops.aten._is_all_true.default: op.Identity,  # for asserts, which are left out
        },
    )
    assert program is not None
    # One file as long as protobuf can hold it.
    apart = sum(weight.nbytes for weight in model.parameters()) > 1.9e9
    program.save(str(path), external_data=apart)


def _load_onnx(path: Path, _dtype: str, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([_OUT], {_IN: images.contiguous().numpy()})[0])


def _write_openvino(model: nn.Module, path: Path, images: Tensor, _dtype: str) -> None:
    import openvino
    from openvino import opset11

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder) / "model.onnx"
        _write_onnx(model, whole, images, "float32")
        graph = openvino.Core().read_model(whole)
        # All sorts break ties by the lower index, which OpenVINO's reading of ONNX leaves open.
        for node in [node for node in graph.get_ops() if node.get_type_name() == "TopK"]:
            how, inputs = node.get_attributes(), [node.input_value(0), node.input_value(1)]
            axis, kind, mode, order = (how[key] for key in ("axis", "index_element_type", "mode", "sort"))
            other = opset11.topk(*inputs, axis, mode, order, index_element_type=kind, stable=True)
            for index in range(2):
                node.output(index).replace(other.output(index))
        openvino.save_model(graph, path, compress_to_fp16=False)


def _load_openvino(path: Path, dtype: str, threads: int) -> Call:
    import openvino

    core = openvino.Core()
    ability, hint = _OPENVINO[dtype]
    if ability not in (able := core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")):
        raise ValueError(f"OpenVINO computes no {dtype} on this CPU: expected one of {', '.join(able)}")
    # Without the hint OpenVINO computes in the precision that it finds fastest, bfloat16 on many CPUs.
    hints = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(core.read_model(path), "CPU", hints)
    return lambda images: torch.from_numpy(compiled([images.contiguous().numpy()])[0])


class Format(NamedTuple):
    """A kind of file."""

    suffix: str
    dtypes: tuple[str, ...]
    writers: tuple[str, ...]  # packages that write it
    runtimes: tuple[str, ...]  # packages that run it
    write: Callable[[nn.Module, Path, Tensor, str], None]
    load: Callable[[Path, str, int], Call]


_ALL, _ONNX = PRECISIONS, ("onnx", "onnxscript")
FORMATS: dict[str, Format] = {
    EXPORTED_PROGRAM: Format(".pt2", _ALL, (), (), _write_program, _load_program),
    AOTI: Format(".pt2", _ALL, (), (), _write_aoti, _load_aoti),
    ONNX: Format(".onnx", ("float32",), _ONNX, ("onnxruntime",), _write_onnx, _load_onnx),
    OPENVINO: Format(".xml", _ALL, _ONNX, ("openvino",), _write_openvino, _load_openvino),
}


def require_format(format: Any, dtype: Any, *, path: Path | None = None, writing: bool = True) -> Format:
    """Return what a format is, or raise ValueError: it hasn't the precision, its packages, or the ending of a path."""
    if format not in list(FORMATS):  # of JSON, which may be a list itself
        raise ValueError(f"format {format!r}: {expected(str(format), FORMATS)}")
    kind = FORMATS[format]
    if dtype not in kind.dtypes:
        raise ValueError(f"dtype {dtype!r} of {format}: {expected(str(dtype), kind.dtypes)}")
    packages = kind.runtimes + (kind.writers if writing else ())
    if missing := [name for name in packages if find_spec(name) is None]:
        raise ValueError(f"format {format!r} needs {', '.join(missing)}: pip install 'clip-patchrank[export]'")
    if path is not None and path.suffix != kind.suffix:
        raise ValueError(f"{str(path)!r}: a file of {format} ends with {kind.suffix!r}")
    return kind


def _require_model(model: nn.Module, images: Tensor) -> None:
    name = type(model).__name__
    if model.training:
        raise ValueError(f"{name} is in training mode: call eval() first")
    kinds = {(weight.device.type, weight.dtype) for weight in model.parameters()}
    if kinds != {("cpu", torch.float32)}:
        found = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in kinds))
        raise ValueError(f"{name} has weights in {found}: expected float32 on the CPU; `dtype` is for the file")
    if images.ndim != 4 or images.dtype != torch.float32 or len(images) < 2:
        raise ValueError(f"images {tuple(images.shape)} of {images.dtype}: expected (n, 3, H, W) float32 with n from 2")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the advice of exporters, which is for their authors, from warnings, standard output and the log."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            logging.disable(logging.WARNING)
            yield
        finally:
            logging.disable(before)
