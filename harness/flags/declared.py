"""What modules declare, read from their source: importing them brings torch, which takes seconds.

Help and completion need the defaults of settings and nothing else of the modules they stand in.
"""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any


@cache
def declared(module: str, name: str) -> Any:
    """Return what a module declares, without importing it.

    Args:
        module: its full name, such as ``zoo.fit``.
        name: of a constant, whose value is returned; or of a class, for which it is a namespace of
            its fields' defaults. Values are written down as such, or name others that are.

    Raises:
        AssertionError: the module declares no such thing, or not as a value that can be read.
    """
    for node in _body(module):
        if isinstance(node, ast.ClassDef) and node.name == name:
            fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and f.value is not None]
            return SimpleNamespace(**{ast.unparse(f.target): _value(module, f) for f in fields})
        if isinstance(node, ast.ImportFrom) and name in [a.asname or a.name for a in node.names]:
            assert node.level == 0, f"{module}: imports are absolute here"
            [original] = [a.name for a in node.names if name == (a.asname or a.name)]
            return declared(str(node.module), original)
        if isinstance(node, ast.Assign):
            for target in node.targets:
                found = _paired(target, node.value)
                if name in found:
                    return _evaluated(module, found[name])
    raise AssertionError(f"{module} declares no {name}")


@cache
def _body(module: str) -> list[ast.stmt]:
    top, *rest = module.split(".")
    found = find_spec(top)  # of a package alone: that of what is in it would import it
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin).parent.joinpath(*rest)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text("utf-8")).body


def _paired(target: ast.expr, value: ast.expr) -> dict[str, ast.expr]:
    """Map the names of an assignment to what they are assigned."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return {ast.unparse(t): v for t, v in zip(target.elts, value.elts, strict=True)}
    return {ast.unparse(target): value}


def _value(module: str, field: ast.AnnAssign) -> Any:
    assert field.value is not None
    return _evaluated(module, field.value)


def _evaluated(module: str, node: ast.expr) -> Any:
    match node:
        case ast.Name(id=name):
            return declared(module, name)
        case ast.Attribute(value=ast.Name(id=name), attr=attribute):
            return getattr(declared(module, name), attribute)
        case ast.Tuple(elts=elements):
            return tuple(_evaluated(module, element) for element in elements)
        case ast.Dict(keys=keys, values=values):
            pairs = [(k, v) for k, v in zip(keys, values, strict=True) if k is not None]
            return {_evaluated(module, k): _evaluated(module, v) for k, v in pairs}
        case _:
            try:
                return ast.literal_eval(node)
            except ValueError as error:
                text = ast.unparse(node)
                raise AssertionError(
                    f"{module}: {text!r} can't be read without running it"
                ) from error
