"""Under which conditions something is measured: method, precision, device, what classifies."""

import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from zoo.core.precision import PRECISIONS

DENSE, GOLDEN = "dense", "golden"  # methods that no reducer is registered for
RANDOM = "random"  # the control: a method that is no better than it does nothing
DTYPES = PRECISIONS
PROBE = "probe"
RECOVERY = "recovery"  # setting of a row whose weights or tokens were trained: the digest of their file
MATCHED = "matched"  # setting of a row: whose time its keep rate meets, and at which batch size
PROMPTS = {  # learned tokens, by the letters that --tokens takes
    "t": "learned text tokens",
    "v": "learned visual tokens",
    "vt": "learned visual and text tokens",
}
TUNINGS = (*PROMPTS, PROBE)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What classifies images: the captions of classes, or something learned from shots."""

    shots: int = 0  # labelled training images per class; 0 takes the captions
    seed: int = 0  # of the choice of shots and of what is learned from them
    kind: str | None = None  # of ``TUNINGS``; None at 0 shots
    prompt_tokens: int | None = None  # learned; None where none are

    @property
    def prompted(self) -> bool:
        """Whether tokens are learned, each row's its own."""
        return self.kind in PROMPTS

    @property
    def visual(self) -> bool:
        """Whether learned tokens go through the image tower, whose features they change."""
        return self.kind in ("v", "vt")


def device_name(device: str) -> str:
    """Return what the device calls itself."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
