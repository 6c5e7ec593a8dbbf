"""Research: ``study reproduce``, ``final``, and each study by its name."""

import shlex
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base.table import Shown, Table, Work, json_values
from harness.base.terminal import Progress
from harness.cli import flags
from harness.cli.command import PROGRAM, CommandParser
from harness.cli.outline import decorated

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.studies.answer import StudyTable
    from harness.studies.study import Study, StudyConfig


def _measured(
    study: "Study", configs: "Sequence[StudyConfig]", path: Path, args: Namespace, progress: Progress
) -> "Iterator[list[StudyTable]]":
    """Make a study under some conditions; yield the tables so far after each dataset, whose records are written."""
    from harness.records.record import UNFINISHED, earlier, keep_new
    from harness.studies.answer import answer

    known = earlier(path, fresh=args.fresh)
    tables: list[StudyTable] = []
    for config in configs:
        for table, records in answer(study, config, known, progress, path.with_suffix(UNFINISHED)):
            keep_new(path, records, known)
            tables.append(table)
            yield tables


def _show_inventory(
    title: str, study: "Study", configs: "Sequence[StudyConfig]", progress: Progress
) -> tuple[Table, dict[str, Any]]:
    """Lay out the cached and the missing parts of a study."""
    from harness.studies.answer import take_inventory

    steps = [step for config in configs for step in take_inventory(study, config, progress)]
    rows = [[step["kind"], step["of"], f"{step['cached']:,}", f"{step['missing']:,}"] for step in steps]
    caption, heads = "Rankings are counted in images. What is cached takes no time", ("what", "of", "cached", "missing")
    table = Table.of(f"{title}; {configs[0].model}", heads, rows, words=heads[:2], caption=caption)
    return table, {"model": configs[0].model, "steps": steps}


def run_reproduce(args: Namespace, progress: Progress) -> Work:
    """Measure tables and figures, or list the work that is left; show a table for each."""
    from harness.report.charts import render
    from harness.report.folder import markdown
    from harness.studies.reproduce import TABLES, compare_rows, require_readable
    from harness.studies.study import paper_tables
    from zoo.core.files import write_whole

    data: list[dict[str, Any]] = []
    for name in dict.fromkeys(args.names):
        target, path = TABLES[name], args.output / f"{name}.jsonl"
        config = target.conditions(paper_config(args, name))
        require_readable(config.datasets, target)
        configs = target.groups(config)
        if args.dry_run:
            part, values = _show_inventory(paper_tables()[name]["title"], target.study, configs, progress)
            data.append({"name": name, **values})
            yield part
            continue
        for tables in _measured(target.study, configs, path, args, progress):  # written for a run that is stopped, too
            comparison = compare_rows(name, config, tables)
            page = f"```\n{PROGRAM} {shlex.join(args.argv)}\n```\n\n{markdown([comparison.table()], level=2)}"
            write_whole(path.with_suffix(".md"), page.encode())
            if target.plot:
                charts = [table.chart(*target.plot, accuracy=True) for table in tables]
                write_whole(path.with_suffix(".svg"), render(charts))
        progress.say(f"records and table: {path.with_suffix('')}.{{jsonl,md}}")
        data.append(comparison.data())
        yield comparison.table()
    return Shown(parts=(), data={"plans" if args.dry_run else "tables": json_values(data)})


def paper_config(args: Namespace, name: str) -> "StudyConfig":
    """Return the conditions that the flags ask for: the paper's below a root, and on embedded datasets our own."""
    from harness.datasets import list_datasets, root_of, shipped_facts
    from harness.datasets.few_shot import COOP, OURS
    from harness.datasets.public import RootedDataset
    from harness.studies.reproduce import MODEL
    from harness.studies.study import StudyConfig, paper_tables
    from zoo.core.recipes import FitConfig, GoldenConfig

    named = set(args.datasets or ()) & set(list_datasets())  # below a root they are under the paper's conditions
    rooted = any(isinstance(shipped_facts(name), RootedDataset) for name in named)
    rooted |= not args.datasets and root_of(args.root) is not None
    draws = args.draws or (COOP if rooted else OURS)
    datasets = args.datasets or (paper_tables()[name]["columns"] if rooted else ("fashion", "emoji"))
    # The released code's windows and predictor, of embedded rankings the shipped windows, and a loss that can be
    # minimised. The paper has 16 tokens at the input and no anchor.
    golden = GoldenConfig(window=2 if rooted else 3, stride=2)
    fit = FitConfig(arch="pooledmixer", loss="listnet", seed=args.seed or 0)
    return flags.settings(
        StudyConfig,
        args,
        model=args.model or (MODEL if rooted else StudyConfig.model),
        datasets=tuple(dict.fromkeys(datasets)),
        split="test",
        limit=None if args.full else args.limit or (None if rooted else StudyConfig.limit),
        golden=flags.change(golden, args.golden, "--golden"),
        fit=flags.change(fit, args.fit, "--fit"),
        tune=flags.tune_config(args, draws, count=16, anchor=0.0),
        draws=draws,
    )


def run_final(args: Namespace, progress: Progress) -> Work:
    """Judge methods on the split that nothing was chosen by, and name the commit."""
    from harness import git_commit
    from harness.measure.settings import Plan
    from harness.records.record import RECORDS, UNFINISHED, earlier, halves, keep_new
    from harness.report.folder import markdown
    from harness.report.tables import comparison_table
    from harness.studies.final import judge, summarise
    from zoo.core.files import write_whole

    path = args.output / RECORDS
    known = earlier(path, fresh=args.fresh)
    plan = flags.settings(Plan, args, methods=tuple(args.methods or ()), batches=(), match="gflops", far=True)
    commit = git_commit() or "unknown"
    words = f"commit {commit.removesuffix('-dirty')}" + (", uncommitted changes" if commit.endswith("-dirty") else "")
    groups, tables = [], []
    for group in judge(plan, known, progress, path.with_suffix(UNFINISHED)):
        keep_new(path, group, known)
        groups.append(group)
        table = comparison_table(group, plan.match_to)
        tables.append(replace(table, title=f"{table.title}; {words}"))
        yield tables[-1]
    parts = [part for group in groups for part in (group, *(halves(group) if args.halves else ()))]
    tables.append(summarise(parts, plan.match_to))
    write_whole(path.with_name("table.md"), markdown(tables).encode())
    progress.say(f"records: {path}; tables: {path.with_name('table.md')}")
    records = [record for group in groups for record in group]
    return Shown(parts=(tables[-1],), data={"commit": commit, "records": json_values(records)})


# What a flag matters to.
USES = {
    "golden": ("fits",), "fit": ("fits",), "train_limit": ("fits",), "seed": ("fits", "tunes"),
    "tune": ("tunes",), "draws": ("tunes",), "labelled": ("tunes",),
}  # fmt: skip


def name_study(parser: CommandParser) -> None:
    """Add the argument that names a study, and say what each asks."""
    questions = decorated("harness.studies.questions", "study")
    parser.add_argument("name", metavar="STUDY", choices=questions, help="a name of those below")
    parser.add_argument_group("studies", "\n".join(f"{name}: {question}" for name, question in questions.items()))


def run_study(args: Namespace, progress: Progress) -> Work:
    """Make a study; write its records, its figures as CSV and its plot, and show a table per dataset."""
    from harness.report.charts import render
    from harness.report.folder import csv_text
    from harness.studies.questions import list_studies
    from zoo.core.files import write_whole

    study = list_studies()[args.name]
    config = _study_config(study, args)
    if args.dry_run:
        table, values = _show_inventory(study.title, study, [config], progress)
        return Shown(parts=(table,), data={"name": study.name, **values})
    path, lines, written = args.output / f"{study.name}.jsonl", list[dict[str, Any]](), ["jsonl", "csv"]
    for tables in _measured(study, [config], path, args, progress):
        lines += tables[-1].lines()
        write_whole(path.with_suffix(".csv"), csv_text(lines).encode())
        yield tables[-1].table()
    if study.plot:
        written.append("svg")
        write_whole(path.with_suffix(".svg"), render([table.chart(*study.plot) for table in tables]))
    progress.say(f"wrote {path.with_suffix('')}.{{{','.join(written)}}}")
    return Shown(parts=(), data={"study": study.name, "lines": lines})


def _study_config(study: "Study", args: Namespace) -> "StudyConfig":
    """Return the conditions that the flags ask for; raise ValueError for a flag that the study doesn't use."""
    from harness.datasets.base import FINAL, FINAL_ALONE
    from harness.datasets.few_shot import OURS
    from harness.studies.study import StudyConfig
    from zoo.core.recipes import FitConfig

    for name, used in USES.items():
        if getattr(args, name) is not None and not any(getattr(study, field) for field in used):
            raise ValueError(f"--{name.replace('_', '-')} changes nothing in study {study.name}; leave it out")
    fields: dict[str, Any] = {"split": args.split or ("test" if study.tunes or study.foreground else "val")}
    if fields["split"] == FINAL and not study.tunes:
        raise ValueError(f"--split {FINAL!r}: {FINAL_ALONE}")
    if study.fits:
        fields["golden"] = flags.change(StudyConfig().golden, args.golden, "--golden")
        fields["fit"] = flags.change(FitConfig(seed=args.seed or 0), args.fit, "--fit")
    if study.tunes:
        fields["draws"] = args.draws or OURS
        fields["tune"] = flags.tune_config(args, fields["draws"])
    return flags.settings(StudyConfig, args, **fields)
