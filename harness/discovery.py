"""Find what the files of a folder define."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from typing import Any


def concrete_classes(
    package: str, path: Iterable[str], kind: type[Any], *, but: tuple[type[Any], ...] = ()
) -> dict[str, type[Any]]:
    """Import each file of a package once and return the concrete classes of a kind by their name.

    Args:
        package: name of the package.
        path: its ``__path__``.
        kind: an abstract class; its subclasses have a ``name``. A file's imports don't count.
        but: classes to leave out, for they have no name of their own.
    """
    found: dict[str, type[Any]] = {}
    for info in pkgutil.iter_modules(path):
        module = importlib.import_module(f"{package}.{info.name}")
        for value in vars(module).values():
            if not (inspect.isclass(value) and issubclass(value, kind)):
                continue
            if inspect.isabstract(value) or value in but or value.__module__ != module.__name__:
                continue
            name: str = getattr(value, "name")  # noqa: B009  (the kind's, which type hints don't know)
            assert name not in found, f"two of {package} are called {name!r}"
            found[name] = value
    return dict(sorted(found.items()))
