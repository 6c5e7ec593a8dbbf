"""ONNX Runtime: a file of ONNX, which other runtimes read, too."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.deploy.graph import record_graph
from zoo.deploy.quantization import INT8, RECIPES, GraphProduct, calibration_batches, find_recipe, quantize
from zoo.deploy.runtime import ONNXRUNTIME, FileRuntime, Prepared, Target, register_runtime

PRODUCTS = ("MatMul", "Gemm", "Conv")
_IN, _OUT = "images", "features"


@register_runtime
class OnnxRuntime(FileRuntime):
    """ONNX Runtime on the CPU, in float32, or in int8 by nodes that quantize and dequantize."""

    name, suffix, precisions = ONNXRUNTIME, ".onnx", ("float32", INT8)
    packages, writers = ("onnxruntime",), ("onnx", "onnxscript")

    def recipes(self, precision: str) -> tuple[str, ...]:
        """Return those that make activations int8, too: ONNX Runtime gains nothing from weights alone."""
        return tuple(name for name in super().recipes(precision) if RECIPES[name].activations)

    def write(self, model: nn.Module, path: Path, target: Target) -> None:
        """Write ONNX; weights lie beside it where a file can't hold them."""
        import onnx

        program = translate(model, target.example)
        # One file as long as protobuf can hold it.
        beside = sum(weight.nbytes for weight in model.parameters()) > 1.9e9
        if target.recipe is None:
            program.save(str(path), external_data=beside)
            return
        assert target.calibration is not None
        batches = [{_IN: batch} for batch in calibration_batches(target.calibration)]
        graph = program.model_proto
        graph = quantize(graph, _products(graph), model, find_recipe(target.recipe), batches)
        onnx.save(graph, path, save_as_external_data=beside, location=f"{path.name}.data")

    def load(self, path: Path, precision: str, threads: int, recipe: str | None = None) -> Prepared:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        def call(images: Tensor) -> Tensor:
            return torch.from_numpy(session.run([_OUT], {_IN: images.contiguous().numpy()})[0])

        return Prepared(call=call, file=path)


def translate(model: nn.Module, example: Tensor) -> torch.onnx.ONNXProgram:
    """Return a float32 model as ONNX."""
    from onnxscript import opset18 as op

    # ONNX has no stable sort, but TopK, which breaks ties by the lower index as we do.
    def stable_sort(x: Any, dim: int = -1, descending: bool = False, **_stable: Any) -> Any:
        count = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
        values, indices = op.TopK(x, count, axis=dim, largest=descending, sorted=1)
        return values, indices

    program = torch.onnx.export(
        record_graph(model, example, "float32"),
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
    return program


def _products(model: Any) -> Iterator[GraphProduct]:
    """Yield the products of a graph; those without constants are of two activations."""
    from onnx import numpy_helper

    constants = {each.name: each for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in PRODUCTS:
            values = [numpy_helper.to_array(constants[name]) for name in node.input if name in constants]
            yield GraphProduct(node.name, values)
