"""What learning without labels can be told. Without torch, so that a command line can show the fields at once."""

from dataclasses import dataclass

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
