"""The command line: parse, call, print, exit (0 fine, 1 problems, 2 wrong use, 130 stopped)."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from harness.datasets import forget, names_of
from harness.flags import build_parser
from harness.golden.work import OtherProcessError
from harness.listing import list_tables
from harness.progress import Progress
from harness.table import comparison_table

PIPE_WIDTH = 200


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: arguments, those of the process if None.

    Returns:
        Exit code: 0 fine, 1 a dataset has problems, 2 wrong use, 130 stopped by Ctrl-C.
    """
    # Quiet by intention: open_clip logs every tokenizer it builds.
    logging.disable(logging.INFO)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    args = build_parser().parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    console = Console(stderr=True)
    try:
        _name_datasets(args)
        code = COMMANDS[args.command](args)
    except (ValueError, OSError) as error:
        # Not wrapped, so that a command or a path in it can be copied.
        text = f"[bold red]error:[/] {escape(str(error))}"
        console.print(text, highlight=False, soft_wrap=True)
        return 2
    except OtherProcessError:
        return 2
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":  # of many processes, the first speaks
            console.print("stopped; what is done is kept, the same command goes on from there")
        return 130
    finally:
        forget()
    return code or 0


def _name_datasets(args: argparse.Namespace) -> None:
    """Put names where datasets are given by a path, and say how all of them are taken."""
    flags = vars(args)
    told = {
        name: flags[name] for name in ("root", "download", "templates", "skip_bad") if name in flags
    }
    if isinstance(flags.get("images"), Path) and any(told.values()):
        flag = next(name for name, value in told.items() if value).replace("_", "-")
        raise ValueError(f"--{flag} with --images: it is for datasets; use --dataset folder:PATH")
    option = "datasets" if "datasets" in flags else "dataset"
    given = flags.get(option) or []
    if flags.get("dry_run") or flags.get("runs"):
        given = []  # what is missing is part of what it tells; two runs need no images
    names = names_of(
        [given] if isinstance(given, str) else given,
        **told,
        progress=Progress(Console(stderr=True)),
    )
    if given:
        setattr(args, option, names[0] if isinstance(given, str) else names)


def _limit(args: argparse.Namespace) -> int | None:
    if args.limit < 1:
        raise ValueError(f"--limit {args.limit}: expected a number from 1, or --full")
    return None if args.full else int(args.limit)


def _output() -> Console:
    """Return where results go; tables stay whole in pipes and files, which have no width."""
    console = Console()
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(width=PIPE_WIDTH)


def _compare(args: argparse.Namespace) -> None:
    if args.runs:
        from harness.changes_command import run_changes

        run_changes(args, Console(stderr=True), _output())
        return
    from harness.commands import run_compare

    run_compare(args, _limit(args), Console(stderr=True), _output())


def _eval(args: argparse.Namespace) -> None:
    from harness.commands import WIDE, run_eval

    output = _output()
    records = run_eval(args, _limit(args), Console(stderr=True))
    output.print(comparison_table(records, wide=output.width >= WIDE))


def _floor(args: argparse.Namespace) -> None:
    from harness.commands import run_floor

    run_floor(args, _limit(args), Console(stderr=True), _output())


def _list(_args: argparse.Namespace) -> None:
    output = _output()
    for table in list_tables():
        output.print(table)


def _datasets(args: argparse.Namespace) -> int:
    from harness.dataset_commands import run_datasets

    output = _output()
    found = run_datasets(args, Console(stderr=True))
    for part in found.parts:
        output.print(part, highlight=False, markup=False, soft_wrap=isinstance(part, str))
    return 1 if found.problems else 0


def _rank(args: argparse.Namespace) -> None:
    from harness.commands import run_rank

    done = run_rank(args, Console(stderr=True))
    if done.leads:
        text = f"wrote {done.path}: {done.images} of {done.total} images"
        _output().print(text, highlight=False, markup=False, soft_wrap=True)


def _fit(args: argparse.Namespace) -> None:
    if args.what == "prompts":
        from harness.prompt_commands import run_prompts

        text = str(run_prompts(args, Console(stderr=True)))
        _output().print(text, highlight=False, markup=False, soft_wrap=True)
        return
    from harness.predictor_commands import run_fit

    path, tau = run_fit(args, Console(stderr=True))
    text = f"wrote {path}; Kendall tau on the validation images {tau:.3f}"
    _output().print(text, soft_wrap=True)


def _study(args: argparse.Namespace) -> None:
    from harness.studies.commands import run_study

    output = _output()
    for table in run_study(args, _limit(args), Console(stderr=True)):
        output.print(table)


def _overhead(args: argparse.Namespace) -> None:
    from harness.predictor_commands import run_overhead

    _output().print(run_overhead(args, Console(stderr=True)))


def _latency(args: argparse.Namespace) -> None:
    from harness.latency.command import run_latency

    output = _output()
    for part in run_latency(args, Console(stderr=True)):
        output.print(part, highlight=False, markup=False, soft_wrap=isinstance(part, str))


def _show(args: argparse.Namespace) -> None:
    from harness.golden.commands import run_show

    shown = run_show(args, Console(stderr=True))
    output = _output()
    for note in shown.notes:
        output.print(note, highlight=False, markup=False, soft_wrap=True)
    output.print(f"wrote {shown.path}", soft_wrap=True)


def _objects(args: argparse.Namespace) -> None:
    from harness.golden.commands import run_objects

    _output().print(run_objects(args, _limit(args), Console(stderr=True)))


def _curve(args: argparse.Namespace) -> None:
    from harness.golden.chart import curve_table
    from harness.golden.commands import run_curve

    _output().print(curve_table(run_curve(args, _limit(args), Console(stderr=True))))


def _speed(args: argparse.Namespace) -> None:
    from harness.golden.commands import run_speed

    output = _output()
    for table in run_speed(args, Console(stderr=True)):
        output.print(table)


def _push(args: argparse.Namespace) -> None:
    from harness.push import run_push

    text = str(run_push(args, Progress(Console(stderr=True))))
    _output().print(text, highlight=False, markup=False, soft_wrap=True)


def _reproduce(args: argparse.Namespace) -> None:
    from harness.reproduction.commands import run_reproduce

    output = _output()
    for table in run_reproduce(args, Console(stderr=True)):
        output.print(table)


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "compare": _compare,
    "eval": _eval,
    "list": _list,
    "datasets": _datasets,
    "floor": _floor,
    "rank": _rank,
    "fit": _fit,
    "study": _study,
    "overhead": _overhead,
    "latency": _latency,
    "show": _show,
    "objects": _objects,
    "curve": _curve,
    "speed": _speed,
    "push": _push,
    "reproduce": _reproduce,
}
