"""Research tools: ``study floor``, ``curve``, ``reproduce``, ``final``, ..., and ``study NAME``."""

import shlex
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from harness.base.table import Part, Shown, Table, Work, json_values
from harness.base.terminal import Progress
from harness.cli import flags
from harness.cli.command import ANY, Command, CommandParser

if TYPE_CHECKING:
    from harness.records.record import Record
    from harness.studies.reproduce import PaperPicture, PaperTable
    from harness.studies.run import Stock
    from harness.studies.spec import Study, StudyConfig

# `study reproduce` without a root: what ships.
EMBEDDED, LIMIT = tuple(flags.FASHION_AND_EMOJI), 300
FINAL_SETS = ("fashion", "emoji", "photos")  # with a split that nothing was chosen by
FINAL_KEEPS = (0.6, 0.5, 0.3)
WINDOWS = {True: (2, 2), False: (3, 2)}  # side and stride: the released code's; those that ship
AGAIN = "The same command goes on where it stopped"


def _floor_flags(parser: CommandParser) -> None:
    what = parser.add_argument_group("what is measured")
    flags.model(what)
    flags.methods(what, ["golden", "patchrank", "clsattn"], "see `list`; golden needs rankings")
    flags.keeps(what, [0.6, 0.5, 0.3])
    flags.datasets(what)
    flags.number(what, "--seeds", 3, "random orders")
    what.add_argument("--rankings", nargs="*", type=Path, metavar="PATH", default=[], help="other golden files")
    flags.data(parser)
    flags.conditions(parser)


def run_floor(args: Namespace, status: Console) -> Work:
    """Measure methods against random pruning, and show a table per dataset."""
    from harness.golden.store import Rankings
    from harness.measure.compare import floor, floor_table
    from harness.measure.plan import Plan

    plan, progress = flags.settings(Plan, args, models=(args.model,)), Progress(status)
    rankings, every = [Rankings.read(path) for path in args.rankings], []
    with progress.task("study floor, datasets", len(plan.datasets)) as update:
        for done, rows in enumerate(floor(plan, args.seeds, progress, rankings), start=1):
            every += rows
            with progress.hidden():
                yield floor_table(rows, args.seeds)
            update(done)
    return Shown(parts=(), data={"random_orders": args.seeds, "rows": json_values(every)})


def _curve_flags(parser: CommandParser) -> None:
    what = parser.add_argument_group("what is measured")
    flags.model(what)
    flags.datasets(what)
    flags.block(what)
    flags.images(what, 60, "val")
    flags.data(parser)
    how = parser.add_argument_group("conditions and files")
    flags.machine(how, "of removed windows, exact excepted")
    flags.output(how, "results/curve.json", "file", "FILE")


def run_curve(args: Namespace, status: Console) -> Shown:
    """Measure cheaper golden rankings and write what `rank --budget` picks from."""
    from harness.datasets import get_dataset
    from harness.datasets.few_shot import subset
    from harness.models.towers import load_tower
    from harness.studies.curve import curve_table, measure_curve

    splits = {name: subset(get_dataset(name).split(args.split), flags.limit_of(args)) for name in args.datasets}
    tower, progress = load_tower(args.model), Progress(status)
    tower.vit.to(args.device)
    curve = measure_curve(tower, splits, args.block, split=args.split, dtype=args.dtype, progress=progress)
    curve.write(args.output)
    progress.say(f"wrote {args.output}")
    return Shown(parts=(curve_table(curve),), data=json_values(curve))


def _reproduce_flags(parser: CommandParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="table1 to 7, figure1, 3, 4 and 5")
    _dry_run(parser)
    what = parser.add_argument_group("what is measured")
    flags.datasets(what, None, help="default: the paper's with a root, else the embedded ones")
    what.add_argument("--model", help="needs a text tower; default: the paper's with a root, else the embedded")
    flags.keeps(what, None, "default: the paper's; table4 has but one")
    flags.limits(what, None, "test images per dataset; default: all with a root, else 300")
    flags.number(what, "--train-limit", 500, "ranked images to learn from")
    flags.number(what, "--seeds", 3, "fits, tunings and random orders")
    flags.number(what, "--images", 1, "test images of each dataset that figure3 and figure4 show", kind=flags.positive)
    flags.data(parser)
    golden = parser.add_argument_group("golden rankings")
    flags.block(golden)
    flags.number(golden, "--window", None, "in patches; default: 2, of embedded rankings the shipped 3")
    flags.number(golden, "--stride", None, "in patches; default: 2, as the released code")
    _recipes_and_files(parser, "results/reproduce", None, "; default: coop with a root, else ours")
    # The released code's predictor, and a loss that can be minimised. The paper has 16 tokens at the
    # input and no anchor, whatever recipe they are learned by.
    parser.set_defaults(arch="pooledmixer", loss="listnet", num_tokens=16, depth=1, anchor=0.0)


def _dry_run(parser: CommandParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="list what is cached and what is missing, and stop")


def _few_shots(parser: CommandParser, draws: str | None, text: str = "") -> None:
    tokens = flags.tuning_recipe(parser, study=True)
    flags.number(tokens, "--labelled", 16, "images per class that tokens see", metavar="K")
    flags.draws(tokens, draws, text)


def _recipes_and_files(parser: CommandParser, folder: str, draws: str | None, text: str = "") -> None:
    flags.predictor_recipe(parser, study=True)
    _few_shots(parser, draws, text)
    how = parser.add_argument_group("conditions and files")
    flags.machine(how)
    flags.fresh(how)
    flags.output(how, folder, "folder")


def run_reproduce(args: Namespace, status: Console) -> Work:
    """Measure tables and figures, or tell what that would take; show a table for each."""
    from harness.records.record import earlier
    from harness.studies import reproduce
    from harness.studies.run import Stock, stock

    data: list[dict[str, Any]] = []
    progress = Progress(status)
    for target in [reproduce.get_target(name) for name in dict.fromkeys(args.names)]:
        config = study_config(args, target)
        part: Part
        if isinstance(target, reproduce.PaperTable):
            config = target.conditions(config)
            known = earlier(args.output / f"{target.name}.jsonl", progress, fresh=args.fresh)
            datasets, failures = reproduce.readable(config.datasets, general=target.general)
        else:
            reproduce.show_config(target, config)  # refuses keep rates
            datasets, failures = reproduce.readable(config.datasets, ("test",))
        if args.dry_run:
            steps: list[Stock] = []
            if isinstance(target, reproduce.PaperPicture):
                counts = {one.name: min(args.images, len(one.split("test"))) for one in datasets}
                steps = [Stock("images", f"{name} test", 0, count) for name, count in counts.items()]
            elif datasets:
                read = replace(config, datasets=tuple(dataset.name for dataset in datasets))
                parts = target.groups(read)
                steps = [one for each in parts for one in stock(target.study, each, progress)]
            part, facts = _show_stock(target, config.model, steps, failures)
        else:
            for error in failures.values():
                raise error  # at once, not after the work on others
            if isinstance(target, reproduce.PaperPicture):
                path = args.output / f"{target.name}.png"
                figure = reproduce.draw_picture(target, config, datasets, args.images, path, progress)
                notes = [*target.notes, *figure.notes]
                part = "\n".join((target.title, *notes, f"wrote {path}"))
                facts = {"name": target.name, "title": target.title, "path": path, "columns": figure.columns}
                facts = json_values({**facts, "notes": notes})
            else:
                part, facts = _measure_table(args, target, config, known, progress)
        data.append(facts)
        yield part
    return Shown(parts=(), data={"plans" if args.dry_run else "tables": data})


def _measure_table(
    args: Namespace, target: "PaperTable", config: "StudyConfig", known: "list[Record]", progress: Progress
) -> tuple[Table, dict[str, Any]]:
    """Measure a table; what is known so far is written after each dataset, so that a stopped run leaves it."""
    from harness.studies.reproduce import compare_rows, comparison_data, draw, produce
    from harness.studies.workshop import get_tower
    from zoo.core.files import write_whole

    path = args.output / f"{target.name}.jsonl"
    tables, tower = [], get_tower(config.model)
    for measured, records in produce(target, config, known, progress):
        _keep_new(path, records, known)
        tables.append(measured)
        comparison = compare_rows(target, config, tower.vit.depth, tower.name, tables)
        conditions = f"- {config.describe(tunes=target.study.tunes)}\n"
        text = "\n".join([_command(args.argv), comparison.markdown() + conditions])
        write_whole(path.with_suffix(".md"), text.encode())
        if target.axis:
            write_whole(path.with_suffix(".svg"), draw(comparison))
    _say_where(path, progress)
    return comparison.table(), comparison_data(comparison)


def _show_stock(
    of: "PaperTable | PaperPicture | Study", model: str, steps: "list[Stock]", failures: dict[str, Exception]
) -> tuple[Table, dict[str, Any]]:
    """Lay out what is cached and what is missing, and datasets that can't be read with the reason."""
    rows = [[one.kind, one.of, f"{one.cached:,}", f"{one.missing:,}"] for one in steps]
    rows += [["dataset", f"{dataset}: {error}", "", "?"] for dataset, error in failures.items()]
    caption = "rankings by image; all else one by one. What is in the user's cache costs nothing"
    heads = ("what", "of", "cached", "missing")
    table = Table.of(f"{of.title}; {model}", heads, rows, words={"what", "of"}, caption=caption)
    missing = {dataset: str(error) for dataset, error in failures.items()}
    data: dict[str, Any] = json_values({"name": of.name, "model": model, "steps": steps, "missing": missing})
    return table, data


def study_config(args: Namespace, target: "PaperTable | PaperPicture") -> "StudyConfig":
    """Return what the flags ask for: the paper's conditions below a root, else the embedded."""
    from harness.datasets.few_shot import COOP, OURS
    from harness.studies.reproduce import MODEL
    from harness.studies.spec import StudyConfig
    from zoo.ranking.golden import GoldenConfig

    rooted = _rooted(args)
    draws = args.draws or (COOP if rooted else OURS)
    datasets = args.datasets or (target.datasets if rooted else EMBEDDED)
    windows = zip(("window", "stride"), WINDOWS[rooted], strict=True)
    sizes: dict[str, Any] = {name: usual if vars(args)[name] is None else vars(args)[name] for name, usual in windows}
    return flags.settings(
        StudyConfig,
        args,
        model=args.model or (MODEL if rooted else flags.DENSE),
        datasets=tuple(dict.fromkeys(datasets)),
        split="test",
        limit=None if args.full else args.limit or (None if rooted else LIMIT),
        golden=GoldenConfig(block=args.block, **sizes),
        fit=flags.fit_config(args),
        tune=flags.tune_config(args, draws),
        draws=draws,
    )


def _rooted(args: Namespace) -> bool:
    """Tell whether it is about datasets below a root, which are under the paper's conditions."""
    from harness.datasets import list_datasets, root_of, shipped_facts
    from harness.datasets.public import RootedDataset

    if not args.datasets:
        return root_of(args.root) is not None
    named = set(args.datasets) & set(list_datasets())
    return any(isinstance(shipped_facts(name), RootedDataset) for name in named)


def _keep_new(path: Path, records: "list[Record]", known: "list[Record]") -> None:
    """Append the records that earlier runs haven't written."""
    from harness.records.record import write_records

    if fresh := [record for record in records if record not in known]:
        write_records(path, fresh)


def _command(argv: list[str]) -> str:
    """Return what makes a table as Markdown, without where results went and ``--fresh``."""
    words = [word for word in argv if word != "--fresh"]
    if "--output" in words:
        at = words.index("--output")
        del words[at : at + 2]
    return f"```\npatchrank {shlex.join(words)}\n```\n"


def _say_where(path: Path, progress: Progress) -> None:
    progress.say(f"records and table: {path.with_suffix('')}.{{jsonl,md}}")


def run_study_list(*_: Any) -> Shown:
    """Show the studies and their questions."""
    from harness.studies.run import list_studies

    every = list_studies().values()
    rows = [[one.name, one.question, " ".join(f"{keep:g}" for keep in one.keeps)] for one in every]
    heads = ("name", "question", "keep rates")
    studies = [{"name": one.name, "question": one.question, "keeps": list(one.keeps)} for one in every]
    return Shown(parts=(Table.of("studies", heads, rows, words=set(heads)),), data={"studies": studies})


def _study_flags(parser: CommandParser) -> None:
    from harness.datasets.few_shot import OURS
    from harness.measure.plan import Plan

    parser.add_argument("name", metavar="NAME", help="of the study; see `study list`")
    _dry_run(parser)
    what = parser.add_argument_group("what is studied")
    flags.model(what, "needs a text tower")
    flags.datasets(what, list(Plan.datasets))
    flags.keeps(what, None, "default: the study's own")
    flags.number(what, "--seeds", 3, "fits, and random orders")
    text = "to judge by; test for learned tokens, else val"
    flags.split_of(what, f"{text}; final for learned tokens alone", type=str, choices=("val", "test", "final"))
    flags.limits(what, 300)
    flags.number(what, "--train-limit", 500, "ranked images to learn from")
    flags.number(what, "--shots", None, "of them per class; default: all", metavar="K")
    flags.data(parser)
    golden = flags.golden_windows(parser, window=3, stride=2)
    golden.add_argument("--score", default="preservation", help="preservation, label, confidence")
    golden.add_argument("--approx", metavar="SPEC", help="instead of every window, cheaper")
    _recipes_and_files(parser, "results/studies", OURS)


def run_study(args: Namespace, status: Console) -> Work:
    """Make a study; write its records and a Markdown table, and show a table per dataset."""
    from harness.datasets.base import FINAL, FINAL_ALONE
    from harness.records.record import earlier
    from harness.studies.run import get_study, make, stock
    from harness.studies.spec import StudyConfig
    from harness.studies.tables import NOTES, SEED_NOTES
    from zoo.core.files import write_whole

    study = get_study(args.name, [command.path.split()[1] for command in COMMANDS[:-1]])
    progress = Progress(status)
    recipes = {"fit": flags.fit_config(args), "tune": flags.tune_config(args, args.draws)}
    split, golden = args.split or study.split, flags.golden_config(args)
    if split == FINAL and not study.tunes:
        raise ValueError(f"--split {split}: {FINAL_ALONE}")
    config = flags.settings(StudyConfig, args, split=split, golden=golden, **recipes)
    path = args.output / f"{study.name}.jsonl"
    known = earlier(path, progress, fresh=args.fresh)
    if args.dry_run:
        steps = stock(study, config, progress)
        table, facts = _show_stock(study, config.model, steps, {})
        return Shown(parts=(table,), data=facts)
    sections = [f"## {study.title}", "", study.question, "", _command(args.argv)]
    data = []
    for measured, records in make(study, config, known, progress):
        _keep_new(path, records, known)
        sections.append(measured.markdown())
        data.append(measured.data())
        with progress.hidden():
            yield measured.table()
    notes = [config.describe(tunes=study.tunes), NOTES, *([SEED_NOTES] if study.tunes else [])]
    write_whole(path.with_suffix(".md"), "\n".join([*sections, *notes, ""]).encode())
    _say_where(path, progress)
    return Shown(parts=(), data={"study": study.name, "tables": data})


def _recipes_flags(parser: CommandParser) -> None:
    from harness.datasets.few_shot import OURS

    what = parser.add_argument_group("what is tuned, on what")
    what.add_argument("--model", default="clip_vit_s14_patchrank60", help="dense or reduced")
    flags.datasets(what)
    text = "changes of the recipe to try, each FIELD=VALUE or several with commas between them"
    what.add_argument("--try", dest="changes", nargs="+", metavar="CHANGE", required=True, help=text)
    flags.number(what, "--seeds", 3, "draws of images, and initial tokens", kind=flags.positive)
    flags.number(what, "--seed", None, "the first; default: 0, of CoOp's draws 1")
    flags.data(parser)
    _few_shots(parser, OURS)
    flags.device(parser.add_argument_group("conditions"))


def run_recipes(args: Namespace, status: Console) -> Shown:
    """Tune by a recipe and by changed ones, and judge them by images of val that they never saw."""
    from harness.datasets import get_dataset
    from harness.measure.tuning import load_tuners
    from harness.studies.recipes import AS_IT_IS, change_recipe, trials, trials_table

    config = flags.tune_config(args, args.draws)
    recipes = {AS_IT_IS: config} | {change: change_recipe(config, change) for change in args.changes}
    seeds = range(config.seed, config.seed + args.seeds)
    datasets = map(get_dataset, dict.fromkeys(args.datasets))
    how = {"draws": args.draws, "device": args.device, "progress": Progress(status)}
    row, tuners = load_tuners(args.model, datasets, **how)
    found = [trial for tuner in tuners for trial in trials(tuner, row, recipes, args.labelled, seeds)]
    images, last = f"{args.labelled} images per class", seeds[-1]
    title = f"recipes of learned tokens, {args.model}, {images}, seeds {seeds[0]} to {last}: {config.learned}"
    data = {"model": args.model, "labelled": args.labelled, "draws": args.draws, "recipe": config, "trials": found}
    return Shown(parts=(trials_table(found, title),), data=json_values(data))


def _final_flags(parser: CommandParser) -> None:
    what = parser.add_argument_group("what is measured")
    flags.model(what)
    flags.datasets(what, list(FINAL_SETS), choices=FINAL_SETS, help="that have this split")
    flags.limits(what, None, "images per dataset, for a trial; default: all")
    how = parser.add_argument_group("conditions and files")
    flags.machine(how)
    flags.output(how, "results/final", "folder")


def run_final(args: Namespace, status: Console) -> Work:
    """Measure all methods on the split that nothing was chosen by, and name the commit."""
    from harness import git_commit
    from harness.base.lines import require_appendable
    from harness.datasets.base import FINAL
    from harness.measure.compare import compare
    from harness.measure.plan import Plan
    from harness.measure.rows import usual_methods
    from harness.records.averages import match_costs
    from harness.records.conditions import GOLDEN
    from harness.records.record import Record, write_records
    from harness.report.tables import comparison_table, matched_table
    from harness.report.writers import markdown
    from zoo.core.files import write_whole

    path, progress = args.output / "records.jsonl", Progress(status)
    require_appendable(path)
    methods = tuple(name for name in usual_methods() if name != GOLDEN)  # whose rankings would read it
    what = {"models": (args.model,), "methods": methods, "keeps": FINAL_KEEPS, "split": FINAL, "batches": ()}
    commit = git_commit() or "unknown"
    words = f"commit {commit.removesuffix('-dirty')}" + (", uncommitted changes" if commit.endswith("-dirty") else "")
    records: list[Record] = []
    tables = []
    done, plans = 0, [flags.settings(Plan, args, **what, match=match) for match in (None, "gflops")]
    with progress.task("study final, datasets", sum(len(plan.datasets) for plan in plans)) as update:
        for plan in plans:
            for group in compare(plan, [], progress, release=True):
                write_records(path, group)
                records += group
                parts = [comparison_table(group)]
                if plan.match is not None:
                    parts.append(matched_table(match_costs(group, plan.match_to)))
                tables += [replace(table, title=f"{table.title}; {words}") for table in parts]
                with progress.hidden():
                    yield from tables[-len(parts) :]
                update(done := done + 1)
    write_whole(path.with_name("table.md"), markdown(tables).encode())
    progress.say(f"records: {path}; tables: {path.with_name('table.md')}")
    return Shown(parts=(), data={"commit": commit, "records": json_values(records)})


COMMANDS = (
    Command(
        path="study floor", flags=_floor_flags, run=run_floor,
        what="Measure how far methods are above random pruning, over several random orders.",
        examples=(("study floor --methods golden patchrank --split val --full", "all of a split"),),
        output="a table per dataset on standard output; no files",
    ),
    Command(
        path="study curve", flags=_curve_flags, run=run_curve,
        what="Measure what cheaper golden rankings cost and how well they agree; `rank --budget` picks from it.",
        examples=(("study curve --dataset fashion emoji --split val --limit 60", "two datasets"),),
        output="a table on standard output; the curve as JSON in --output",
    ),
    Command(
        path="study recipes", flags=_recipes_flags, run=run_recipes,
        what="Compare recipes of learned tokens by images of val that they never saw, to choose one by.",
        examples=(
            ("study recipes --tokens t --try anchor=0 anchor=2", "two weights of the anchor"),
            ("study recipes --tokens t --try 'init=a photo of a,anchor=2' learning_rate=5e-4", "several changes"),
        ),
        output=f"a table on standard output; no files but the prompts, in the user's cache. {AGAIN}",
    ),
    Command(
        path="study reproduce", flags=_reproduce_flags, run=run_reproduce,
        what="Measure a table or figure of the paper and print our figures beside the paper's, or draw its pictures.",
        examples=(
            ("study reproduce table1 --limit 60 --dry-run", "what is left to do"),
            ("study reproduce table1 figure1 --root data", "on the paper's datasets"),
            ("study reproduce figure5 --keeps 0.95 0.75 0.5 --limit 60", "at other keep rates"),
            ("study reproduce figure3 --dataset photos --images 3", "a picture"),
        ),
        output=f"a table each on standard output; records, table and figure in --output. {AGAIN}",
    ),
    Command(
        path="study final", flags=_final_flags, run=run_final,
        what="Measure all methods on the split 'final', which nothing else reads: the table of a release.",
        examples=(("study final", "once, when all is chosen"),),
        output="tables on standard output, with the commit in their titles; records.jsonl and table.md in --output",
    ),
    Command(
        path="study list",
        what="Show the questions that studies answer.",
        run=run_study_list,
        examples=(("study list", "the questions"),),
    ),
    Command(
        path=f"study {ANY}", flags=_study_flags, run=run_study,
        what="Answer one of these questions about pruning by golden and predicted rankings.",
        examples=(("study scores --dataset fashion --limit 100", "which score to rank by"),),
        output=f"a table per dataset on standard output; records and table in --output. {AGAIN}",
    ),
)  # fmt: skip
