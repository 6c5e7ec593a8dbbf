"""What learning without labels can be told. Imports no torch itself, as the command line reads the fields for help."""

from dataclasses import dataclass
from typing import ClassVar

from harness.measure.settings import KEEPS
from zoo.core.settings import check_fields


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Which images are learned from without labels."""

    datasets: tuple[str, ...]
    limit: int | None = 800  # training images per dataset, None for all
    held_out: int = 60  # images per dataset to stop or to judge by


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What to search among, and at what cost."""

    cost: float = 0.5  # GFLOPs, as a share of the dense tower's
    points: int = 4  # reduction points at most
    candidates: int = 150  # schedules to try at most

    def __post_init__(self) -> None:
        check_fields(self, cost="(0, 1)", points="[1, inf)", candidates="[1, inf)")


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """Which keep rates pictures may take, and what they are to cost or to keep; one of the last three, or none."""

    DEFAULT_COST: ClassVar[float] = 0.6

    keeps: tuple[float, ...] = KEEPS
    signal_at: int = 0  # block whose input gives the signal; 0 for the embedded patches
    cost: float | None = None  # mean GFLOPs, as a share of the dense tower's
    min_cosine: float | None = None  # mean cosine to dense
    min_cosine_95: float | None = None  # cosine that 95 % of pictures reach

    def __post_init__(self) -> None:
        shares = dict.fromkeys(("cost", "min_cosine", "min_cosine_95"), "(0, 1)")
        check_fields(self, signal_at="[0, inf)", **shares)
        if len(asked := [name for name in shares if getattr(self, name) is not None]) > 1:
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in asked)
            raise ValueError(f"{flags}: each decides what pictures cost; give one of them")

    @property
    def bound(self) -> tuple[str, float] | None:
        """The bound that is to be met, by its name; None if a cost is."""
        bounds = {"min_cosine": self.min_cosine, "min_cosine_95": self.min_cosine_95}
        return next(((name, least) for name, least in bounds.items() if least is not None), None)
