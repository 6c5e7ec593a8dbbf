"""Build the shipped emoji pairs: one drawing by Noto, one by Fluent 3D, matched by code point.

A pack holds the packages' own image files, end to end and unchanged (PNG, WebP); the index holds
their lengths and what they show. Nothing is encoded here, so a rebuild is byte-equal.

Left out: flags, joined sequences (gendered and skin-tone versions), the series of `DROPPED`, whose
members differ by a glyph or a hand of a clock, and pairs whose Fluent file exceeds `MAX_BYTES`.
Split: sha256 of the *group* modulo 20, so 13/20 train, 3/20 val, 4/20 test. A group is all emoji
whose names agree once colours, sizes, directions, phases, "face", "sign" and the like (`MODIFIERS`)
and everything after "with" are taken out: "green book" with "blue book", "tiger face" with "tiger",
all moon phases, all kissing faces. Both styles of an emoji share its split.
"""

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.embedded.shipping import build_command, read_known, run

NOTO = "emoji-datasource-google@16.0.0"
FLUENT = "@lobehub/fluent-emoji-3d@1.1.0"
SHA256 = {  # of what `npm pack` gives
    "emoji-datasource-google-16.0.0.tgz": ("fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"),
    "lobehub-fluent-emoji-3d-1.1.0.tgz": ("c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"),
}
MAX_BYTES = 7000
JOINER = "200d"
_DROPPED = "alphanum arrow av-symbol family gender geometric keycap math punctuation zodiac"
DROPPED = frozenset(_DROPPED.split())
DROPPED_PREFIX = "clock face "
WHOLE = frozenset({"cat-face", "monkey-face"})  # subcategories that are one group each
ALIASES = {  # drawn alike under another name
    "imp": "smiling face with horns", "water buffalo": "ox", "ram": "sheep",
    "astonished face": "hushed face", "confused face": "slightly frowning face",
    "grinning face": "smiling face", "grinning face with smiling eyes": "smiling face",
    "spiral notepad": "page with curl",
}  # fmt: skip
MODIFIER_WORDS = """
a of the and face sign symbol red orange yellow green blue purple brown black white grey pink
light dark heavy medium small large high low big front-facing left-facing right-facing oncoming
open closed left right up down upwards downwards leftwards rightwards pointing left-pointing
right-pointing new waxing waning crescent gibbous full first second third last quarter one two
three double linked multiple raised lowered fisted speed high-speed clinking round straight
rolled-up tear-off spiral old hooked snow-capped man woman men women mans womans person people
older japanese european europe-africa americas asia-australia evergreen deciduous dromedary
bactrian incoming front pregnant outbox inbox sports military place
"""
MODIFIERS = frozenset(MODIFIER_WORDS.split())


def group_of(name: str, subcategory: str) -> str:
    """Name the group of near-duplicates an emoji belongs to (see the file's first lines)."""
    if subcategory in WHOLE:
        return subcategory
    words = ALIASES.get(name.lower(), name.lower()).split()
    head = words[: words.index("with")] if "with" in words else words
    for part in (head, words):
        stems = {word.rstrip("s") for word in part if word not in MODIFIERS}
        if stems:
            return " ".join(sorted(stems))
    return subcategory


def split_of(group: str) -> str:
    """Assign a group to "train", "val" or "test" by its hash."""
    bucket = int(hashlib.sha256(group.encode()).hexdigest(), 16) % 20
    return "test" if bucket < 4 else "val" if bucket < 7 else "train"


def read_members(folder: Path, archive: str) -> dict[str, bytes]:
    """Read the files of an npm archive, {path inside "package/": content}."""
    packed = read_known(folder / archive, SHA256[archive], f"npm pack {NOTO} {FLUENT}")
    prefixes = ("package/emoji.json", "package/img/google/64/", "package/assets/")
    members = {}
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        for member in tar:
            if member.isfile() and member.name.startswith(prefixes):
                content = tar.extractfile(member)
                assert content is not None
                members[member.name.removeprefix("package/")] = content.read()
    return members


def select(noto: dict[str, bytes], fluent: dict[str, bytes]) -> list[tuple[dict[str, Any], bytes, bytes]]:
    """Choose the pairs in the order of the emoji list: (record, Noto bytes, Fluent bytes)."""
    chosen = []
    images: set[bytes] = set()
    for entry in sorted(json.loads(noto["emoji.json"]), key=lambda entry: entry["sort_order"]):
        code = entry["unified"].lower()
        if entry["category"] in ("Flags", "Component") or JOINER in code.split("-"):
            continue
        if entry["subcategory"] in DROPPED or entry["name"].lower().startswith(DROPPED_PREFIX):
            continue
        drawn = noto.get(f"img/google/64/{entry['image']}")
        names = (f"assets/{code}.webp", f"assets/{code.removesuffix('-fe0f')}.webp")
        modelled = next((fluent[name] for name in names if name in fluent), None)
        if not entry["has_img_google"] or drawn is None or modelled is None:
            continue
        if len(modelled) > MAX_BYTES or drawn in images or modelled in images:
            continue
        images |= {drawn, modelled}
        group = group_of(entry["name"], entry["subcategory"])
        record = {"code": code, "name": entry["name"].lower()}
        record |= {key: entry[key] for key in ("short_names", "category", "subcategory")}
        record |= {"group": group, "split": split_of(group)}
        record["bytes"] = [len(drawn), len(modelled)]
        chosen.append((record, drawn, modelled))
    return chosen


def build(folder: Path) -> dict[str, bytes]:
    """Make the shipped files, {file name: content}, from a folder with the two npm archives."""
    noto, fluent = (read_members(folder, archive) for archive in SHA256)
    chosen = select(noto, fluent)
    head = {"schema": 1, "packages": [NOTO, FLUENT], "sha256": SHA256, "styles": ["noto", "fluent"]}
    lines = ",\n".join(json.dumps(record, separators=(",", ":")) for record, _, _ in chosen)
    index = f'{json.dumps(head)[:-1]}, "emoji": [\n{lines}\n]}}\n'
    return {
        "emoji-noto.pack": b"".join(drawn for _, drawn, _ in chosen),
        "emoji-fluent.pack": b"".join(modelled for _, _, modelled in chosen),
        "emoji-index.json": index.encode(),
    }


def build_from(source: Path | None, scratch: Path) -> dict[str, bytes]:
    """Make the shipped files from a folder with both npm archives, by default what npm gets."""
    if source is None:
        run(["npm", "pack", "--silent", NOTO, FLUENT], scratch)
    return build(source or scratch)


def main(argv: Sequence[str] | None = None) -> int:
    """Write or compare the shipped files, see ``build_command``."""
    source = "folder of both .tgz; default: npm pack"
    return build_command("build_emoji", build_from, source=source, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
