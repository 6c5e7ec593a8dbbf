"""What ``study`` does: from parsed arguments to tables and files."""

import argparse
import shlex

from rich.console import Console
from rich.table import Table

from harness.commands import check, fit_config, limit_of, tune_config
from harness.layout import fewer
from harness.progress import Progress
from harness.records import write_records
from harness.reuse import earlier
from harness.shown import Forms, Shown, Work
from harness.studies import get_study, list_studies
from harness.studies.config import StudyConfig
from harness.studies.run import make
from harness.studies.sheet import NOTES, SEED_NOTES
from zoo.files import write_whole
from zoo.golden import GoldenConfig

LIST = "list"
# Columns that a narrow terminal does without.
UNTOLD = ("GFLOPs", "over seeds", "cosine", "tau", "match@k (chance)")


def run_study(args: argparse.Namespace, status: Console) -> Shown | Work:
    """Make a study, or list them."""
    return run_study_list() if args.name == LIST else _made(args, status)


def _made(args: argparse.Namespace, status: Console) -> Work:
    """Make a study; write its records and a Markdown table, and show a table per dataset."""
    limit = limit_of(args)
    study = get_study(args.name)
    check(args)
    config = StudyConfig(
        model=args.model,
        datasets=tuple(args.datasets),
        split=args.split or study.split,
        limit=limit,
        train_limit=args.train_limit,
        keeps=None if args.keeps is None else tuple(args.keeps),
        seeds=args.seeds,
        golden=GoldenConfig(
            score=args.score,
            block=args.block,
            window=args.window,
            stride=args.stride,
            approximate=args.approx,
        ),
        fit=fit_config(args),
        shots=args.shots,
        tune=tune_config(args),
        labelled=args.labelled,
        device=args.device,
        dtype=args.dtype,
    )
    path = args.output / f"{study.name}.jsonl"
    known = earlier(path, Progress(status), fresh=args.fresh)
    command = f"python -m harness {shlex.join(without_output(args.argv))}"
    sections = [f"## {study.title}", "", study.question, "", "```", command, "```", ""]
    sheets = []
    for sheet, records in make(study, config, known, Progress(status)):
        if fresh := [record for record in records if record not in known]:
            write_records(path, fresh)
        sections += [sheet.markdown()]
        sheets.append(sheet.data())
        yield narrower(sheet.table())
    path = path.with_suffix(".md")
    notes = [config.described(tunes=study.tunes), NOTES, *([SEED_NOTES] if study.tunes else [])]
    write_whole(path, "\n".join([*sections, *notes, ""]).encode())
    text = f"records and table: {path.parent / study.name}.{{jsonl,md}}"
    status.print(text, highlight=False, markup=False, soft_wrap=True)
    return Shown(parts=(), data={"study": study.name, "tables": sheets})


def without_output(argv: list[str]) -> list[str]:
    """Leave out where results went, which they don't depend on."""
    if "--output" not in argv:
        return argv
    at = argv.index("--output")
    return argv[:at] + argv[at + 2 :]


def narrower(table: Table) -> Forms:
    """Return a study's table as it is, and without some columns."""
    return Forms((table, fewer(table, UNTOLD), fewer(table, (*UNTOLD, "to dense"))))


def run_study_list() -> Shown:
    """Show the studies and their questions."""
    table = Table(title="studies")
    for head in ("name", "question", "keep rates"):
        table.add_column(head)
    for name, study in list_studies().items():
        table.add_row(name, study.question, " ".join(f"{keep:g}" for keep in study.keeps))
    told = [
        {"name": name, "question": study.question, "keeps": list(study.keeps)}
        for name, study in list_studies().items()
    ]
    return Shown(parts=(table,), data={"studies": told})
