"""Flags that several subcommands share, types of their values, and settings made of them."""

import dataclasses
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from harness.cli.command import CommandParser
from harness.cli.outline import outline

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from harness.apps.setup import Setup
    from harness.datasets.base import SplitName
    from zoo.learning.tuning import TuneConfig
    from zoo.ranking.golden import GoldenConfig

C = TypeVar("C", bound="DataclassInstance")
SPLITS: "tuple[SplitName, ...]" = ("train", "val", "test")
DENSE = "clip_vit_s14"
DTYPES = outline("zoo.core.messages").PRECISIONS
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


def keep_rate(text: str) -> float:
    """Read a keep rate."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        hint = f"did you mean {value / 100:g}? " if 10 <= value <= 100 else ""
        raise ArgumentTypeError(f"{text}: {hint}expected fractions in (0, 1], such as 0.6")
    return value


def split(text: str) -> str:
    """Read the name of a split; `choices` says which others there are."""
    base = outline("harness.datasets.base")
    if text == base.FINAL:
        raise ArgumentTypeError(base.FINAL_ALONE)
    return text


METAVARS: dict[Any, str] = {int: "N", positive: "N", float: "X", keep_rate: "RATE", Path: "FILE"}
MODEL, METHOD = {"metavar": "MODEL"}, {"metavar": "METHOD"}


def add(group: Any, flag: str, default: Any, text: str, kind: Callable[[str], Any] | None = None, **more: Any) -> None:
    """Add a flag for a value of the default's type, or of ``kind``; one whose default is a list takes several."""
    if default is False:
        group.add_argument(flag, action="store_true", help=text, **more)
        return
    if isinstance(default, list):
        more = {"nargs": "+"} | more
    if kind is None:
        sample = default[0] if isinstance(default, list) and default else default
        kind = Path if isinstance(sample, Path) else type(sample) if isinstance(sample, int | float) else str
    if kind in METAVARS:
        more = {"metavar": METAVARS[kind]} | more
    group.add_argument(flag, default=default, type=kind, help=text, **more)


def fields(group: Any, config: Any, /, **texts: str) -> None:
    """Add a flag for each named field of a settings class, or of its outline; its default is the field's."""
    for name, text in texts.items():
        default = getattr(config, name)
        add(group, f"--{name.replace('_', '-')}", list(default) if isinstance(default, tuple) else default, text)


SEVERAL = {"nargs": "+"}
ANY_DATASET = "a name of `list`, or PREFIX:PATH such as images:photos"
# Flags of several commands: flag, default, help, type, and more arguments of `add`.
USUAL: dict[str, tuple[str, Any, str, Any, dict[str, Any]]] = {
    "model": ("--model", DENSE, "a dense model's name, see `list`", None, MODEL),
    "models": ("--model", None, "models' names, see `list`", None, {**SEVERAL, **MODEL, "dest": "models"}),
    "method": ("--method", None, "method that reduces a dense model; see `list`", None, METHOD),
    "keep": ("--keep", None, "its keep rate in (0, 1]", keep_rate, {}),
    "methods": ("--methods", None, "see `list`", None, {**SEVERAL, **METHOD}),
    "keeps": ("--keeps", None, "keep rates in (0, 1]", keep_rate, {**SEVERAL, "metavar": "RATE"}),
    "dataset": ("--dataset", None, ANY_DATASET, None, {"metavar": "NAME"}),
    "datasets": ("--dataset", None, ANY_DATASET, None, {**SEVERAL, "metavar": "NAME", "dest": "datasets"}),
    "root": ("--root", None, "folder of public datasets; default: $CLIP_PATCHRANK_DATA", Path, {"metavar": "DIR"}),
    "download": ("--download", False, "download what is missing", None, {}),
    "split": ("--split", "test", "split of the dataset", split, {"choices": SPLITS}),
    "device": ("--device", "cpu", "torch device, such as cuda:0", None, {}),
    "dtype": ("--dtype", "float32", f"precision: {', '.join(DTYPES)}", None, {"choices": DTYPES, "metavar": "DTYPE"}),
    "dtypes": ("--dtypes", [], f"precisions: {', '.join(DTYPES)}", None, {"choices": DTYPES, "metavar": "DTYPE"}),
    "halves": ("--halves", False, "tables of the smoother and of the more detailed half of the images, too", None, {}),
    "fresh": ("--fresh", False, "measure again what was measured before", None, {}),
}


def usual(group: Any, *names: str, **changes: Any) -> None:
    """Add flags of `USUAL`, with some of the arguments changed."""
    for name in names:
        flag, default, text, kind, more = USUAL[name]
        add(group, flag, **{"default": default, "text": text, "kind": kind} | more | changes)


def data(parser: CommandParser) -> None:
    """Add where datasets are and how they are read."""
    group = parser.add_argument_group("how datasets are read")
    usual(group, "root", "download")
    text = "prompts instead of the dataset's own, with {} for the class"
    add(group, "--templates", None, text, nargs="+", metavar="TEXT")
    add(group, "--skip-bad", False, "leave out images that can't be read")
    add(group, "--skip-unknown-classes", False, "leave out classes with words that the text tower doesn't know")


def limits(group: Any, count: int | None, text: str = "images per dataset") -> None:
    """Add how many images: ``--limit`` and ``--full``."""
    add(group, "--limit", count, text, positive)
    add(group, "--full", False, "use all images; --limit is ignored")


def images(group: Any, count: int, split: str, text: str = "images per dataset") -> None:
    """Add which images, and how many."""
    usual(group, "split", default=split)
    limits(group, count, text)


def limit_of(args: Namespace) -> int | None:
    """Return how many images ``--limit`` and ``--full`` ask for, None for all."""
    return None if args.full else args.limit


def check_device(name: str) -> None:
    """Refuse a device that isn't there with a ValueError that names it."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name!r} isn't available: {error}") from error


def conditions(parser: CommandParser) -> Any:
    """Add the conditions of a measurement and return their group."""
    plan = outline("harness.measure.plan").Plan
    group = parser.add_argument_group("conditions")
    images(group, plan.limit, plan.split)
    fields(group, plan, seed="first seed, for the choice of shots")
    usual(group, "device", "dtype")
    return group


def output(group: Any, default: str | None, text: str, metavar: str = "DIR", **more: Any) -> None:
    """Add where files go."""
    add(group, "--output", None if default is None else Path(default), text, Path, metavar=metavar, **more)


def setup(parser: CommandParser) -> None:
    """Add a tower with its reduction."""
    group = parser.add_argument_group("model")
    usual(group, "model", text="a dense or reduced model's name, see `list`; or a file that `choose` wrote")
    usual(group, "method", "keep")
    add(group, "--recovery", None, "file that `fit recovery` wrote for this model", Path)
    add(group, "--random-weights", False, "load no weights; for a trial")
    usual(group, "dtype", default=None, text="precision; default: float32, or what the file says")


def setup_of(args: Namespace) -> "Setup":
    """Return the setup that these flags ask for.

    Raises:
        ValueError: a file with a method, keep rate or recovery beside it; or what ``Setup.of`` refuses.
        FileNotFoundError: no such file.
    """
    from harness.apps.setup import Setup

    own = {name: getattr(args, name) for name in ("method", "keep", "recovery") if getattr(args, name) is not None}
    precision = {} if args.dtype is None else {"dtype": args.dtype}
    if not args.model.endswith(".json"):
        if "recovery" in own:
            own["recovery"] = str(own["recovery"])
        return Setup.of(args.model, **own, **precision)
    for name in own:
        raise ValueError(f"--model {args.model!r} with --{name}: the file sets it already; give one of the two")
    return dataclasses.replace(Setup.read(Path(args.model)), **precision)


def golden_config(args: Namespace) -> "GoldenConfig":
    """Return the settings of golden rankings that the flags ask for."""
    from zoo.ranking.golden import GoldenConfig

    return settings(GoldenConfig, args, approximate=vars(args).get("approx"))


def tokens_recipe(group: Any, draws: str | None, text: str = "") -> None:
    """Add what is learned from a few labelled images, and how."""
    add(group, "--tune", None, "changes to how tokens are learned, FIELD=VALUE,...", metavar="CHANGES")
    about = f"which labelled images: ours, or coop for those of CoOp's own runs{text}"
    choices = outline("harness.datasets.few_shot").DRAWS
    add(group, "--draws", draws, about, choices=choices, metavar="WHOSE")
    add(group, "--seed", None, "first seed, for images and recipe; default: 0, with --draws coop 1", int)


def tune_config(args: Namespace, draws: str, **usual: Any) -> "TuneConfig":
    """Return the recipe of learned tokens that the flags ask for; its seed is the first of ``draws``.

    ``usual`` are fields that differ from the default where ``--tune`` doesn't name them. Raises what ``TuneConfig``
    refuses.
    """
    from harness.datasets.few_shot import COOP
    from zoo.learning.tuning import TuneConfig

    seed = (1 if draws == COOP else 0) if args.seed is None else args.seed
    return change(TuneConfig(seed=seed, **usual), args.tune, "--tune")


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


def change(config: C, changes: str | None, flag: str) -> C:
    """Return settings with changes such as ``anchor=2,coupling=none``; a minus stands for an underscore.

    Raises:
        ValueError: an unknown field, a value of another type, or what the settings refuse.
    """
    from zoo.core.messages import expected

    hints = get_type_hints(type(config))
    known = [field.name for field in dataclasses.fields(config) if field.name != "seed"]  # which has its own flag
    values: dict[str, Any] = {}
    for part in changes.split(",") if changes else ():
        word, equals, text = (one.strip() for one in part.partition("="))
        name = word.replace("-", "_")
        if not equals or not text:
            raise ValueError(f"{flag} {changes!r}: expected FIELD=VALUE,...")
        if name not in known:
            raise ValueError(f"{flag} {changes!r}: field {word!r}: {expected(name, known)}")
        kinds = get_args(hints[name]) or (hints[name],)
        if text == "none" and type(None) in kinds:
            values[name] = None
            continue
        try:
            values[name] = {"true": True, "false": False}[text] if kinds[0] is bool else kinds[0](text)
        except (KeyError, ValueError):
            what = {bool: "true or false", int: "a whole number", float: "a number"}[kinds[0]]
            raise ValueError(f"{flag} {changes!r}: {word}={text}: expected {what}") from None
    return dataclasses.replace(config, **values)
