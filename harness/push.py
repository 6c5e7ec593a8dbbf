"""Publish a model: a folder that timm loads, its card, and the upload."""

import argparse
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from timm.models import save_for_hf

from harness.model_card import model_card
from harness.progress import Progress
from harness.publishable import FREE, PROVENANCE, Publishable, load_publishable
from harness.records import Record, read_run
from harness.shown import Shown
from zoo.files import write_whole

FILES = ("README.md", "config.json", "model.safetensors")


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What ``push`` did.

    Attributes:
        where: the folder or the address that holds the model now; None after a dry run.
        card: text of its card.
        sizes: bytes of each file.
    """

    where: str | None
    card: str
    sizes: dict[str, int]

    def __str__(self) -> str:
        """List the files, and the card where it can't be read elsewhere."""
        files = ", ".join(f"{name} ({size:,} bytes)" for name, size in self.sizes.items())
        if self.where is not None:
            return f"wrote {self.where}: {files}"
        return f"nothing was written or sent; it would be {files}\n\n{self.card}"


def run_push(args: argparse.Namespace, status: Console) -> Shown:
    """Publish a model and say what was written."""
    done = pushed(args, Progress(status))
    told = {"where": done.where, "bytes_by_file": done.sizes, "card": done.card}
    return Shown(parts=(str(done),), data=told)


def pushed(args: argparse.Namespace, progress: Progress) -> Pushed:
    """Write a model with its card, and upload it unless asked to only write.

    Raises:
        ValueError: a name, licence or record that doesn't fit, or a folder with other files.
        FileNotFoundError: weights or files that aren't there.
        ConnectionError: the hub is out of reach or refuses.
    """
    _check_repo(args.to)
    records = read_run(args.records) if args.records is not None else []
    model = load_publishable(args.model, args.predictor, args.prompts)
    uploads = args.folder is None and not args.dry_run
    _check_license(model, args.accept_license, uploads=uploads)
    rows = model.rows(records, args.records) if args.records is not None else []
    if args.folder is not None:
        card = write_folder(model, args.folder, args.to, rows)
        return Pushed(where=str(args.folder), card=card, sizes=_sizes(args.folder))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        card = write_folder(model, folder, args.to, rows)
        sizes = _sizes(folder)
        where = None
        if uploads:
            progress.say(f"uploading {sum(sizes.values()):,} bytes to {args.to}")
            where = upload(folder, args.to, private=args.private)
    return Pushed(where=where, card=card, sizes=sizes)


def write_folder(model: Publishable, folder: Path, repo: str, records: Sequence[Record]) -> str:
    """Write weights, config and card; ``local-dir:`` loads them.

    Args:
        model: the model.
        folder: a new or empty one, or one written before.
        repo: ``OWNER/NAME`` that it is meant for.
        records: for the card.

    Returns:
        The card.

    Raises:
        ValueError: the folder has other files, which an upload would take along.
    """
    others = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if strange := sorted(set(others) - set(FILES)):
        raise ValueError(f"folder {str(folder)!r} holds {strange[0]!r}: give a new or empty one")
    card = model_card(model, repo, records)
    config = {PROVENANCE: model.provenance} if model.provenance else {}
    save_for_hf(model.vit, str(folder), model_config=config, safe_serialization=True)
    write_whole(folder / "README.md", card.encode())
    return card


def upload(folder: Path, repo: str, *, private: bool) -> str:
    """Make the repository if it isn't there, and upload the folder as one commit.

    Returns:
        The model's address.

    Raises:
        ConnectionError: no token, no network, or the hub refuses.
    """
    from huggingface_hub import HfApi  # here, so that a test's stand-in is found

    try:
        api = HfApi(library_name="clip-patchrank")
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=list(FILES),
            commit_message="Upload model and card",
        )
    except Exception as error:  # the client raises what its transport does, release by release
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConnectionError(
            f"can't upload to {repo!r}: {reason} (log in with 'hf auth login' or set HF_TOKEN, "
            "where the hub can be reached; or write the files with --folder DIR and upload them "
            f"from elsewhere with 'hf upload {repo} DIR')"
        ) from error
    return f"https://huggingface.co/{repo}"


def _check_repo(repo: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo, re.ASCII):
        raise ValueError(f"--to {repo!r}: expected OWNER/NAME, of letters, digits and - _ .")


def _check_license(model: Publishable, accepted: str | None, *, uploads: bool) -> None:
    if accepted not in (None, model.license):
        raise ValueError(
            f"--accept-license {accepted!r}: the weights {model.tag!r} are under {model.license!r}"
        )
    if uploads and model.license not in FREE and accepted is None:
        raise ValueError(
            f"the weights {model.tag!r} are under {model.license!r}, which may forbid publishing "
            "what is derived from them: read it, and if you may, add --accept-license "
            f"{model.license}"
        )


def _sizes(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in FILES}
