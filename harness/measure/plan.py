"""What to compare."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.datasets.base import SplitName
from harness.records.record import DENSE, GOLDEN, PROMPTS, TUNINGS, Tuning
from harness.records.statistics import LEAST_ROUNDS
from zoo.core.files import from_json
from zoo.core.messages import check_fields, expected
from zoo.learning.tuning import TuneConfig
from zoo.loading.learned_files import PromptFile

MATCHES = ("keep", "gflops", "time")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to compare."""

    models: tuple[str, ...] = ("clip_vit_s14",)  # dense timm names, with weight tag or without
    methods: tuple[str, ...]  # of `rows.known_methods`; dense is always there
    keeps: tuple[float, ...] = (0.6, 0.3)
    recoveries: tuple[Path, ...] = ()  # files; each is a row with the method and keep rate that it was trained for
    datasets: tuple[str, ...] = ("fashion", "emoji", "photos")
    shots: tuple[int, ...] = (0,)  # labelled images per class; 0 takes the text classifier
    tokens: str = "t"  # what is learned from shots, of `TUNINGS`
    num_tokens: int = TuneConfig.count
    seeds: int = 3  # how often it is learned from other shots, counted on from ``seed``
    limit: int | None = 50  # images per dataset, None for the whole split
    split: SplitName = "test"
    seed: int = 0  # of the choice of shots, the first
    device: str = "cpu"
    dtype: str = "float32"  # of `DTYPES`
    batches: tuple[int, ...] = (8,)  # for latency, none to skip it
    rounds: int = 9  # calls of each model at each batch size; of fewer than 6 no median has a 95 % interval
    match: str = "keep"  # what rows have in common, of `MATCHES`
    match_to: str = "patchrank"  # method that others' fidelity is compared with, and whose cost they meet by ``match``
    optimized: bool = False  # a row of the dense tower by `zoo.optimize`, too
    match_batch: int = 8  # images per call, where that cost is time
    foreground: bool = False  # fit probes of foreground on datasets with masks, see `measure.foreground`
    far: bool = False  # keep rows that can't come near the GFLOPs they should meet

    @property
    def latency_rounds(self) -> dict[int, int]:
        """Return the rounds at each batch size that is timed."""
        sizes = (*self.batches, self.match_batch) if self.match == "time" else self.batches
        return dict.fromkeys(sizes, self.rounds)

    def matched(self, *rates: float) -> dict[str, Any]:
        """Return the setting of a row whose time is that of the target at these keep rates."""
        return {"time_of": self.match_to, "keeps": list(rates), "batch": self.match_batch, "dtype": self.dtype}

    def tunings(self, shots: int) -> list[Tuning]:
        """Return one tuning per seed; at 0 shots one, since nothing is drawn."""
        if shots == 0:
            return [Tuning(seed=self.seed)]
        count = self.num_tokens if self.tokens in PROMPTS else None
        seeds = range(self.seed, self.seed + self.seeds)
        first = Tuning(shots=shots, seed=self.seed, kind=self.tokens, prompt_tokens=count)
        return [replace(first, seed=seed) for seed in seeds]


def tuning_of(file: PromptFile) -> Tuning:
    """Return what prompts in a file were learned from.

    Raises:
        ValueError: not from a number of shots, so that no record could say it.
    """
    try:
        facts = {
            "shots": file.provenance["shots"],
            "seed": file.provenance["draw"],
            "kind": file.recipe["tokens"],
            "prompt_tokens": file.recipe["count"],
        }
        tuning: Tuning = from_json(Tuning, facts, "tuning")
    except KeyError as error:
        raise ValueError(f"prompts {str(file.path)!r} don't say their {error.args[0]}") from error
    except ValueError as error:
        raise ValueError(f"prompts {str(file.path)!r} don't say what they were learned from: {error}") from error
    return tuning


def check_plan(plan: Plan) -> None:
    """Raise ValueError for what can't be measured, whatever the tower and the data."""
    rounds = f"[{LEAST_ROUNDS}, inf)"
    check_fields(plan, tokens=TUNINGS, seeds="[1, inf)", num_tokens="[1, inf)", match=MATCHES, rounds=rounds)
    if min(plan.shots) < 0:
        raise ValueError(f"--shots {min(plan.shots)}: expected 0, which is by text, or a number from 1")
    if plan.match == "keep" and plan.match_to == Plan.match_to:
        return
    if plan.match_to in (DENSE, GOLDEN):
        raise ValueError(f"match_to={plan.match_to!r} has no cost that others could meet: name a method that reduces")
    if plan.match_to not in plan.methods:
        raise ValueError(
            f"match_to={plan.match_to!r} is not measured: {expected(plan.match_to, plan.methods)} "
            "with --match-to, or add it to --methods"
        )
