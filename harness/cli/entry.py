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
from functools import partial
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from harness.base.hints import describe_error, nearest
from harness.base.table import PIPE_WIDTH, Part, Shown, Work, fit, least
from harness.base.terminal import Progress, has_width, notes, printable, results
from harness.cli import apps, learn, measure, study
from harness.cli.command import PROGRAM, TEXTS, Command, CommandParser, command, describe_versions
from harness.cli.flags import check_device

BROKEN_PIPE = 141  # as a shell tells of a program that SIGPIPE ended
COMMANDS: dict[str, Command] = {
    entry.path: entry
    for entry in (
        command("compare", measure.run_compare),
        command("eval", measure.run_eval),
        command("latency", measure.run_latency),
        command("report", measure.run_report),
        command("list", measure.run_list),
        command("datasets check", measure.run_dataset_check),
        command("choose", apps.run_choose),
        command("embed", apps.run_embed),
        command("search", apps.run_search),
        command("serve", apps.run_serve),
        command("export", apps.run_export),
        command("show", apps.run_show),
        command("check", apps.run_check),
        command("push", apps.run_push),
        command("rank", learn.run_rank),
        command("fit predictor", learn.run_fit_predictor),
        command("fit prompts", learn.run_fit_prompts),
        command("fit recovery", learn.run_fit_recovery),
        command("fit schedule", learn.run_fit_schedule),
        command("fit budgets", learn.run_fit_budgets),
        command("study", study.run_study, study.name_study),
        command("study reproduce", study.run_reproduce),
        command("study final", study.run_final),
    )
}
FAMILIES = ("", "fit", "datasets")  # first words of several commands


def list_commands(first: str) -> dict[str, str]:
    """Return the commands behind a first word, or the first words of all commands, with their purposes."""
    depth, every = len(first.split()), [path.split() for path in COMMANDS]
    paths = dict.fromkeys(" ".join(words[: depth + 1]) for words in every if words[:depth] == first.split())
    return {path.split()[-1]: TEXTS[path]["what"] if path in FAMILIES else COMMANDS[path].what for path in paths}


def _list_flags(first: str, parser: CommandParser) -> None:
    """Show the commands behind a first word."""
    if not first:
        parser.add_argument("--version", action="store_true", help="show versions of the package and its dependencies")
    group = parser.add_argument_group("commands")
    for name, what in list_commands(first).items():
        group.add_argument(name, nargs="?", help=what)


def parse(words: Sequence[str]) -> Namespace:
    """Return the arguments of a command line: ``command`` is the path, and ``run`` what runs it.

    Flags of every command may stand before its name. Half a command prints its help. Raise ValueError for a mistake,
    and SystemExit after help or version.
    """
    lead = list(takewhile(lambda word: word.startswith("-"), words))
    rest = words[len(lead) :]
    path = next((path for path in (" ".join(rest[:2]), *rest[:1]) if path in (*COMMANDS, *FAMILIES)), "")
    rest = rest[len(path.split()) :]
    if path in COMMANDS:
        return CommandParser(COMMANDS[path]).parse_args([*lead, *rest])
    parser = CommandParser(command(path, lambda *_: Shown(parts=(), data=None), partial(_list_flags, path)))
    parser.usage = f"{parser.prog} COMMAND [flags]"
    if rest and not rest[0].startswith("-"):
        parser.error(f"{path or 'command'} {rest[0]!r}: {nearest(rest[0], list_commands(path))}")
    if vars(parser.parse_args([*lead, *rest])).get("version"):
        print(describe_versions())
        raise SystemExit(0)
    parser.print_help(sys.stderr)
    raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code, of `EXIT_CODES`; raise SystemExit after help or version."""
    # Quiet by intention: open_clip logs every tokenizer it builds.
    logging.disable(logging.INFO)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it warns of each try again; what comes of it is told
    for name in ("stdout", "stderr"):  # None if it was closed
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  (as long as the program runs)
    words = list(sys.argv[1:] if argv is None else argv)
    goes_on = False
    try:
        require_own_packages()
        args = parse(words)
        args.argv = words
        goes_on = COMMANDS[args.command].goes_on and not vars(args).get("fresh")
        progress = Progress(notes(quiet=args.quiet))
        with _no_empty_folders(args), _warnings_as_notes(progress):
            code = _run(args, progress)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still in the buffer has nowhere to go: leave nothing to fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        # Not wrapped, so that a command or a path in it can be copied.
        text = f"[bold red]{PROGRAM}: error:[/] {escape(_describe(error))}"
        notes().print(text, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        if "-q" not in words and "--quiet" not in words:
            kept = "finished work is kept, and the same command continues it"
            lost = "nothing is left half-written; the same command starts again"
            notes().print(f"stopped; {kept if goes_on else lost}")
        return 130
    return code


def _describe(error: Exception) -> str:
    """Return the message of an error that a user can mend; raise any other error."""
    if isinstance(error, (ValueError, OSError)):
        return describe_error(error)
    from zoo.core.errors import is_out_of_memory

    if not is_out_of_memory(error):
        raise error
    reason = str(error).partition("\n")[0] or type(error).__name__
    return f"out of memory ({reason}); free some, or ask for less at once, such as a smaller --batch"


def require_own_packages() -> None:
    """Refuse, by ValueError, packages of our names that aren't ours: a folder in front of the path may hold others."""
    here = Path(__file__).resolve().parents[2]
    for name in ("zoo", "baselines"):
        spec = find_spec(name)
        places = [] if spec is None else [*(spec.submodule_search_locations or ()), spec.origin or ""]
        place = Path(places[0] if places else "").resolve()
        if place.parent != here:
            wrong = f"{name!r} is {str(place)!r}, not the package beside {str(here / 'harness')!r}"
            remedy = f"run {PROGRAM} instead of python -m harness, or start it in another folder"
            raise ValueError(f"{wrong}: Python finds another of that name first; {remedy}")


@contextlib.contextmanager
def _no_empty_folders(args: Namespace) -> Iterator[None]:
    """Remove the empty folders that the body leaves of a new output."""
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
def _warnings_as_notes(progress: Progress) -> Iterator[None]:
    """Say each warning of the body in a line, without the place in the code."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: progress.say(str(message))
        yield


def _run(args: Namespace, progress: Progress) -> int:
    from harness.datasets import forget

    flags = vars(args)
    output = None if args.json else results()
    try:
        if flags.get("device") is not None and not (flags.get("workers") or flags.get("replicas")):
            check_device(args.device)  # that of Ray's actors may be elsewhere
        _name_datasets(args, progress)
        outcomes: list[Shown] = []
        for part in _parts(args.run(args, progress), outcomes):
            if output is not None:
                with progress.hidden():
                    _print(part, output, explained=args.explain)
        outcome = outcomes[0]
        if output is None:
            try:
                document = json.dumps(outcome.data, allow_nan=False, ensure_ascii=False, indent=1)
            except ValueError as error:  # ours, and no wrong use
                raise AssertionError(f"{args.command}: {error}") from error
            print(printable(document))
    finally:
        forget()
    return outcome.code


def _name_datasets(args: Namespace, progress: Progress) -> None:
    """Replace paths of datasets by their names, and set how all datasets are read."""
    from harness.datasets import Options, names_of

    flags = vars(args)
    keys = ("root", "download", "templates", "skip_bad", "skip_unknown_classes")
    options = {name: flags[name] for name in keys if name in flags}
    if isinstance(flags.get("images"), Path) and any(options.values()):
        flag = next(name for name, value in options.items() if value).replace("_", "-")
        raise ValueError(f"--{flag} applies to datasets, not to --images; give --dataset images:PATH")
    option = "datasets" if "datasets" in flags else "dataset"
    datasets = flags.get(option) or []
    if flags.get("dry_run") or flags.get("runs"):
        datasets = []  # what is missing is part of what it tells; two runs need no images
    names = names_of([datasets] if isinstance(datasets, str) else datasets, Options(**options, progress=progress))
    if datasets:
        setattr(args, option, names[0] if isinstance(datasets, str) else names)


def _parts(outcome: Shown | Work, outcomes: list[Shown]) -> Iterator[Part]:
    """Yield the parts that people see, as they come, and put the outcome into a list."""
    outcomes.append((yield from outcome) if isinstance(outcome, Generator) else outcome)
    yield from outcomes[0].parts


def _print(part: Part, output: Console, *, explained: bool) -> None:
    if isinstance(part, str):
        # A line is wrapped between words, for paths to stay whole; several are someone's own.
        if has_width() and "\n" not in part:
            part = textwrap.fill(part, output.width, break_long_words=False, break_on_hyphens=False)
        print(printable(part))
        return
    forms = part.forms(explained=explained)
    if has_width():
        output.print(fit(forms, output.width))
    else:
        output.print(forms[0], width=max(PIPE_WIDTH, least(forms[0])))
