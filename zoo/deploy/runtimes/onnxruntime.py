"""ONNX Runtime: a file of ONNX, which other runtimes read, too."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.deploy.graph import record_graph
from zoo.deploy.runtime import ONNXRUNTIME, FileRuntime, Prepared, Target, register_runtime

WRITERS = ("onnx", "onnxscript")
_IN, _OUT = "images", "features"


@register_runtime
class OnnxRuntime(FileRuntime):
    """ONNX Runtime on the CPU, in float32."""

    name, suffix, precisions = ONNXRUNTIME, ".onnx", ("float32",)
    packages, writers = ("onnxruntime",), WRITERS

    def write(self, model: nn.Module, path: Path, target: Target) -> None:
        write_onnx(model, path, target.example)

    def load(self, path: Path, precision: str, threads: int) -> Prepared:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        def call(images: Tensor) -> Tensor:
            return torch.from_numpy(session.run([_OUT], {_IN: images.contiguous().numpy()})[0])

        return Prepared(call=call, file=path)


def write_onnx(model: nn.Module, path: Path, example: Tensor) -> None:
    """Write a float32 model as ONNX; weights lie beside it where a file can't hold them."""
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
    # One file as long as protobuf can hold it.
    beside = sum(weight.nbytes for weight in model.parameters()) > 1.9e9
    program.save(str(path), external_data=beside)
