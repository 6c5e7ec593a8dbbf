"""The flags of every subcommand."""

import argparse

from harness.flags.data import add_datasets
from harness.flags.latency import add_latency
from harness.flags.learning import add_fit, add_overhead, add_study
from harness.flags.measuring import add_compare, add_eval, add_floor, add_list
from harness.flags.publishing import add_push
from harness.flags.ranking import add_curve, add_objects, add_rank, add_show, add_speed
from harness.flags.reproducing import add_reproduce


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; ``command`` in what it parses is a key of ``cli.COMMANDS``."""
    parser = argparse.ArgumentParser(
        prog="python -m harness", description="Compare token reduction methods for CLIP ViTs."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_compare(commands)
    add_eval(commands)
    add_list(commands)
    add_datasets(commands)
    add_floor(commands)
    add_rank(commands)
    add_fit(commands)
    add_study(commands)
    add_overhead(commands)
    add_latency(commands)
    add_show(commands)
    add_objects(commands)
    add_curve(commands)
    add_speed(commands)
    add_push(commands)
    add_reproduce(commands)
    return parser
