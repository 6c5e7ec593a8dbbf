"""Find every study of this folder: a file that defines a concrete `Study` is enough."""

import functools
import importlib
import inspect
import pkgutil

from harness.studies.base import Study
from zoo.reducer import expected


@functools.cache
def list_studies() -> dict[str, Study]:
    """Return all studies by name, sorted."""
    found: dict[str, Study] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for value in vars(module).values():
            if not (inspect.isclass(value) and issubclass(value, Study)):
                continue
            if inspect.isabstract(value) or value.__module__ != module.__name__:
                continue
            assert value.name not in found, f"two studies are called {value.name!r}"
            found[value.name] = value()
    return dict(sorted(found.items()))


def get_study(name: str) -> Study:
    """Return the study of that name.

    Raises:
        ValueError: no study has it.
    """
    studies = list_studies()
    if name not in studies:
        raise ValueError(f"study {name!r}: {expected(name, studies)}")
    return studies[name]
