"""What to compare."""

from dataclasses import dataclass, replace

from harness.datasets.base import SplitName
from harness.records.conditions import DENSE, GOLDEN, PROMPTS, TUNINGS, Tuning
from zoo.prompt_learner import TuneConfig
from zoo.prompts import PromptFile
from zoo.reducer import expected

MATCHES = ("gflops",)
TRACED = 64  # images of a dataset whose rankings and kept patches `compare` stores


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to compare."""

    models: tuple[str, ...] = ("clip_vit_s14",)  # dense timm names, with weight tag or without
    methods: tuple[str, ...]  # of `rows.known_methods`; dense is always there
    keeps: tuple[float, ...] = (0.6, 0.3)
    datasets: tuple[str, ...] = ("fashion", "emoji")
    shots: tuple[int, ...] = (0,)  # labelled images per class; 0 takes the text classifier
    tokens: str = "t"  # what is learned from shots, of `TUNINGS`
    num_tokens: int = TuneConfig.count
    seeds: int = 3  # how often it is learned from other shots, counted on from ``seed``
    limit: int | None = 250  # images per dataset, None for the whole split
    split: SplitName = "test"
    seed: int = 0  # of the choice of shots, the first
    device: str = "cpu"
    dtype: str = "float32"  # of `DTYPES`
    batches: tuple[int, ...] = (1, 32)  # for latency, none to skip it
    rounds: int = 5  # latency samples
    match: str | None = None  # what rows of a keep rate have in common instead of it: ``gflops``
    match_to: str = "patchrank"  # the method that has the keep rates, and whose cost others meet

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
        return Tuning(
            shots=file.provenance["shots"],
            seed=file.provenance["draw"],
            kind=file.recipe["tokens"],
            prompt_tokens=file.recipe["count"],
        )
    except KeyError as error:
        raise ValueError(f"prompts {str(file.path)!r} don't say their {error.args[0]}") from error


def check_plan(plan: Plan) -> None:
    """Raise ValueError for what can't be measured, whatever the tower and the data."""
    _check_match(plan)
    if plan.tokens not in TUNINGS:
        raise ValueError(f"--tokens {plan.tokens!r}: {expected(plan.tokens, TUNINGS)}")
    for shots in plan.shots:
        if shots < 0:
            raise ValueError(f"--shots {shots}: expected 0, which is by text, or a number from 1")
    for option, number in (("seeds", plan.seeds), ("num-tokens", plan.num_tokens)):
        if number < 1:
            raise ValueError(f"--{option} {number}: expected a number from 1")


def _check_match(plan: Plan) -> None:
    """Raise ValueError for a plan whose rows can't be at equal cost."""
    if plan.match is None:
        if plan.match_to != Plan.match_to:
            raise ValueError(f"match_to={plan.match_to!r} does nothing without --match gflops")
        return
    if plan.match not in MATCHES:
        raise ValueError(f"match={plan.match!r}: {expected(plan.match, MATCHES)}")
    if GOLDEN in plan.methods:
        raise ValueError(f"method {GOLDEN!r} has no GFLOPs to match, it needs the answer: leave it out of --methods")
    if plan.match_to == DENSE:
        raise ValueError(f"match_to={DENSE!r} has no keep rate: name a method that reduces")
    if plan.match_to not in plan.methods:
        raise ValueError(
            f"match_to={plan.match_to!r} is not measured: {expected(plan.match_to, plan.methods)} "
            "with --match-to, or add it to --methods"
        )
