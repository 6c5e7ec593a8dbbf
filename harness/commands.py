"""Settings read from parsed arguments, for commands whose functions lie in other rooms."""

import argparse

from zoo.fit import FitConfig
from zoo.prompt_learner import TuneConfig


def limit_of(args: argparse.Namespace) -> int | None:
    """Return how many images ``--limit`` asks for, None for all."""
    return None if args.full else args.limit


def check(args: argparse.Namespace) -> None:
    """Do nothing: the parser refuses wrong values (``cli.flags``)."""


def check_device(device: str) -> None:
    """Refuse a device that isn't there.

    Raises:
        ValueError: names it.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device!r} can't be used here: {error}") from error


def fit_config(args: argparse.Namespace) -> FitConfig:
    """Return the recipe that the flags of a predictor ask for.

    Raises:
        ValueError: a value out of range.
    """
    names = ("arch", "width", "loss", "epochs", "patience", "batch", "learning_rate", "seed")
    return FitConfig(**{name: getattr(args, name) for name in names})


def tune_config(args: argparse.Namespace) -> TuneConfig:
    """Return the recipe that the flags of learned tokens ask for.

    Studies have flags of the same names for predictors; there the rest is the default.

    Raises:
        ValueError: a value out of range.
    """
    names = ["tokens", "depth", "class_specific", "init", "anchor", "rounds", "seed"]
    if args.command == "fit prompts":
        names += ["patience", "batch", "learning_rate", "visual_rate"]
        names += ["augment", "dtype", "checkpointing"]
    flags = {name: getattr(args, name) for name in names}
    return TuneConfig(**flags, count=args.num_tokens, coupled=not args.independent)
