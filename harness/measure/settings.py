"""What a comparison can be told. Imports no torch itself, as the command line reads the fields for help."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.core.recipes import TuneConfig

if TYPE_CHECKING:
    from harness.datasets.base import SplitName
    from harness.records.record import Tuning

KEEPS = (1.0, 0.8, 0.65, 0.5, 0.35, 0.25)  # that pictures may take by default
MATCHES = ("keep", "gflops", "time")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to compare."""

    models: tuple[str, ...] = ("clip_vit_s14",)  # dense timm names, with weight tag or without
    methods: tuple[str, ...]  # of `rows.known_methods`; dense is always there
    keeps: tuple[float, ...] = (0.6, 0.3)
    budgets: tuple[str, ...] = ()  # of the methods, those that have adaptive rows, too
    recoveries: tuple[Path, ...] = ()  # files; each is a row with the method and keep rate that it was trained for
    datasets: tuple[str, ...] = ("fashion", "emoji", "photos")
    shots: tuple[int, ...] = (0,)  # labelled images per class; 0 takes the text classifier
    tokens: str = "t"  # what is learned from shots, of `TUNINGS`
    num_tokens: int = TuneConfig.count
    seeds: int = 3  # how often it is learned from other shots, counted on from ``seed``
    limit: int | None = 50  # images per dataset, None for the whole split
    split: "SplitName" = "test"
    seed: int = 0  # of the choice of shots, the first
    device: str = "cpu"
    precision: str = "float32"  # of `PRECISIONS`
    batches: tuple[int, ...] = (8,)  # for latency, none to skip it
    rounds: int = 9  # calls of each model at each batch size; of fewer than 6 no median has a 95 % interval
    match: str = "keep"  # what rows have in common, of `MATCHES`
    match_to: str = "patchrank"  # method that others' fidelity is compared with, and whose cost they meet by ``match``
    runtimes: tuple[str, ...] = ()  # by which the dense tower has further rows, in their usual precisions
    match_batch: int = 8  # images per call, where that cost is time
    far: bool = False  # keep rows that can't come near the GFLOPs they should meet

    @property
    def timed_batches(self) -> list[int]:
        """Batch sizes at which rows are timed."""
        return list(dict.fromkeys((*self.batches, self.match_batch) if self.match == "time" else self.batches))

    def matched(self, *rates: float) -> dict[str, Any]:
        """Return the setting of a row whose time is that of the target at these keep rates."""
        return {"time_of": self.match_to, "keeps": list(rates), "batch": self.match_batch, "precision": self.precision}

    def tunings(self, shots: int) -> "list[Tuning]":
        """Return one tuning per seed; at 0 shots one, since nothing is drawn."""
        from harness.records.record import PROMPTS, Tuning

        if shots == 0:
            return [Tuning(seed=self.seed)]
        count = self.num_tokens if self.tokens in PROMPTS else None
        seeds = range(self.seed, self.seed + self.seeds)
        return [Tuning(shots=shots, seed=seed, kind=self.tokens, prompt_tokens=count) for seed in seeds]
