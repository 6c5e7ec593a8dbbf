"""Class names for prompts: from folders' names or from a file beside them; and the prompts."""

import re
import string
from collections.abc import Sequence
from pathlib import Path

FILES = ("classes.txt", "classnames.txt")
LARGEST = 4 << 20  # bytes of such a file


def slug(text: str, what: str) -> str:
    """Return what a dataset is called after a file or folder: lower case, dashes between words.

    Raises:
        ValueError: nothing is left of it.
    """
    words = re.sub(r"\W+", "-", text.lower()).strip("-")
    if not words:
        raise ValueError(f"{what}: its name becomes the dataset's and needs letters or digits")
    return words


def require_template(template: str) -> None:
    """Refuse what is no prompt.

    Raises:
        ValueError: it hasn't exactly one ``{}``, or it has other braces.
    """
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError:  # braces that don't pair
        parsed = []
    fields = [part[1:] for part in parsed if part[1] is not None]
    if fields != [("", "", None)] or "{{" in template or "}}" in template:
        raise ValueError(
            f"template {template!r}: expected one {{}} where the class goes, as in "
            "'a photo of a {}.', and no other braces"
        )


def caption(name: str, what: str) -> str:
    """Return the caption that a folder's name says: underscores and dashes are spaces.

    Raises:
        ValueError: nothing of it can be put into a prompt.
    """
    words = " ".join(re.sub(r"[_-]", " ", name).split())
    if not words or not name.isprintable():
        raise ValueError(
            f"{what}: the folder's name {name!r} can't be put into a prompt; rename it, or say "
            f"what it means in {FILES[0]}"
        )
    return words


def captions_of(folder: Path, names: Sequence[str], what: str) -> tuple[str, ...]:
    """Return the captions of class folders, in their order.

    They are in ``classes.txt`` or ``classnames.txt``, one a line: each after its folder's name, or
    all without and in the order of the sorted folders. Without such a file, names are captions.

    Raises:
        ValueError: lines that contradict folders, or one caption for two of them.
    """
    present = [file for file in FILES if (folder / file).is_file()]
    if len(present) > 1:
        raise ValueError(f"{what}: both {' and '.join(present)} are there; leave one")
    if present:
        lines = text_lines(folder / present[0])
        captions = _matched(lines, names, f"{what}: {present[0]}")
    else:
        captions = [caption(name, what) for name in names]
    first: dict[str, str] = {}
    for name, text in zip(names, captions, strict=True):
        if first.setdefault(text, name) != name:
            raise ValueError(
                f"{what}: folders {first[text]!r} and {name!r} would both be class {text!r}; say "
                f"otherwise in {FILES[0]}"
            )
    return tuple(captions)


def text_lines(file: Path) -> list[str]:
    """Read the lines of a small text file that somebody else may have written.

    Raises:
        ValueError: not UTF-8, too large, or an empty line or one that can't be printed.
    """
    if file.stat().st_size > LARGEST:
        raise ValueError(f"{str(file)!r} has more than {LARGEST:,} bytes and is no list of names")
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(file)!r} is not text in UTF-8: {error}") from error
    lines = [line.strip() for line in lines]
    for number, line in enumerate(lines, start=1):
        if not line or not line.replace("\t", " ").isprintable():
            raise ValueError(f"{str(file)!r}, line {number}: expected a name, got {line!r}")
    return lines


def _matched(lines: Sequence[str], names: Sequence[str], what: str) -> list[str]:
    """Match lines with folders."""
    known = set(names)
    pairs = [_pair(line, known) for line in lines]
    if all(pairs):
        captions: dict[str, str] = {}
        for name, text in filter(None, pairs):
            if name in captions:
                raise ValueError(f"{what}: folder {name!r} is there twice")
            captions[name] = text
        if missing := [name for name in names if name not in captions]:
            raise ValueError(f"{what}: no line for the folder {missing[0]!r}")
        return [captions[name] for name in names]
    if len(lines) != len(names):
        raise ValueError(
            f"{what}: {len(lines)} lines for {len(names)} class folders; expected a line for each, "
            "with or without the folder's name before the caption"
        )
    own = {name: place for place, name in enumerate(names)}
    for place, line in enumerate(lines):
        if own.get(line, place) != place:
            raise ValueError(
                f"{what}, line {place + 1}: {line!r} would be the caption of the folder "
                f"{names[place]!r}, but another folder has that name; write lines as 'folder "
                "caption'"
            )
    return list(lines)


def _pair(line: str, names: set[str]) -> tuple[str, str] | None:
    """Part a line into a folder's name, the longest that fits, and a caption."""
    for gap in reversed([i for i, letter in enumerate(line) if letter in " \t"]):
        if line[:gap] in names:
            return line[:gap], line[gap:].strip()
    return None
