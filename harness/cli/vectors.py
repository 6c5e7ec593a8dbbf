"""Subcommands of embeddings: ``embed``, ``search``."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from harness.base.table import Shown, Table, json_values
from harness.base.terminal import Progress
from harness.cli import flags
from harness.cli.command import Command, CommandParser

if TYPE_CHECKING:
    from harness.apps.vectors.embed import Embedded, EmbedJob
    from harness.apps.vectors.source import PictureSource, TextSource

VECTORS = Path("vectors")


def _embed_flags(parser: CommandParser) -> None:
    text = "a folder of pictures, tars as in x-{000..010}.tar, or Parquet files"
    parser.add_argument("source", nargs="*", metavar="SOURCE", default=[], help=text)
    what = parser.add_argument_group("what is embedded")
    what.add_argument("--texts", type=Path, metavar="FILE", help="texts instead of pictures, one a line")
    what.add_argument("--image-column", metavar="NAME", help="of Parquet; default: the only one of bytes")
    flags.setup(parser)
    how = parser.add_argument_group("conditions")
    flags.device(how, text="of each worker")
    flags.number(how, "--batch", 64, "pictures per pass")
    flags.number(how, "--decoders", None, "processes that decode; 0: the model's own; default: by the cores", kind=int)
    flags.number(how, "--workers", None, "Ray actors that share the work; default: this process", kind=flags.positive)
    files = parser.add_argument_group("files")
    flags.output(files, str(VECTORS), "folder of Parquet files")
    flags.number(files, "--shard-size", 4096, "pictures per file")
    files.add_argument("--embedding-dtype", metavar="TYPE", default="float16", help="float16 or float32")


def run_embed(args: Namespace, status: Console) -> Shown:
    """Embed pictures or texts and say where the embeddings are, what is bad, and what bound."""
    from harness.apps.vectors.embed import EmbedJob, embed

    job = flags.settings(
        EmbedJob,
        args,
        setup=flags.setup_of(args),
        source=_source(args, Progress(status)),
        out=args.output,
        column=args.image_column,
    )
    done = embed(job, Progress(status))
    facts = {"path": done.path, "total": done.total, "embedded": done.total - done.bad, "bad": done.bad}
    data = json_values({**facts, "errors": done.errors, "per_s": done.rates, "binds": done.binds})
    return Shown(parts=_lines(done, job), data=data)


def _source(args: Namespace, progress: Progress) -> "PictureSource | TextSource":
    from harness.apps.vectors.source import EXPECTED, TextSource, open_source

    if args.texts is None:
        if not args.source:
            raise ValueError(f"nothing to embed: give {EXPECTED}; or --texts FILE")
        return open_source(args.source, column=args.image_column, progress=progress)
    if args.source or args.image_column is not None:
        other = args.source[0] if args.source else "--image-column"
        raise ValueError(f"--texts {str(args.texts)!r} with {other!r}: embed pictures and texts apart")
    return TextSource(args.texts)


def _lines(done: "Embedded", job: "EmbedJob") -> tuple[str, ...]:
    """Say what came of it: how fast, then where it is and what is missing."""
    lines = []
    if done.binds is not None:
        rates = {name: f"{rate:,.3g} {job.kind}/s" for name, rate in done.rates.items()}
        of_model = f"the model does {rates['model']}"
        if "decoding" in rates:
            count = job.processes * (job.workers or 1)
            by = f"{count} process{'es' if count > 1 else ''}" if count else "the model's process"
            lines.append(f"{done.binds} binds: {of_model}, decoding by {by} {rates['decoding']}")
        else:
            lines.append(of_model)
    text = f"wrote {done.path}: {done.total - done.bad:,} of {done.total:,} {job.kind}"
    if done.bad:
        text += f"; {done.bad:,} can't be embedded, listed in {done.errors}"
    return (*lines, text)


def _search_flags(parser: CommandParser) -> None:
    parser.add_argument("query", metavar="QUERY", help="words, or the path of a picture")
    where = parser.add_argument_group("where")
    text = "folder that `embed` wrote"
    where.add_argument("--in", dest="vectors", type=Path, metavar="DIR", default=VECTORS, help=text)
    flags.number(where, "--top", 10, "hits", metavar="K")
    flags.device(where, text="for a picture")
    files = parser.add_argument_group("files")
    files.add_argument("--sheet", type=Path, metavar="FILE", help="a PNG of the hits, side by side")


def run_search(args: Namespace, _status: Console) -> Shown:
    """Search embeddings and show the nearest ones."""
    from harness.apps.vectors.embed import IMAGES, read_vectors
    from harness.apps.vectors.search import nearest, open_pictures, query_vector, write_sheet

    provenance = next(read_vectors(args.vectors)).provenance
    source = None if args.sheet is None else open_pictures(provenance)
    found = nearest(args.vectors, query_vector(args.query, provenance, device=args.device), args.top)
    name = "path" if provenance.kind == IMAGES else "text"
    rows = [(str(hit.rank), f"{hit.score:.4f}", hit.name) for hit in found.hits]
    below = provenance.source[0]
    where = f"; paths are below {below}" if name == "path" and Path(below).is_dir() else ""
    text = f"searched {found.searched:,} {provenance.kind}, embedded by {provenance.setup.name}{where}"
    table = Table.of(f"nearest to {args.query}", ("rank", "score", name), rows, words=(name,))
    parts: list[str | Table] = [table, text]
    if source is not None:
        write_sheet(args.sheet, args.query, found, source)
        parts.append(f"wrote {args.sheet}")
    hits = [{"rank": hit.rank, "score": hit.score, "id": hit.id, name: hit.name} for hit in found.hits]
    facts = {"query": args.query, "source": provenance.source, "model": provenance.setup.name}
    sheet = None if source is None else str(args.sheet)
    return Shown(parts=tuple(parts), data={**facts, "searched": found.searched, "hits": hits, "sheet": sheet})


COMMANDS = (
    Command(
        path="embed",
        what="Embed your own pictures, or texts, as Parquet files; resumable.",
        flags=_embed_flags,
        run=run_embed,
        examples=(
            ("embed photos/ --output vectors/", "all pictures below a folder, by the model that ships"),
            ("embed 'x-{000..010}.tar' --model clip_vit_b16 --method rankmerge --keep 0.6", "webdataset's tars"),
            ("embed photos/ --device cuda --dtype bfloat16 --workers 8", "on eight GPUs, by Ray"),
            ("embed --texts captions.txt --output texts/", "a text a line, in the same space"),
        ),
        output="a folder of Parquet files and a line of speeds; see docs/embed.md",
    ),
    Command(
        path="search",
        what="Search embeddings by words or by a picture.",
        flags=_search_flags,
        run=run_search,
        examples=(
            ("search 'a red shoe' --in vectors/", "the ten nearest pictures"),
            ("search cat.jpg --in vectors/ --top 20 --sheet hits.png", "pictures like another, side by side"),
        ),
    ),
)
