"""OpenVINO: its graph, translated from what torch records."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zoo.core.settings import PRECISIONS
from zoo.deploy.graph import record_graph
from zoo.deploy.quantization import INT8, GraphProduct, calibration_batches, find_recipe, quantize
from zoo.deploy.runtime import OPENVINO, FileRuntime, Prepared, Target, register_runtime

# OpenVINO and NNCF would report each use to a web service, from a process that they fork off a thread of ours. Both
# work without this package.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

# Of a CPU, as OpenVINO names them.
_ABILITIES = {"float32": "FP32", "bfloat16": "BF16", "float16": "FP16", INT8: "INT8"}
PRODUCTS, ATTENTION = ("MatMul", "Convolution", "GroupConvolution"), ("ScaledDotProductAttention",)
GROUP = 128  # values that share a scale, where activations are quantised as they come


@register_runtime
class OpenVino(FileRuntime):
    """OpenVINO on the CPU; a file's weights are float32, and rounded when the file is loaded, or int8."""

    name, suffix, precisions = OPENVINO, ".xml", (*PRECISIONS, INT8)
    packages, extra = ("openvino",), "openvino"

    def refusal(self, precision: str, device: str = "cpu", *, loading: bool = False) -> str:
        """Say why the precision can't be had here, the processor's abilities included."""
        if why := super().refusal(precision, device, loading=loading):
            return why
        import openvino

        abilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if _ABILITIES[precision] in abilities:
            return ""
        able = ", ".join(name for name, ability in _ABILITIES.items() if ability in abilities)
        return f"OpenVINO computes no {precision} on this CPU: expected one of {able}"

    def write(self, model: nn.Module, path: Path, target: Target) -> None:
        """Translate what torch records; weights go into a ``.bin`` beside the graph."""
        import openvino

        program = record_graph(model, target.example, "float32")
        with _interruptible():
            graph = openvino.convert_model(program)
        _break_ties(graph)
        if target.recipe is not None:
            assert target.calibration is not None
            batches = calibration_batches(target.calibration)
            graph = quantize(graph, _products(graph), model, find_recipe(target.recipe), batches)
        openvino.save_model(graph, path, compress_to_fp16=False)

    def load(self, path: Path, precision: str, threads: int, recipe: str | None = None) -> Prepared:
        import openvino

        self.require(precision, loading=True)
        core = openvino.Core()
        properties = self.properties(precision, recipe) | {"INFERENCE_NUM_THREADS": threads}
        compiled = core.compile_model(core.read_model(path), "CPU", properties)

        def call(images: Tensor) -> Tensor:
            return torch.from_numpy(compiled([images.contiguous().numpy()])[0])

        return Prepared(call=call, file=path)

    def properties(self, precision: str, recipe: str | None) -> dict[str, Any]:
        """Return the properties with which a file is to be compiled.

        Without the hint OpenVINO computes in the precision that it finds fastest, bfloat16 on many CPUs. What an int8
        model has in float is faster in float32, unless all activations come in float or the CPU has AMX.
        """
        as_they_come = recipe is not None and not find_recipe(recipe).activations
        # Whoever limits the instructions to AVX2 switches AMX off, too.
        amx = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_amx_tile_supported()
        rounds = (as_they_come or amx) and not self.refusal("bfloat16", loading=True)
        low = "bfloat16" if rounds else "float32"
        hint = {"INFERENCE_PRECISION_HINT": (low if precision == INT8 else precision).replace("float", "f")}
        return hint | ({"DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP} if as_they_come else {})


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt at the end if Ctrl-C was pressed: OpenVINO ignores it or raises another error."""
    handler, pressed = signal.getsignal(signal.SIGINT), list[int]()
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: Any) -> None:
        pressed.append(number)
        handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if pressed:
            raise KeyboardInterrupt


def _break_ties(graph: Any) -> None:
    """Make all sorts break ties by the lower index, as torch's stable sort does."""
    from openvino import opset11

    for node in [node for node in graph.get_ops() if node.get_type_name() == "TopK"]:
        settings, inputs = node.get_attributes(), [node.input_value(0), node.input_value(1)]
        axis, kind, mode, order = (settings[key] for key in ("axis", "index_element_type", "mode", "sort"))
        order = "value" if order == "none" else order
        stable = opset11.topk(*inputs, axis, mode, order, index_element_type=kind, stable=True)
        for index in range(2):
            node.output(index).replace(stable.output(index))


def _products(graph: Any) -> Iterator[GraphProduct]:
    """Yield the products of a graph; those without constants are of two activations."""
    moving = set[str]()  # names of what depends on the images
    for node in graph.get_ordered_ops():
        inputs = [value.get_node() for value in node.input_values()]
        if node.get_type_name() == "Parameter" or any(each.get_friendly_name() in moving for each in inputs):
            moving.add(node.get_friendly_name())
        if node.get_type_name() in ATTENTION:
            yield GraphProduct(node.get_friendly_name(), [])
        elif node.get_type_name() in PRODUCTS:
            still = [each for each in inputs if each.get_friendly_name() not in moving]
            yield GraphProduct(node.get_friendly_name(), [data for each in still for data in _constants(each)])


def _constants(node: Any) -> Iterator[NDArray[Any]]:
    """Yield the values of the constants that something is made of."""
    if node.get_type_name() == "Constant":
        yield node.data
    for value in node.input_values():
        yield from _constants(value.get_node())
