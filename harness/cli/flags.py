"""Flags that several subcommands share, types of their values, and settings made of them."""

import dataclasses
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from harness.cli.command import CommandParser

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from harness.apps.setup import Setup
    from harness.datasets.base import SplitName
    from zoo.learning.fit import FitConfig
    from zoo.learning.tuning import TuneConfig
    from zoo.ranking.golden import GoldenConfig

C = TypeVar("C", bound="DataclassInstance")
SPLITS: "tuple[SplitName, ...]" = ("train", "val", "test")
DENSE = "clip_vit_s14"
FASHION_AND_EMOJI = ["fashion", "emoji"]


def positive(text: str) -> int:
    """Read a number from 1."""
    try:
        value = int(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r}: expected a whole number") from None
    if value < 1:
        raise ArgumentTypeError(f"{value}: expected a number from 1")
    return value


def limit(text: str) -> int:
    """Read a number of images."""
    try:
        return positive(text)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{error}, or --full") from None


def keep_rate(text: str) -> float:
    """Read a keep rate."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise ArgumentTypeError(f"{text}: expected fractions in (0, 1], such as 0.6")
    return value


def split(text: str) -> str:
    """Read the name of a split; which of the others there are, `choices` says."""
    from harness.datasets.base import FINAL, FINAL_ALONE

    if text == FINAL:
        raise ArgumentTypeError(FINAL_ALONE)
    return text


def dtype(text: str) -> str:
    """Read the name of a precision."""
    from harness.records.conditions import DTYPES
    from zoo.core.messages import expected

    if text not in DTYPES:
        raise ArgumentTypeError(f"{text!r}: {expected(text, DTYPES)}")
    return text


def number(
    group: Any,
    flag: str,
    default: Any,
    text: str,
    *,
    kind: Callable[[str], float] | None = None,
    metavar: str | None = None,
    **more: Any,
) -> None:
    """Add a flag for a number; without ``kind`` the default says whether it is an int or a float.

    With ``nargs`` it takes several.
    """
    kind = kind or (float if isinstance(default, float) else int)
    metavar = metavar or ("X" if kind is float else "N")
    group.add_argument(flag, type=kind, metavar=metavar, default=default, help=text, **more)


def fields(group: Any, config: type[Any], /, **texts: str) -> None:
    """Add a flag for each named field of a settings class; its default is the field's."""
    for name, text in texts.items():
        number(group, f"--{name.replace('_', '-')}", getattr(config, name), text)


def model(group: Any, text: str = "dense name") -> None:
    """Add the model."""
    group.add_argument("--model", default=DENSE, help=text)


def methods(group: Any, default: list[str] | None, text: str, nargs: str = "+") -> None:
    """Add methods."""
    group.add_argument("--methods", nargs=nargs, metavar="METHOD", default=default, help=text)


def keeps(
    group: Any,
    default: list[float] | None,
    text: str = "in (0, 1]",
    kind: Callable[[str], float] = keep_rate,
    **more: Any,
) -> None:
    """Add keep rates."""
    more |= {"nargs": "+", "type": kind, "metavar": "RATE"}
    group.add_argument("--keeps", default=default, help=text, **more)


def dataset(group: Any, **more: Any) -> None:
    """Add one dataset."""
    text = "see `datasets list`; or PREFIX:PATH"
    group.add_argument("--dataset", **{"metavar": "NAME", "help": text} | more)


def datasets(group: Any, default: list[str] | None = FASHION_AND_EMOJI, **more: Any) -> None:
    """Add several datasets, by default those that ship."""
    dataset(group, dest="datasets", nargs="+", default=default, **more)


def root(group: Any) -> None:
    """Add where datasets lie."""
    group.add_argument("--root", type=Path, metavar="DIR", help="of datasets; default: CLIP_PATCHRANK_DATA's")


def data(parser: CommandParser) -> None:
    """Add what says where datasets lie and how they are taken."""
    group = parser.add_argument_group("how datasets are taken")
    root(group)
    group.add_argument("--download", action="store_true", help="get what is missing")
    group.add_argument("--templates", nargs="+", metavar="TEXT", help="prompts with {} for the class, not its own")
    group.add_argument("--skip-bad", action="store_true", help="leave out images that can't be read")
    text = "leave out classes with words that the text tower never saw"
    group.add_argument("--skip-unknown-classes", action="store_true", help=text)


def split_of(group: Any, text: str = "of the dataset", **more: Any) -> None:
    """Add the split."""
    group.add_argument("--split", **{"type": split, "choices": SPLITS, "help": text} | more)


def images(group: Any, count: int, split: str, text: str = "images per dataset") -> None:
    """Add which images, and how many."""
    split_of(group, default=split)
    limits(group, count, text)


def limits(group: Any, count: int | None, text: str = "images per dataset") -> None:
    """Add how many images: ``--limit`` and ``--full``."""
    number(group, "--limit", count, text, kind=limit)
    group.add_argument("--full", action="store_true", help="all images, whatever --limit says")


def limit_of(args: Namespace) -> int | None:
    """Return how many images ``--limit`` and ``--full`` ask for, None for all."""
    return None if args.full else args.limit


def settings(config: type[C], args: Namespace, /, **others: Any) -> C:
    """Make settings of the flags that are called like their fields, and of others.

    A flag that has no value leaves the field's default; lists become tuples without repeats.

    Raises:
        ValueError: what the settings refuse.
    """
    flags = vars(args)
    names = [field.name for field in dataclasses.fields(config)]
    values = {name: flags[name] for name in names if flags.get(name) is not None}
    if "limit" in names and "full" in flags:
        values["limit"] = limit_of(args)
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(dict.fromkeys(value))
    return config(**values | others)


def conditions(parser: CommandParser) -> Any:
    """Add the conditions of a measurement and return their group."""
    from harness.measure.plan import Plan

    group = parser.add_argument_group("conditions")
    assert Plan.limit is not None
    images(group, Plan.limit, Plan.split)
    fields(group, Plan, seed="of the choice of shots")
    machine(group)
    return group


def machine(group: Any, text: str = "float32, bfloat16 or float16") -> None:
    """Add device and precision."""
    device(group)
    group.add_argument("--dtype", type=dtype, default="float32", help=text)


def device(group: Any, default: str | None = "cpu", text: str = "such as cuda:0") -> None:
    """Add the device, which `entry` checks before the command runs."""
    group.add_argument("--device", default=default, help=f"torch device, {text}")


def random_weights(group: Any, text: str = "where none can be had") -> None:
    """Add ``--random-weights``."""
    group.add_argument("--random-weights", action="store_true", help=text)


def check_device(name: str) -> None:
    """Refuse a device that isn't there with a ValueError that names it."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name!r} can't be used here: {error}") from error


def setup(parser: CommandParser, what: str = "model") -> Any:
    """Add a tower with its reduction and return the group."""
    group = parser.add_argument_group(what)
    text = "a reduced or dense model's name, see `list`; or a file of `choose`"
    group.add_argument("--model", default=DENSE, help=text)
    group.add_argument("--method", metavar="METHOD", help="that reduces a dense model")
    number(group, "--keep", None, "of the method, in (0, 1]", kind=keep_rate, metavar="RATE")
    group.add_argument("--recovery", type=Path, metavar="FILE", help="of this model, as `fit recovery` writes")
    random_weights(group, "none are loaded; for trying things out")
    group.add_argument("--dtype", type=dtype, help="default: float32, or what the file says")
    return group


def setup_of(args: Namespace) -> "Setup":
    """Return the setup that these flags ask for.

    Raises:
        ValueError: a file with a method, keep rate or recovery beside it; or what ``Setup.of`` refuses.
        FileNotFoundError: no such file.
    """
    from harness.apps.setup import Setup

    recovery = None if args.recovery is None else str(args.recovery)
    if not args.model.endswith(".json"):
        return Setup.of(
            args.model, method=args.method, keep=args.keep, recovery=recovery, dtype=args.dtype or Setup.dtype
        )
    for name in ("method", "keep", "recovery"):
        if getattr(args, name) is not None:
            raise ValueError(f"--model {args.model!r} with --{name}: the file says it, give one of the two")
    own = Setup.read(Path(args.model))
    return own if args.dtype is None else dataclasses.replace(own, dtype=args.dtype)


def golden_windows(parser: CommandParser, *, window: int = 2, stride: int = 1) -> Any:
    """Add block, window and stride of golden rankings and return their group."""
    group = parser.add_argument_group("golden rankings")
    block(group)
    number(group, "--window", window, "side in patches")
    number(group, "--stride", stride, "in patches")
    return group


def block(group: Any) -> None:
    """Add the reduction point."""
    from zoo.ranking.golden import GoldenConfig

    fields(group, GoldenConfig, block="patches go before this block")


def golden_config(args: Namespace) -> "GoldenConfig":
    """Return the settings of golden rankings that the flags ask for."""
    from zoo.ranking.golden import GoldenConfig

    return settings(GoldenConfig, args, approximate=vars(args).get("approx"))


def output(group: Any, default: str | None, text: str, metavar: str = "DIR", **more: Any) -> None:
    """Add where files go."""
    place = None if default is None else Path(default)
    group.add_argument("--output", type=Path, metavar=metavar, default=place, help=text, **more)


def fresh(group: Any, text: str = "measure again what is known") -> None:
    """Add ``--fresh``."""
    group.add_argument("--fresh", action="store_true", help=text)


def predictor_recipe(parser: CommandParser, *, study: bool = False) -> None:
    """Add how a predictor is fitted; the seed of a ``study`` is that of tokens, too."""
    from zoo.learning.fit import FitConfig

    group = parser.add_argument_group("predictor")
    group.add_argument("--arch", default=FitConfig.arch, help="see zoo/core/predictor.py")
    group.add_argument("--loss", default=FitConfig.loss, help="see zoo/learning/fit.py")
    fields(group, FitConfig, width="channels inside the predictor", epochs="at most")
    fields(group, FitConfig, patience="epochs without a better one", batch="images per step")
    text = "of weights, order and shots"
    if study:
        number(group, "--seed", None, f"{text}, the first; default: 0, of CoOp's draws 1")
    else:
        fields(group, FitConfig, seed=text)
    fields(group, FitConfig, learning_rate="of AdamW")


def fit_config(args: Namespace) -> "FitConfig":
    """Return the recipe that the flags of a predictor ask for."""
    from zoo.learning.fit import FitConfig

    return settings(FitConfig, args)


def draws(group: Any, default: str | None, text: str) -> None:
    """Add ``--draws``: which labelled images a seed means."""
    from harness.datasets.few_shot import DRAWS

    about = f"of labelled images: ours, or coop, those of CoOp's own runs, whose seeds begin at 1{text}"
    group.add_argument("--draws", choices=DRAWS, metavar="WHOSE", default=default, help=about)


# Fields of ``TuneConfig`` that have a flag for a value, with what its help says.
_LEARNED = {
    "tokens": "t: text, v: visual, vt: both",
    "count": "learned ones in a sequence",
    "depth": "blocks that get tokens of their own",
    "init": "that text tokens begin with",
    "anchor": "weight of the distance to the templates' features",
    "epochs": "passes through the images at most, in place of rounds",
    "rounds": "without epochs: at most",
    "steps": "without epochs: of a round",
    "patience": "rounds or epochs without a better one; 0: to the end, unvalidated",
    "batch": "images per step",
    "optimiser": "adamw or sgd",
    "momentum": "of sgd",
    "weight_decay": "of learned tokens",
    "learning_rate": "of text tokens",
    "visual_rate": "of visual ones",
    "schedule": "cosine or constant",
    "warmup": "first rounds or epochs, at a rate of their own",
    "warmup_rate": "that rate",
}
_WORDS = {"count": "num-tokens"}  # of flags that aren't called like their field


def tuning_recipe(parser: CommandParser, *, study: bool = False) -> Any:
    """Add what is learned from a few labelled images, and how, and return its group.

    Flags without a value leave what the recipe says. In a study those that a predictor's recipe has
    too begin with ``--tune-``.
    """
    from zoo.learning.tuning import RECIPES

    group = parser.add_argument_group("learned tokens")
    text = f"{', '.join(RECIPES)}: what follows, where nothing else is said"
    group.add_argument("--recipe", choices=tuple(RECIPES), metavar="NAME", default="embedded", help=text)
    for name, about in _LEARNED.items():
        values = _by_recipe(name)
        (kind,) = {type(value) for value in values.values() if value is not None}
        metavar = {int: "N", float: "X"}.get(kind, "WORDS" if name == "init" else name.upper())
        shown = {recipe: _typed(value) for recipe, value in values.items()}
        one = len(set(shown.values())) == 1
        says = f"default: {shown['embedded']}" if one else ", ".join(map(" ".join, shown.items()))
        flag = _tuning_flag(name, study)
        group.add_argument(flag, type=kind, metavar=metavar, help=f"{about}; {says}")
    ways = group.add_mutually_exclusive_group()
    says = ", ".join(f"{recipe} {value}" for recipe, value in _by_recipe("coupling").items())
    text = f"of visual to text tokens, offset: P_v = M P_t + p, or printed, as in the paper: P_v = M P_t; {says}"
    ways.add_argument("--coupling", choices=("offset", "printed"), metavar="HOW", help=text)
    text = "visual tokens are learned, not mapped from text tokens"
    ways.add_argument("--independent", dest="coupling", action="store_const", const="none", help=text)
    group.add_argument("--class-specific", action="store_true", help="text tokens of their own for each class")
    return group


def _by_recipe(name: str) -> dict[str, Any]:
    """Return what recipes say of a field; those of epochs say nothing of rounds."""
    from zoo.learning.tuning import RECIPES

    rounds = name in ("rounds", "steps")
    return {recipe: getattr(one, name) for recipe, one in RECIPES.items() if one.epochs is None or not rounds}


def _typed(value: Any) -> str:
    """Return a value as it would be typed."""
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else repr(value) if " " in str(value) else str(value)


def _tuning_flag(name: str, study: bool) -> str:
    from zoo.learning.fit import FitConfig

    word = _WORDS.get(name, name.replace("_", "-"))
    return f"--tune-{word}" if study and hasattr(FitConfig, name) else f"--{word}"


def tune_config(args: Namespace, draws: str) -> "TuneConfig":
    """Return the recipe of learned tokens that the flags ask for; its seed is the first of ``draws``.

    Raises:
        ValueError: rounds for a recipe of epochs, or what ``TuneConfig`` refuses.
    """
    from harness.datasets.few_shot import COOP
    from zoo.learning.tuning import RECIPES

    study = args.command != "fit prompts"
    recipe, known = RECIPES[args.recipe], {name: _tuning_flag(name, study) for name in _LEARNED}
    dests = {name: flag.removeprefix("--").replace("-", "_") for name, flag in known.items()}
    values = {name: getattr(args, dest) for name, dest in (dests | {"coupling": "coupling"}).items()}
    changes = {name: value for name, value in values.items() if value is not None}
    if changes.get("epochs", recipe.epochs) is not None:
        for name in {"rounds", "steps"} & changes.keys():
            raise ValueError(
                f"{known[name]} {changes[name]} with --recipe {args.recipe} or {known['epochs']}: epochs take the "
                f"place of rounds and their steps; give {known['epochs']}"
            )
    if changes.get("tokens") == "v":
        changes.setdefault("init", None)
    changes["class_specific"] = args.class_specific
    changes["seed"] = (1 if draws == COOP else 0) if args.seed is None else args.seed
    if not study:
        changes |= {name: getattr(args, name) for name in ("augment", "dtype", "checkpointing")}
    return dataclasses.replace(recipe, **changes)
