"""Flags of subcommands as ``commands.toml`` and ``flags.toml`` describe them, and settings made of their values."""

import argparse
import contextlib
import dataclasses
import json
import operator
import tomllib
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from harness.base.terminal import Progress
from harness.cli.outline import Outline, outline, runtime_names

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from harness.datasets.base import SplitName
    from harness.golden.store import Source
    from zoo.core.recipes import TuneConfig
    from zoo.deploy.setup import Setup

C = TypeVar("C", bound="DataclassInstance")
SPLITS: "tuple[SplitName, ...]" = ("train", "val", "test")
SHARED = tomllib.loads(Path(__file__).with_name("flags.toml").read_text("utf-8"))


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


def plot(text: str) -> Path:
    """Read the name of a figure's file."""
    if (path := Path(text)).suffix not in (".png", ".svg"):
        raise ArgumentTypeError(f"{text!r}: expected a name that ends with '.png' or '.svg'")
    return path


def split(text: str) -> str:
    """Read the name of a split; `choices` says which others there are."""
    base = outline("harness.datasets.base")
    if text == base.FINAL:
        raise ArgumentTypeError(base.FINAL_ALONE)
    return text


# Types by name, with the usual name of a value in help.
TYPES: dict[str, tuple[Callable[[str], Any], str | None]] = {
    "str": (str, None), "int": (int, "N"), "positive": (positive, "N"), "float": (float, "X"),
    "keep_rate": (keep_rate, "RATE"), "path": (Path, "FILE"), "plot": (plot, "FILE"),
    "split": (split, None),
}  # fmt: skip

# Words of help that stand for the names of runtimes, with the attributes that these runtimes' classes set.
RUNTIME_WORDS = {"{runtimes}": (), "{file runtimes}": ("suffix",)}

READERS: dict[Any, Callable[[str], Any]] = {float: float, int: int, bool: json.loads}  # of values of CHANGES


def add_flags(parser: argparse.ArgumentParser, groups: Mapping[str, Mapping[str, Any]]) -> None:
    """Add flags to a parser, by the headings of their groups."""
    for title, changes in groups.items():
        entries = SHARED["groups"].get(title, {}) | changes
        config = _resolve(f"@{entries.pop('config')}") if "config" in entries else Outline(())
        group: Any = parser if title in ("arguments", "flags") else parser.add_argument_group(title)
        alternatives = entries.pop("one_of", ())
        one_of = group.add_mutually_exclusive_group(required=True) if alternatives else None
        for name, entry in entries.items():
            options = {"help": entry} if isinstance(entry, str) else entry
            shared = SHARED["flags"].get(name, {"flag": name}) if title != "arguments" else {"flag": name}
            _add(one_of if name in alternatives else group, shared, options, config)


def _add(group: Any, shared: Mapping[str, Any], changes: Mapping[str, Any], config: Outline) -> None:
    """Add a flag, whose default is of ``changes``, else that of the settings' field, else the shared one."""
    options = {**shared, **changes}
    flag = options.pop("flag")
    field = options.get("dest", flag.removeprefix("--").replace("-", "_"))
    if "default" not in changes and field in config:
        options["default"] = getattr(config, field)
    default = options["default"] = _resolve(options.get("default"))
    if default is False:
        group.add_argument(flag, action="store_true", **options)
        return
    if isinstance(default, list | tuple):
        options = {"nargs": "+"} | options | {"default": list(default)}
    sample = default[0] if isinstance(default, list | tuple) and default else default
    kind, metavar = TYPES.get(options.pop("type", type(sample).__name__), TYPES["str"])
    if metavar:
        options.setdefault("metavar", metavar)
    if "choices" in options:
        options["choices"] = _resolve(options["choices"])
        options["help"] = options["help"].replace("{choices}", ", ".join(options["choices"]))
    for word, attributes in RUNTIME_WORDS.items():
        if word in options["help"]:
            options["help"] = options["help"].replace(word, runtime_names(*attributes))
    # "*" of an argument takes nothing before the first flag, and refuses what comes after it.
    required = options.pop("required", None) if flag == field else None
    action = group.add_argument(flag, type=kind, **options)
    if required is not None:
        action.required = required


def _resolve(value: Any) -> Any:
    """Return the constant of one of our modules that "@module:Name" stands for, and None for "none"."""
    if isinstance(value, str) and value[:1] == "@":
        module, _, name = value[1:].partition(":")
        return operator.attrgetter(name)(outline(module))
    return None if value == "none" else value


def check_device(name: str) -> None:
    """Refuse a device that isn't there with a ValueError that names it."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name!r} isn't available: {error}") from error


def limit_of(args: Namespace) -> int | None:
    """Return how many images ``--limit`` and ``--full`` ask for, None for all."""
    return None if args.full else args.limit


def setup_of(args: Namespace, runtime: str | None = None) -> "Setup":
    """Return the setup that these flags and a runtime, if any, ask for.

    Raises:
        ValueError: a file with a method, keep rate or recovery beside it; or what ``Setup.of`` refuses.
        FileNotFoundError: no such file.
    """
    from zoo.deploy.setup import Setup

    recovery = None if args.recovery is None else str(args.recovery)
    budgets = None if args.budgets is None else str(args.budgets)
    values = {"method": args.method, "keep": args.keep, "recovery": recovery, "precision": args.precision}
    values |= {"budgets": budgets, "cost": args.cost}
    fields = {name: value for name, value in (values | {"runtime": runtime}).items() if value is not None}
    if not args.model.endswith(".json"):
        return Setup.of(args.model, **fields)
    setup = Setup.read(Path(args.model))
    for name in fields.keys() - (() if setup.exported else {"runtime", "precision"}):
        raise ValueError(f"--model {args.model!r} with --{name}: the file sets it already; give one of the two")
    return dataclasses.replace(setup, **fields)


def source_of(args: Namespace, progress: Progress) -> "Source":
    """Return the images of ``--images`` or of ``--dataset`` and its split; of a folder, say what is left out."""
    from harness.datasets import get_dataset
    from harness.golden.store import Source

    source = Source.folder(args.images) if args.images else Source.of(get_dataset(args.dataset), args.split)
    for note in source.notes:
        progress.say(note)
    return source


def tune_config(args: Namespace, draws: str, **usual: Any) -> "TuneConfig":
    """Return the recipe of learned tokens that the flags ask for; its seed is the first of ``draws``.

    ``usual`` are fields that differ from the default where ``--tune`` doesn't name them.
    """
    from harness.datasets.few_shot import COOP
    from zoo.core.recipes import TuneConfig

    seed = (1 if draws == COOP else 0) if args.seed is None else args.seed
    return change(TuneConfig(seed=seed, **usual), args.tune, "--tune")


def settings(config: type[C], args: Namespace, /, **further: Any) -> C:
    """Make settings of the flags that are called like their fields, and of ``further`` fields.

    A flag that has no value leaves the field's default; lists become tuples without repeats.
    """
    flags = vars(args)
    names = [field.name for field in dataclasses.fields(config)]
    values = {name: flags[name] for name in names if flags.get(name) is not None}
    if "limit" in names and "full" in flags:
        values["limit"] = limit_of(args)
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(dict.fromkeys(value))
    return config(**values | further)


def change(config: C, changes: str | None, flag: str) -> C:
    """Return settings with changes such as ``anchor=2,coupling=none``; a minus stands for an underscore.

    Raise ValueError for an unknown field, a value of another type, or what the settings refuse.
    """
    from zoo.core.json_reader import from_json

    values, hints = dataclasses.asdict(config), get_type_hints(type(config))
    seed = {"seed": values.pop("seed")} if "seed" in values else {}  # which has its own flag
    for part in changes.split(",") if changes else ():
        word, _, text = (text.strip() for text in part.partition("="))
        name = word.replace("-", "_")
        kinds = get_args(hints.get(name)) or (hints.get(name),)
        values[name] = None if text == "none" and type(None) in kinds else text
        if values[name] is not None and kinds[0] in READERS:
            with contextlib.suppress(ValueError):  # which names the text below
                values[name] = READERS[kinds[0]](text)
    try:
        made: C = from_json(type(config), values, flag, **seed)
    except ValueError as error:
        raise ValueError(f"{flag} {changes!r}: {error}") from error
    return made
