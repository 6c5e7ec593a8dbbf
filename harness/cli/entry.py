"""The program: its subcommands, parse, call, print, exit (see ``command.EXIT_CODES``)."""

import contextlib
import json
import logging
import os
import sys
import textwrap
import warnings
from argparse import Namespace
from collections.abc import Generator, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from harness.base.hints import describe_error
from harness.base.table import Part, Shown, Table, fit, fit_pipe
from harness.base.terminal import Progress, errors, has_width, notes, printable, results
from harness.cli import apps, learn, measure, study
from harness.cli.command import (
    EXIT_CODES,
    PROGRAM,
    Command,
    CommandParser,
    Version,
    add_shared,
    command,
    leaves,
)
from harness.cli.flags import check_device

BROKEN_PIPE = 141  # as a shell tells of a program that SIGPIPE ended
SHELLS = ("bash", "zsh")


def _completion_flags(parser: CommandParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def run_completion(args: Namespace, _status: Console) -> Shown:
    """Show a script that completes commands, flags and names without starting Python."""
    import shtab

    from harness.datasets import KINDS, list_datasets
    from harness.measure.rows import known_methods
    from zoo import METHODS
    from zoo.loading.sizes import MODELS

    names: dict[str, Any] = {"model": list(MODELS), "methods": known_methods(), "method": list(METHODS)}
    names["models"] = names["model"]
    names["dataset"] = names["datasets"] = [*list_datasets(), *(f"{prefix}:" for prefix in KINDS)]
    parser = build_parser()
    for leaf in leaves(parser).values():
        for action in leaf._actions:
            if action.choices is None and action.dest in names and action.nargs != 0:
                action.choices = names[action.dest]
            elif action.type is Path or action.metavar in ("IMAGE", "SOURCE"):
                kind = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE
                action.complete = kind  # type: ignore[attr-defined]
    text = shtab.complete(parser, shell=args.shell)
    return Shown(parts=(text.rstrip(),), data={"shell": args.shell, "script": text})


COMPLETION = command("completion", run_completion, _completion_flags)
GROUPS = (measure, apps, learn, study)
COMMANDS: dict[str, Command] = {
    one.path: one for one in (*(one for group in GROUPS for one in group.COMMANDS), COMPLETION)
}
# First words that have subcommands of their own.
FAMILIES = {
    "fit": "Learn predictors, prompts, recoveries and schedules.",
    "datasets": "Check a local copy of a dataset.",
    "study": "Answer questions by experiments, and reproduce the paper's tables.",
}
DESCRIPTION = """Compare token reduction methods for CLIP vision transformers.

Results go to standard output; progress, notes and errors to standard error."""
EPILOG = f"""examples:
  # models, methods and datasets
  {PROGRAM} list
  # two methods on the datasets that ship
  {PROGRAM} compare --methods patchrank evit --limit 100
  # flags and examples of a command
  {PROGRAM} compare --help

exit codes: {"; ".join(f"{code} {text}" for code, text in EXIT_CODES.items())}"""


def build_parser() -> CommandParser:
    """Return the parser; of what it parses, ``command`` is a path and ``run`` what runs it."""
    parser = CommandParser(prog=PROGRAM, usage=f"{PROGRAM} COMMAND [flags]", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action=Version, nargs=0, help="show versions of the package and its dependencies")
    add_shared(parser)
    groups = {"": _subcommands(parser, "COMMAND")}
    for path, one in COMMANDS.items():
        first, _, second = path.rpartition(" ")
        if first not in groups:
            what, prog = FAMILIES[first], f"{PROGRAM} {first}"
            family = groups[""].add_parser(first, help=what, description=what, prog=prog)
            groups[first] = _subcommands(family, "WHAT")
        text = {"help": one.what, "description": one.what, "prog": f"{PROGRAM} {path}"}
        groups[first].add_parser(second, command=one, **text)
    return parser


def _subcommands(parser: CommandParser, metavar: str) -> Any:
    return parser.add_subparsers(required=True, title="commands", metavar=metavar, parser_class=CommandParser)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code, of `EXIT_CODES`.

    Raises:
        SystemExit: after help or version.
    """
    # Quiet by intention: open_clip logs every tokenizer it builds.
    logging.disable(logging.INFO)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it warns of each try again; what comes of it is told
    words = list(sys.argv[1:] if argv is None else argv)
    color, goes_on = "auto", False
    try:
        require_own_packages()
        args = build_parser().parse_args(words)
        args.argv, color = words, args.color
        goes_on = COMMANDS[args.command].goes_on and not vars(args).get("fresh")
        with _no_empty_folders(args), _warnings_as_notes(args):
            code = _run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still in the buffer has nowhere to go: leave nothing to fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        # Not wrapped, so that a command or a path in it can be copied.
        text = f"[bold red]{PROGRAM}: error:[/] {escape(_describe(error))}"
        errors(color).print(text, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        if "-q" not in words and "--quiet" not in words:
            on = "finished work is kept, and the same command continues it"
            anew = "nothing is left half-written; the same command starts again"
            errors(color).print(f"stopped; {on if goes_on else anew}")
        return 130
    return code


def _describe(error: Exception) -> str:
    """Return the message of an error that a user can mend; raise what is ours to mend."""
    if isinstance(error, (ValueError, OSError)):
        return describe_error(error)
    from zoo.core.files import is_out_of_memory

    if not is_out_of_memory(error):
        raise error
    reason = str(error).partition("\n")[0] or type(error).__name__
    return f"out of memory ({reason}); free some, or ask for less at once, such as a smaller --batch"


def require_own_packages() -> None:
    """Refuse packages of these names that aren't ours: a folder in front of the path may hold others.

    Raises:
        ValueError: names the folder, and the way that isn't fooled.
    """
    here = Path(__file__).resolve().parents[2]
    for name in ("zoo", "baselines"):
        spec = find_spec(name)
        places = [] if spec is None else [*(spec.submodule_search_locations or ()), spec.origin or ""]
        place = Path(places[0] if places else "").resolve()
        if place.parent != here:
            raise ValueError(
                f"{name!r} is {str(place)!r}, not the package beside {str(here / 'harness')!r}: Python finds another "
                f"of that name first; run {PROGRAM} instead of python -m harness, or start it in another folder"
            )


@contextlib.contextmanager
def _no_empty_folders(args: Namespace) -> Iterator[None]:
    """Remove what the body leaves of a new output but empty folders."""
    outputs = [vars(args).get(name) for name in ("output", "out", "folder")]
    folders = [folder for output in outputs if output for folder in (output, *output.parents)]
    new = [folder for folder in folders if not folder.exists()]
    try:
        yield
    finally:
        for made in new:
            for folder, _, _ in os.walk(made, topdown=False):
                with contextlib.suppress(OSError):  # it holds something
                    Path(folder).rmdir()


@contextlib.contextmanager
def _warnings_as_notes(args: Namespace) -> Iterator[None]:
    """Say what the body warns of in a line each, without the place in the code."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: Progress(notes(args)).say(str(message))
        yield


def _run(args: Namespace) -> int:
    from harness.datasets import forget

    status, flags = notes(args), vars(args)
    output = None if args.json else results(args)
    try:
        if flags.get("device") is not None and not (flags.get("workers") or flags.get("replicas")):
            check_device(args.device)  # that of Ray's actors may be elsewhere
        _name_datasets(args, status)
        outcome = args.run(args, status)
        if isinstance(outcome, Generator):
            outcome = _print_parts(outcome, output, explained=args.explain)
        if output is None:
            print(printable(_document(args.command, outcome)))
        else:
            for part in outcome.parts:
                _print(part, output, explained=args.explain)
    finally:
        forget()
    code: int = outcome.code
    return code


def _name_datasets(args: Namespace, status: Console) -> None:
    """Put names where datasets are given by a path, and say how all of them are taken.

    Raises:
        ValueError: a flag for datasets with ``--images``, or a dataset that can't be.
    """
    from harness.datasets import names_of

    flags = vars(args)
    ways = ("root", "download", "templates", "skip_bad", "skip_unknown_classes")
    how = {name: flags[name] for name in ways if name in flags}
    if isinstance(flags.get("images"), Path) and any(how.values()):
        flag = next(name for name, value in how.items() if value).replace("_", "-")
        raise ValueError(f"--{flag} applies to datasets, not to --images; give --dataset images:PATH")
    option = "datasets" if "datasets" in flags else "dataset"
    datasets = flags.get(option) or []
    if flags.get("dry_run") or flags.get("runs"):
        datasets = []  # what is missing is part of what it tells; two runs need no images
    several: list[str] = [datasets] if isinstance(datasets, str) else datasets
    names = names_of(several, **how, progress=Progress(status))
    if datasets:
        setattr(args, option, names[0] if isinstance(datasets, str) else names)


def _document(command: str, outcome: Shown) -> str:
    try:
        return json.dumps(outcome.data, allow_nan=False, ensure_ascii=False, indent=1)
    except ValueError as error:  # ours, and no wrong use
        raise AssertionError(f"{command}: {error}") from error


def _print_parts(work: Generator[Part, None, Shown], output: Console | None, *, explained: bool) -> Shown:
    """Print parts as they come, unless there is nowhere to, and return what is left to show."""
    while True:
        try:
            part = next(work)
        except StopIteration as end:
            shown: Shown = end.value
            return shown
        if output is not None:
            _print(part, output, explained=explained)


def _print(part: Part, output: Console, *, explained: bool) -> None:
    if isinstance(part, str):
        # A line is wrapped between words, for paths to stay whole; several are someone's own.
        if has_width() and "\n" not in part:
            part = textwrap.fill(part, output.width, break_long_words=False, break_on_hyphens=False)
        print(printable(part))
        return
    forms = part.forms(explained=explained) if isinstance(part, Table) else (part,)
    if has_width():
        output.print(fit(forms, output.width))
    else:
        table, width = fit_pipe(forms[0])
        output.print(table, width=width)
