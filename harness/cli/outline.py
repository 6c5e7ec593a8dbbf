"""Constants, settings' defaults and docstrings of modules that import torch, read from their source in milliseconds.

Help can't import them. Every module of ``zoo`` runs ``zoo/__init__``, which registers our models with timm and so takes
torch's seconds, where help as a whole takes a fifth of one; and every module of settings imports ``zoo.core.settings``
to check its fields, however free of torch it is itself. ``LatencyPlan`` and ``zoo.deploy.export`` use torch, the
``Tolerances`` are built on metrics, and studies are registered by the modules that make them. Defaults and names that
were said again in ``commands.toml`` would have to be kept equal by hand.
"""

import ast
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).parents[2]


class Outline:
    """The constants of a module or class, and its classes, as attributes; a dict stands for its keys."""

    def __init__(self, body: Iterable[ast.stmt], outer: "Outline | None" = None) -> None:
        self._outer = outer
        self._nodes: dict[str, Any] = {}
        for node in body:
            match node:
                case ast.ImportFrom(module=str(module), names=names):
                    self._nodes |= {name.asname or name.name: (module, name.name) for name in names}
                case ast.ClassDef(name=name, body=inner):
                    self._nodes[name] = Outline(inner, self)
                case (
                    ast.Assign(targets=[ast.Name(id=name)], value=value)
                    | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
                ):
                    self._nodes[name] = value
                case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                    self._nodes |= {ast.unparse(name): value for name, value in zip(targets, values, strict=True)}

    def __contains__(self, name: str) -> bool:
        return name in self._nodes

    def __iter__(self) -> "Iterator[Outline]":
        """Yield the classes."""
        return (node for node in self._nodes.values() if isinstance(node, Outline))

    def __getitem__(self, name: str) -> Any:
        """Return the value of a name; raise KeyError for a name that neither this nor the outer body defines."""
        if name not in self._nodes and self._outer is not None:
            return self._outer[name]
        match node := self._nodes[name]:
            case (module, original):
                return outline(module)[original]
            case Outline():
                return node
            case ast.Dict(keys=keys):
                node = ast.Tuple([key for key in keys if key is not None], ast.Load(), lineno=1, col_offset=0)
        scope: Any = self
        return eval(compile(ast.Expression(node), name, "eval"), {"__builtins__": {}}, scope)

    def __getattr__(self, name: str) -> Any:
        """Return the value of a name, as expressions such as ``Plan.rounds`` ask for."""
        return self[name]


def _statements(module: str) -> list[ast.stmt]:
    return ast.parse((HOUSE / f"{module.replace('.', '/')}.py").read_text("utf-8")).body


@functools.cache
def outline(module: str) -> Outline:
    """Return the outline of one of our modules."""
    return Outline(_statements(module))


def runtime_names(*attributes: str) -> str:
    """Return the names of the runtimes whose classes set some attributes, in words."""
    files = sorted((HOUSE / "zoo/deploy/runtimes").glob("*.py"))
    classes = [node for file in files for node in outline(f"zoo.deploy.runtimes.{file.stem}")]
    return ", ".join(node.name for node in classes if all(name in node for name in ("name", *attributes)))


def decorated(module: str, decorator: str) -> dict[str, str]:
    """Return the first line of the docstring of each function of one of our modules that has a decorator, by name."""
    lines = {}
    for node in _statements(module):
        match node:
            case ast.FunctionDef(name=name, decorator_list=[ast.Call(func=ast.Name(id=by))]) if by == decorator:
                lines[name] = (ast.get_docstring(node) or "").partition("\n")[0]
    return lines
