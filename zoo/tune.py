"""Learn tokens from a few labelled images (a stand-in until the real one comes)."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Say what is learned.

    Attributes:
        tokens: t: learned text context; v: learned visual tokens; vt: both.
        count: learned tokens.
        seed: of their first values and of the order of images.
    """

    tokens: str = "vt"
    count: int = 16
    seed: int = 0
