"""Runtimes for files of torch: exported programs, and machine code by AOTInductor."""

import json
import zipfile
from pathlib import Path

import torch
from torch import nn

from zoo.deploy.graph import record_graph
from zoo.deploy.runtime import AOTI, EXPORTED_PROGRAM, FileRuntime, Prepared, Target, register_runtime


@register_runtime
class ExportedProgram(FileRuntime):
    """A graph of torch, which `torch.export.load` reads."""

    name, suffix, runs_code = EXPORTED_PROGRAM, ".pt2", True

    def write(self, model: nn.Module, path: Path, target: Target) -> None:
        program = record_graph(model, target.example, target.precision)
        program._example_inputs = None  # else they are pickled into the file
        torch.export.save(program, path)

    def load(self, path: Path, precision: str, threads: int, recipe: str | None = None) -> Prepared:
        """Return the model of a file; raise ValueError for one that torch would unpickle."""
        _refuse_pickles(path)
        return Prepared(call=torch.no_grad()(torch.export.load(path).module()), file=path)


@register_runtime
class AOTInductor(FileRuntime):
    """Machine code that Inductor compiles for this processor."""

    name, suffix, runs_code = AOTI, ".pt2", True

    def write(self, model: nn.Module, path: Path, target: Target) -> None:
        from torch._inductor import aoti_compile_and_package

        aoti_compile_and_package(record_graph(model, target.example, target.precision), package_path=str(path))

    def load(self, path: Path, precision: str, threads: int, recipe: str | None = None) -> Prepared:
        """Return the model of a package, whose code is run: trust who wrote it."""
        from torch._inductor import aoti_load_package

        return Prepared(call=torch.no_grad()(aoti_load_package(str(path))), file=path)


def _refuse_pickles(path: Path) -> None:
    """Raise ValueError if torch would unpickle a part of an exported program; of ours it doesn't."""
    try:
        with zipfile.ZipFile(path) as archive:
            for file in archive.infolist():
                if file.filename.endswith("_config.json"):
                    entries = json.loads(archive.read(file))["config"].values()
                    odd = any(entry["use_pickle"] or "obj" in entry["path_name"] for entry in entries)
                else:
                    odd = file.filename.endswith(".pt") and file.file_size > 0
                if odd:
                    raise ValueError(f"{str(path)!r}: {file.filename} would be unpickled, which can run any code")
    except (zipfile.BadZipFile, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} is no exported program: {error!r}") from error
