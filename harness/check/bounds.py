"""How far quantities may move before a check fails."""

from dataclasses import dataclass

SHOWN_DIGITS = 5e-5  # half of the last digit that a table shows


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How far quantities may move. What is counted may not move at all.

    The images are the same, so the only excuse is rounding. docs/check.md says how far it moved
    things where it was tried, and that bfloat16 in float32's place is seen.

    Attributes:
        images: difference in the number of right answers, either way.
        flips: images whose answer went from right to wrong or back; they may cancel out in the
            number, so that is bounded apart.
        cosine: difference in mean cosines: to dense, and in the margin between the own class and
            the best other.
        tau: difference in Kendall's tau, which must also stay in the expected 95 % interval.
        slower: factor on the expected ratio of time to dense, which the least of the ratio's
            interval may not exceed; None not to judge latency. Faster is never wrong.
    """

    images: int = 1
    flips: int = 2
    cosine: float = 5e-4
    tau: float = 2e-3
    slower: float | None = 1.5

    def __post_init__(self) -> None:
        """Validate."""
        for name in ("images", "flips", "cosine", "tau"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{name} {getattr(self, name)}: expected a number from 0")
        if self.slower is not None and not self.slower >= 1:
            raise ValueError(f"--slower {self.slower:g}: expected a factor from 1, such as 1.5")


# To show every difference; time always differs.
EXACT = Bounds(images=0, flips=0, cosine=SHOWN_DIGITS, tau=SHOWN_DIGITS, slower=None)
