"""OpenVINO: its graph, translated from ONNX."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.deploy.runtime import OPENVINO, FileRuntime, Prepared, Target, register_runtime
from zoo.deploy.runtimes.onnxruntime import WRITERS, write_onnx

_ABILITIES = {"float32": "FP32", "bfloat16": "BF16", "float16": "FP16"}  # of a CPU, as OpenVINO names them


@register_runtime
class OpenVino(FileRuntime):
    """OpenVINO on the CPU; a file's weights are float32, and rounded when the file is loaded."""

    name, suffix = OPENVINO, ".xml"
    packages, writers = ("openvino",), WRITERS

    def refusal(self, precision: str, device: str = "cpu", *, loading: bool = False) -> str:
        """Say why the precision can't be had here, the processor's abilities included."""
        if why := super().refusal(precision, device, loading=loading):
            return why
        import openvino

        abilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if _ABILITIES[precision] in abilities:
            return ""
        return f"OpenVINO computes no {precision} on this CPU: expected one of {', '.join(abilities)}"

    def bytes_per_weight(self, precision: str) -> int:
        """Count float32 twice, as a file of ONNX lies beside what is made of it."""
        return 8

    def write(self, model: nn.Module, path: Path, target: Target) -> None:
        """Translate a file of ONNX; weights go into a ``.bin`` beside the graph."""
        import openvino
        from openvino import opset11

        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder) / "model.onnx"
            write_onnx(model, whole, target.example)
            graph = openvino.Core().read_model(whole)
            # All sorts break ties by the lower index, which OpenVINO's reading of ONNX leaves open.
            for node in [node for node in graph.get_ops() if node.get_type_name() == "TopK"]:
                settings, inputs = node.get_attributes(), [node.input_value(0), node.input_value(1)]
                axis, kind, mode, order = (settings[key] for key in ("axis", "index_element_type", "mode", "sort"))
                stable = opset11.topk(*inputs, axis, mode, order, index_element_type=kind, stable=True)
                for index in range(2):
                    node.output(index).replace(stable.output(index))
            openvino.save_model(graph, path, compress_to_fp16=False)

    def load(self, path: Path, precision: str, threads: int) -> Prepared:
        import openvino

        self.require(precision, loading=True)
        core = openvino.Core()
        # Without the hint OpenVINO computes in the precision that it finds fastest, bfloat16 on many CPUs.
        hints = {"INFERENCE_PRECISION_HINT": precision.replace("float", "f"), "INFERENCE_NUM_THREADS": threads}
        compiled = core.compile_model(core.read_model(path), "CPU", hints)

        def call(images: Tensor) -> Tensor:
            return torch.from_numpy(compiled([images.contiguous().numpy()])[0])

        return Prepared(call=call, file=path)
