"""Find every study of this folder: a file that defines a concrete `Study` is enough."""

import functools

from harness.datasets.base import concrete_classes
from harness.studies.base import Study
from zoo.reducer import expected

LISTED = "python -m harness study list"  # shows them all


@functools.cache
def list_studies() -> dict[str, Study]:
    """Return all studies by name, sorted."""
    return {name: cls() for name, cls in concrete_classes(__name__, __path__, Study).items()}


def get_study(name: str) -> Study:
    """Return the study of that name.

    Raises:
        ValueError: no study has it.
    """
    studies = list_studies()
    if name not in studies:
        raise ValueError(f"study {name!r}: {expected(name, studies, shown_by=LISTED)}")
    return studies[name]
