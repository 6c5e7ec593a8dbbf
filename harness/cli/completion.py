"""Scripts that complete commands, flags and names in a shell, without starting Python."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import shtab

from harness.cli.command import ANY, CommandParser, leaves
from harness.datasets import KINDS, list_datasets
from harness.measure.rows import known_methods
from harness.records.conditions import DTYPES, TUNINGS
from harness.studies.reproduce import list_targets
from harness.studies.run import list_studies
from zoo.core.predictor import ARCHITECTURES
from zoo.core.reducer import METHODS
from zoo.learning.fit import LOSSES
from zoo.loading.sizes import MODELS
from zoo.ranking.golden import SCORES

FOLDER = "DIR"  # metavar of a path that is a folder


def script(shell: str, parser: CommandParser) -> str:
    """Return the script for a shell; the parser is used up."""
    complete(parser)
    # The word that stands for any study becomes the names of all.
    studies = _subcommands(_subcommands(parser).choices["study"])
    leaf = studies.choices.pop(ANY)
    leaf._actions = [action for action in leaf._actions if action.dest != "name"]
    kept = [entry for entry in studies._choices_actions if entry.dest != ANY]
    for name, study in list_studies().items():
        studies.choices[name] = leaf
        kept.append(studies._ChoicesPseudoAction(name, (), study.question))
    studies._choices_actions = kept
    return shtab.complete(parser, shell=shell)


def _subcommands(parser: argparse.ArgumentParser) -> Any:
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return action


def complete(parser: CommandParser) -> None:
    """Tell a parser the names that its arguments take; it can't parse any more."""
    for path, leaf in leaves(parser).items():
        for action in leaf._actions:
            _complete(path, action)


def _complete(path: str, action: argparse.Action) -> None:
    if action.choices is not None or action.nargs == 0:
        return
    names = NAMES.get(f"{path} {action.dest}") or NAMES.get(action.dest)
    if names is not None:
        action.choices = list(names())
    elif action.type is Path or action.dest in ("images", "source"):
        kind = shtab.DIRECTORY if action.metavar == FOLDER else shtab.FILE
        action.complete = kind  # type: ignore[attr-defined]


def _dense() -> Iterable[str]:
    return (name for name, spec in MODELS.items() if spec.dense == name)


def _datasets() -> Iterable[str]:
    return [*list_datasets(), *(f"{prefix}:" for prefix in KINDS)]


# What can be completed, by the name of an argument or by its command and name.
NAMES: dict[str, Callable[[], Iterable[str]]] = {
    "model": lambda: MODELS,
    "models": _dense,
    "methods": lambda: METHODS,
    "method": lambda: METHODS,
    "compare methods": known_methods,
    "study floor methods": known_methods,
    "match_to": lambda: METHODS,
    "match": lambda: ("gflops",),
    "dataset": _datasets,
    "datasets": _datasets,
    "tokens": lambda: TUNINGS,
    "dtype": lambda: DTYPES,
    "embedding_dtype": lambda: ("float16", "float32"),
    "score": lambda: SCORES,
    "scores": lambda: SCORES,
    "by": lambda: (*SCORES, *METHODS),
    "arch": lambda: ARCHITECTURES,
    "loss": lambda: LOSSES,
    "study reproduce names": list_targets,
    "device": lambda: ("cpu", "cuda"),
}
