"""On what studies are made."""

from dataclasses import dataclass, field

from harness.datasets.base import SplitName
from zoo.fit import FitConfig
from zoo.golden import GoldenConfig
from zoo.prompt_learner import TuneConfig


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """On what a study is made. Fields that a study varies are not looked at by it.

    Attributes:
        model: dense tower, see ``harness.towers.load_tower``; it needs a text tower.
        datasets: names of those that are judged by, and learnt from.
        split: what is judged by.
        limit: images of it per dataset, see ``evaluate.subset``; None for all.
        train_limit: ranked images to learn from, per dataset; None for all.
        keeps: keep rates; None for the study's own.
        seeds: fits per predictor, and random orders.
        golden: score, block and windows of the golden rankings.
        fit: recipe of predictors; its seed is the first.
        shots: ranked images per class to learn from; None for all.
        tune: recipe of learned tokens; its seed is the first.
        labelled: images per class that they are learned from.
        own_predictors: a tuned model's predictor is fitted to the rankings of its dataset, as all
            others are; else it is the one that ships or is in the user's cache.
        batches: batch sizes to time models at; none to time nothing.
        device: torch device.
        dtype: of the models.
    """

    model: str = "clip_vit_s14"
    datasets: tuple[str, ...] = ("fashion", "emoji")
    split: SplitName = "val"
    limit: int | None = 300
    train_limit: int | None = 500
    keeps: tuple[float, ...] | None = None
    seeds: int = 3
    golden: GoldenConfig = field(default_factory=lambda: GoldenConfig(window=3, stride=2))
    fit: FitConfig = field(default_factory=FitConfig)
    shots: int | None = None
    tune: TuneConfig = field(default_factory=TuneConfig)
    labelled: int = 16
    own_predictors: bool = False
    batches: tuple[int, ...] = ()
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Validate."""
        for name in ("limit", "train_limit", "seeds", "shots", "labelled"):
            value = getattr(self, name)
            if value is not None and value < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} {value}: expected a number from 1")

    def keeps_or(self, usual: tuple[float, ...]) -> tuple[float, ...]:
        """Return the keep rates asked for, else a study's usual ones."""
        return self.keeps or usual

    def described(self, *, tunes: bool = False) -> str:
        """Return in words what models are made of, where a study doesn't vary it.

        Args:
            tunes: the study is about learned tokens.
        """
        if tunes:
            one = self.tune
            whose = "predictors that ship or are fitted as in the other studies"
            if self.own_predictors:
                whose = f"predictors fitted to {self.golden.described()}"
            kind = "" if one.tokens != "vt" else ", coupled" if one.coupled else ", independent"
            return (
                f"Where nothing else is said: {whose}; {one.count} tokens ({one.tokens}{kind}), "
                f"depth {one.depth}, anchor {one.anchor:g}, learned from {self.labelled} labelled "
                f"images per class in at most {one.rounds} rounds of {one.steps} steps of "
                f"{one.batch} images; "
                f"{self.seeds} seeds, each with images of its own, stopped by up to 4 other "
                "images per class."
            )
        fit = self.fit
        images = "all" if self.train_limit is None else f"up to {self.train_limit}"
        few = "" if self.shots is None else f", {self.shots} per class"
        return (
            f"Where nothing else is said: golden {self.golden.described()}; predictors "
            f"{fit.arch} of width {fit.width}, {fit.loss}, {self.seeds} seeds, {images} ranked "
            f"training images of each dataset{few}, stopped by val."
        )
