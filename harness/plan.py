"""What to compare, and under which conditions."""

from dataclasses import dataclass, replace

import torch

from harness.datasets.base import SplitName
from zoo.prompt_learner import TuneConfig
from zoo.prompts import PromptFile
from zoo.reducer import expected

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROBE = "probe"
PROMPTS = {  # learned tokens, by the letters that --tokens takes
    "t": "learned text tokens",
    "v": "learned visual tokens",
    "vt": "learned visual and text tokens",
}
TUNINGS = (*PROMPTS, PROBE)
TRACED = 64  # images of a dataset whose rankings and kept patches `compare` stores


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What classifies images: the classes' captions as they are, or something learned from shots.

    Attributes:
        shots: labelled training images per class; 0 takes the captions.
        seed: of the choice of shots and of what is learned from them.
        kind: of ``TUNINGS``; None at 0 shots.
        prompt_tokens: learned tokens; None where none are.
    """

    shots: int = 0
    seed: int = 0
    kind: str | None = None
    prompt_tokens: int | None = None

    @property
    def prompted(self) -> bool:
        """Whether tokens are learned, each row's its own."""
        return self.kind in PROMPTS

    @property
    def visual(self) -> bool:
        """Whether learned tokens go through the image tower, whose features they change."""
        return self.kind in ("v", "vt")


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


def check_tunings(plan: Plan) -> None:
    """Refuse what can't be learned, whatever the data.

    Raises:
        ValueError: unknown tokens, or a number out of range.
    """
    if plan.tokens not in TUNINGS:
        raise ValueError(f"--tokens {plan.tokens!r}: {expected(plan.tokens, TUNINGS)}")
    for shots in plan.shots:
        if shots < 0:
            raise ValueError(f"--shots {shots}: expected 0, which is by text, or a number from 1")
    for option, number in (("seeds", plan.seeds), ("num-tokens", plan.num_tokens)):
        if number < 1:
            raise ValueError(f"--{option} {number}: expected a number from 1")
