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
    """What to compare.

    Attributes:
        models: dense timm names, with weight tag or without.
        methods: from ``variants.known_methods``; ``dense`` is always there.
        keeps: keep rates.
        datasets: names.
        shots: labelled training images per class; 0 takes the text classifier.
        tokens: what is learned from shots, of ``TUNINGS``.
        num_tokens: learned tokens.
        seeds: how many times it is learned from other shots, counted on from ``seed``.
        limit: images per dataset, None for the whole split.
        split: test or val.
        seed: of the choice of shots, the first.
        device: torch device.
        dtype: name in ``DTYPES``.
        batches: batch sizes for latency, none to skip it.
        rounds: latency samples.
        match: what each keep rate's rows have in common: None for the keep rate itself, ``gflops``
            for the cost, the other methods' keep rates being solved for it.
        match_to: the method that has the keep rates asked for, and whose cost the others meet.
    """

    models: tuple[str, ...] = ("clip_vit_s14",)
    methods: tuple[str, ...]
    keeps: tuple[float, ...] = (0.6, 0.3)
    datasets: tuple[str, ...] = ("fashion", "emoji")
    shots: tuple[int, ...] = (0,)
    tokens: str = "t"
    num_tokens: int = TuneConfig.count
    seeds: int = 3
    limit: int | None = 250
    split: SplitName = "test"
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    batches: tuple[int, ...] = (1, 32)
    rounds: int = 5
    match: str | None = None
    match_to: str = "patchrank"

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
    """Refuse what can't be measured, whatever the tower and the data.

    Raises:
        ValueError: unknown tokens, a number out of range, or what ``match`` can't do.
    """
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
    """Refuse a plan whose rows can't be at equal cost.

    Raises:
        ValueError: unknown ``match``; a target that has no cost, no keep rate, or isn't measured.
    """
    if plan.match is None:
        if plan.match_to != Plan.match_to:
            raise ValueError(f"match_to={plan.match_to!r} does nothing without --match gflops")
        return
    if plan.match not in MATCHES:
        raise ValueError(f"match={plan.match!r}: {expected(plan.match, MATCHES)}")
    if GOLDEN in plan.methods:
        raise ValueError(
            f"method {GOLDEN!r} has no GFLOPs to match, it needs the answer: leave it out of "
            "--methods"
        )
    if plan.match_to == DENSE:
        raise ValueError(f"match_to={DENSE!r} has no keep rate: name a method that reduces")
    if plan.match_to not in plan.methods:
        raise ValueError(
            f"match_to={plan.match_to!r} is not measured: {expected(plan.match_to, plan.methods)} "
            "with --match-to, or add it to --methods"
        )
