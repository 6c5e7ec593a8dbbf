"""A model recorded as a graph, which runtimes with files translate or compile."""

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import torch
from torch import Tensor, nn

from zoo.core.settings import torch_dtype


class Served(nn.Module):
    """A model, in lower precision a copy, behind float32 images and features."""

    def __init__(self, model: nn.Module, precision: str) -> None:
        super().__init__()
        self.dtype = torch_dtype(precision)
        self.model = model if self.dtype == torch.float32 else copy.deepcopy(model).to(self.dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) float32 to features (B, D) float32."""
        features: Tensor = self.model(images.to(self.dtype))
        return features.float()


def record_graph(model: nn.Module, images: Tensor, precision: str) -> torch.export.ExportedProgram:
    """Record a model as a graph of a free batch size; ``images`` are an example of two."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    return torch.export.export(Served(model, precision).eval(), (images,), dynamic_shapes=({0: batch},))


def require_exportable(model: nn.Module) -> None:
    """Raise ValueError for a model in training mode, or not in float32 on the CPU."""
    name = type(model).__name__
    if model.training:
        raise ValueError(f"{name} is in training mode: call eval() first")
    kinds = {(weight.device.type, weight.dtype) for weight in model.parameters()}
    if kinds != {("cpu", torch.float32)}:
        kinds_seen = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in kinds))
        raise ValueError(
            f"{name} has weights in {kinds_seen}: expected float32 on the CPU; `precision` is for the file"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the advice of exporters, which is for their authors, from warnings, standard output and the log."""
    root = logging.root
    disabled, level, filters, handlers = root.manager.disable, root.level, [*root.filters], [*root.handlers]
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            logging.disable(logging.WARNING)
            yield
        finally:
            logging.disable(disabled)
            # A conversion that OpenVINO refuses leaves it at ERROR, and all later warnings of anybody unsaid.
            root.setLevel(level)
            root.filters, root.handlers = filters, handlers
