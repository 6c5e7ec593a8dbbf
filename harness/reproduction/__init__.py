"""Find every reproduction: a file of this folder that defines a `Reproduction` is enough."""

import functools

from harness.datasets.base import concrete_classes
from harness.reproduction.base import Reproduction
from zoo.reducer import expected


@functools.cache
def list_reproductions() -> dict[str, Reproduction]:
    """Return all reproductions by name, sorted."""
    return {name: cls() for name, cls in concrete_classes(__name__, __path__, Reproduction).items()}


def get_reproduction(name: str) -> Reproduction:
    """Return the reproduction of that table or figure.

    Raises:
        ValueError: there is none.
    """
    known = list_reproductions()
    if name not in known:
        raise ValueError(f"reproduce {name!r}: {expected(name, known)}")
    return known[name]
