"""What help and the check of names need of modules that import torch, read from their source in milliseconds."""

import ast
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).parents[2]


class Outline:
    """The constants of a module or class, and its classes, as attributes; of a dict that isn't constant, its keys."""

    def __init__(self, body: Iterable[ast.stmt], outer: "Outline | None" = None) -> None:
        self._outer = outer
        self._nodes: dict[str, Any] = {}
        for node in body:
            match node:
                case ast.ImportFrom(module=str(module), names=names):
                    self._nodes |= {one.asname or one.name: (module, one.name) for one in names}
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

    def __getattr__(self, name: str) -> Any:
        """Return what a name stands for; raise AttributeError if the source alone doesn't say it."""
        node = self._nodes.get(name)
        if node is None:
            if self._outer is None:
                raise AttributeError(name)
            return getattr(self._outer, name)
        if isinstance(node, tuple):
            return getattr(outline(node[0]), node[1])
        return node if isinstance(node, Outline) else self._value(node)

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Name(id=name):
                return getattr(self, name)
            case ast.Attribute(value=owner, attr=name):
                return getattr(self._value(owner), name)
            case ast.Starred(value=inner):
                return self._value(inner)
            case ast.Tuple(elts=parts):
                values = ((self._value(part), isinstance(part, ast.Starred)) for part in parts)
                return tuple(one for value, several in values for one in (value if several else [value]))
            case ast.Dict(keys=keys):
                return tuple(self._value(key) for key in keys if key is not None)
        return ast.literal_eval(node)


def _statements(module: str) -> list[ast.stmt]:
    return ast.parse((HOUSE / f"{module.replace('.', '/')}.py").read_text("utf-8")).body


@functools.cache
def outline(module: str) -> Outline:
    """Return the outline of one of our modules."""
    return Outline(_statements(module))


def decorated(module: str, decorator: str) -> dict[str, str]:
    """Return the first line of the docstring of each function of one of our modules that has a decorator, by name."""
    found = {}
    for node in _statements(module):
        match node:
            case ast.FunctionDef(name=name, decorator_list=[ast.Call(func=ast.Name(id=by))]) if by == decorator:
                found[name] = (ast.get_docstring(node) or "").partition("\n")[0]
    return found
