"""Research: ``study reproduce``, ``final``, and each study by its name."""

import json
import shlex
from argparse import Namespace
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from rich.console import Console

from harness.base.table import Shown, Table, Work, json_values
from harness.base.terminal import Progress
from harness.cli import flags
from harness.cli.command import CommandParser, command
from harness.cli.outline import HOUSE, decorated, outline

if TYPE_CHECKING:
    from harness.studies.reproduce import PaperTable
    from harness.studies.workshop import StudyConfig


def _fit_flags(group: Any) -> None:
    """Add how golden rankings are made and predictors fitted."""
    text = "ranked images to learn from, per dataset; default: 500"
    flags.add(group, "--train-limit", None, text, flags.positive)
    text = "changes of golden rankings, such as block=2,window=2,stride=1"
    flags.add(group, "--golden", None, text, metavar="CHANGES")
    text = "changes of how predictors are fitted, such as arch=mlp,width=32"
    flags.add(group, "--fit", None, text, metavar="CHANGES")


def _token_flags(group: Any, text: str) -> None:
    """Add how tokens are learned."""
    flags.tokens_recipe(group, None, text)
    flags.add(group, "--labelled", None, "labelled images per class; default: 16", flags.positive, metavar="K")


def _run_flags(parser: CommandParser, folder: str) -> None:
    """Add conditions and files of what may take hours."""
    how = parser.add_argument_group("conditions and files")
    flags.usual(how, "device", "dtype", "fresh")
    flags.output(how, folder, "folder of records and tables")
    flags.add(how, "--dry-run", False, "list what is cached and what is missing; measure nothing")


def _reproduce_flags(parser: CommandParser) -> None:
    names = list(json.loads((HOUSE / "harness/studies/paper.json").read_text("utf-8"))["tables"])
    parser.add_argument("names", nargs="+", metavar="NAME", choices=names, help=", ".join(names))
    what = parser.add_argument_group("what is measured")
    flags.usual(what, "datasets", text="default: the paper's with a root, else fashion and emoji")
    text = "a dense model with a text tower; default: the paper's with a root, else clip_vit_s14"
    flags.usual(what, "model", default=None, text=text)
    flags.limits(what, None, "test images per dataset; default: all with a root, else 300")
    flags.data(parser)
    made = parser.add_argument_group("what models are made of; CHANGES are FIELD=VALUE,...")
    flags.add(made, "--seeds", 3, "fits, tunings and random orders", flags.positive)
    _fit_flags(made)
    _token_flags(made, "; default: coop with a root, else ours")
    _run_flags(parser, "results/reproduce")


def run_reproduce(args: Namespace, status: Console) -> Work:
    """Measure tables and figures, or tell what that would take; show a table for each."""
    from harness.studies import reproduce
    from harness.studies.answer import take_stock

    progress, data = Progress(status), list[dict[str, Any]]()
    for name in dict.fromkeys(args.names):
        table = reproduce.TABLES[name]
        config = table.conditions(paper_config(args, name))
        reproduce.require_readable(config.datasets, table)
        if args.dry_run:
            steps = [step for part in table.groups(config) for step in take_stock(table.study, part, progress)]
            part, facts = _stock_table(name, reproduce.paper(name)["title"], config.model, steps)
        else:
            part, facts = _measure_table(args, table, config, progress)
        data.append(json_values(facts))
        yield part
    return Shown(parts=(), data={"plans" if args.dry_run else "tables": data})


def _stock_table(name: str, title: str, model: str, steps: list[dict[str, Any]]) -> tuple[Table, dict[str, Any]]:
    """Lay out what is cached and what is missing."""
    rows = [[one["kind"], one["of"], f"{one['cached']:,}", f"{one['missing']:,}"] for one in steps]
    caption, heads = "Rankings are counted in images. What is cached takes no time", ("what", "of", "cached", "missing")
    table = Table.of(f"{title}; {model}", heads, rows, words=heads[:2], caption=caption)
    return table, {"name": name, "model": model, "steps": steps}


def _measure_table(
    args: Namespace, table: "PaperTable", config: "StudyConfig", progress: Progress
) -> tuple[Table, dict[str, Any]]:
    """Measure a table; what is known so far is written after each dataset, so that a stopped run leaves it."""
    from harness.records.record import UNFINISHED, earlier, keep_new
    from harness.report.charts import render
    from harness.studies.answer import answer, get_tower
    from harness.studies.reproduce import compare_rows
    from zoo.core.files import write_whole

    path = args.output / f"{table.name}.jsonl"
    known = earlier(path, fresh=args.fresh)
    tables, tower = [], get_tower(config.model)
    folder = path.with_suffix(UNFINISHED)
    for measured, records in chain.from_iterable(
        answer(table.study, part, known, progress, folder) for part in table.groups(config)
    ):
        keep_new(path, records, known)
        tables.append(measured)
        comparison = compare_rows(table, config, tower.vit.depth, tower.name, tables)
        command, words = f"patchrank {shlex.join(args.argv)}", config.describe(tunes=table.study.tunes)
        page = f"```\n{command}\n```\n\n{comparison.markdown()}- {words}\n"
        write_whole(path.with_suffix(".md"), page.encode())
        if table.plot:
            charts = [one.chart(*table.plot, accuracy=True) for one in tables]
            write_whole(path.with_suffix(".svg"), render(charts))
    progress.say(f"records and table: {path.with_suffix('')}.{{jsonl,md}}")
    return comparison.table(), comparison.data()


def paper_config(args: Namespace, name: str) -> "StudyConfig":
    """Return what the flags ask for: the paper's conditions below a root, else the embedded."""
    from harness.datasets import list_datasets, root_of, shipped_facts
    from harness.datasets.few_shot import COOP, OURS
    from harness.datasets.public import RootedDataset
    from harness.studies.reproduce import MODEL, paper
    from harness.studies.workshop import StudyConfig
    from zoo.learning.fit import FitConfig
    from zoo.ranking.golden import GoldenConfig

    named = set(args.datasets or ()) & set(list_datasets())  # below a root they are under the paper's conditions
    rooted = any(isinstance(shipped_facts(name), RootedDataset) for name in named)
    rooted |= not args.datasets and root_of(args.root) is not None
    draws = args.draws or (COOP if rooted else OURS)
    datasets = args.datasets or (paper(name)["columns"] if rooted else flags.FASHION_AND_EMOJI)
    # The released code's windows and predictor, of embedded rankings the shipped windows, and a loss that can be
    # minimised. The paper has 16 tokens at the input and no anchor.
    golden = GoldenConfig(window=2 if rooted else 3, stride=2)
    fit = FitConfig(arch="pooledmixer", loss="listnet", seed=args.seed or 0)
    return flags.settings(
        StudyConfig,
        args,
        model=args.model or (MODEL if rooted else flags.DENSE),
        datasets=tuple(dict.fromkeys(datasets)),
        split="test",
        limit=None if args.full else args.limit or (None if rooted else StudyConfig.limit),
        golden=flags.change(golden, args.golden, "--golden"),
        fit=flags.change(fit, args.fit, "--fit"),
        tune=flags.tune_config(args, draws, count=16, anchor=0.0),
        draws=draws,
    )


def _final_flags(parser: CommandParser) -> None:
    what = parser.add_argument_group("what is measured")
    flags.usual(what, "models", default=[flags.DENSE], text="dense models' names, see `list`")
    flags.usual(what, "methods", text="default: the usual ones but golden")
    flags.usual(what, "keeps", default=[0.6, 0.5, 0.3], text="keep rates of --match-to")
    text, method = "method whose GFLOPs the others meet", outline("harness.studies.final").MATCH_TO
    flags.add(what, "--match-to", method, text, metavar="METHOD")
    datasets = [*flags.FASHION_AND_EMOJI, "photos", "frames"]
    flags.usual(what, "datasets", default=datasets, text="datasets with the split")
    flags.add(what, "--split", "final", "split to judge by", choices=("final", "test"))
    flags.limits(what, None, "images per dataset; default: all")
    flags.usual(what, "halves")
    how = parser.add_argument_group("conditions and files")
    flags.usual(how, "device", "dtype", "fresh")
    flags.output(how, "results/final", "folder")


def run_final(args: Namespace, status: Console) -> Work:
    """Judge methods on the split that nothing was chosen by, and name the commit."""
    from harness import git_commit
    from harness.measure.plan import Plan
    from harness.records.record import RECORDS, UNFINISHED, earlier, halves, keep_new
    from harness.report.folder import markdown
    from harness.report.tables import comparison_table
    from harness.studies.final import judge, summarise
    from zoo.core.files import write_whole

    path, progress = args.output / RECORDS, Progress(status)
    known = earlier(path, fresh=args.fresh)
    how: dict[str, Any] = {"methods": tuple(args.methods or ()), "batches": (), "match": "gflops", "far": True}
    plan = flags.settings(Plan, args, **how)
    commit = git_commit() or "unknown"
    words = f"commit {commit.removesuffix('-dirty')}" + (", uncommitted changes" if commit.endswith("-dirty") else "")
    groups, tables = [], []
    for group in judge(plan, known, progress, path.with_suffix(UNFINISHED)):
        keep_new(path, group, known)
        groups.append(group)
        table = comparison_table(group, plan.match_to)
        tables.append(replace(table, title=f"{table.title}; {words}"))
        with progress.hidden():
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


def _study_flags(parser: CommandParser) -> None:
    questions = decorated("harness.studies.questions", "study")
    parser.add_argument("name", metavar="STUDY", choices=questions, help="a name of those below")
    parser.add_argument_group("studies", "\n".join(f"{name}: {question}" for name, question in questions.items()))
    what = parser.add_argument_group("what is studied")
    flags.usual(what, "model", text="a dense model with a text tower")
    flags.usual(what, "datasets", default=list(outline("harness.measure.plan").Plan.datasets))
    flags.usual(what, "keeps", text="keep rates in (0, 1]; default: the study's own")
    text = "split to judge by; default: val, of learned tokens and of patches test; final is for learned tokens"
    flags.add(what, "--split", None, text, choices=("val", "test", "final"))
    flags.limits(what, 300)
    flags.usual(what, "halves")
    flags.data(parser)
    made = parser.add_argument_group("what models are made of; CHANGES are FIELD=VALUE,...")
    flags.add(made, "--seeds", 3, "repetitions from other seeds", flags.positive)
    _fit_flags(made)
    _token_flags(made, "; default: ours")
    _run_flags(parser, "results/studies")


def run_study(args: Namespace, status: Console) -> Work:
    """Make a study; write its records, its figures as CSV and its plot, and show a table per dataset."""
    from harness.datasets.base import FINAL, FINAL_ALONE
    from harness.datasets.few_shot import OURS
    from harness.records.record import UNFINISHED, earlier, keep_new
    from harness.report.charts import render
    from harness.report.folder import csv_text
    from harness.studies.answer import answer, take_stock
    from harness.studies.questions import list_studies
    from harness.studies.workshop import StudyConfig
    from zoo.core.files import write_whole
    from zoo.learning.fit import FitConfig

    study, progress = list_studies()[args.name], Progress(status)
    for name, used in USES.items():
        if getattr(args, name) is not None and not any(getattr(study, one) for one in used):
            raise ValueError(f"--{name.replace('_', '-')} changes nothing in study {study.name}; leave it out")
    made: dict[str, Any] = {"split": args.split or ("test" if study.tunes or study.foreground else "val")}
    if made["split"] == FINAL and not study.tunes:
        raise ValueError(f"--split {FINAL!r}: {FINAL_ALONE}")
    if study.fits:
        made["golden"] = flags.change(StudyConfig().golden, args.golden, "--golden")
        made["fit"] = flags.change(FitConfig(seed=args.seed or 0), args.fit, "--fit")
    if study.tunes:
        made["draws"] = args.draws or OURS
        made["tune"] = flags.tune_config(args, made["draws"])
    config = flags.settings(StudyConfig, args, **made)
    if args.dry_run:
        table, facts = _stock_table(study.name, study.title, config.model, take_stock(study, config, progress))
        return Shown(parts=(table,), data=facts)
    path = args.output / f"{study.name}.jsonl"
    known = earlier(path, fresh=args.fresh)
    tables = []
    for measured, records in answer(study, config, known, progress, folder=path.with_suffix(UNFINISHED)):
        keep_new(path, records, known)
        tables.append(measured)
        write_whole(path.with_suffix(".csv"), csv_text([line for one in tables for line in one.lines()]).encode())
        with progress.hidden():
            yield measured.table()
    written = ["jsonl", "csv"]
    if study.plot:
        written.append("svg")
        write_whole(path.with_suffix(".svg"), render([measured.chart(*study.plot) for measured in tables]))
    progress.say(f"{config.describe(tunes=study.tunes)}\nwrote {path.with_suffix('')}.{{{','.join(written)}}}")
    return Shown(parts=(), data={"study": study.name, "lines": [line for one in tables for line in one.lines()]})


COMMANDS = (
    command("study", run_study, _study_flags),
    command("study reproduce", run_reproduce, _reproduce_flags),
    command("study final", run_final, _final_flags),
)
