"""Build the shipped emoji pairs: one drawing by Noto, one by Fluent 3D, matched by code point.

A pack holds the packages' own image files, end to end and unchanged (PNG, WebP); the index holds
their lengths and what they show. Nothing is encoded here, so a rebuild is byte-equal.

Left out: flags, joined sequences (gendered and skin-tone versions), the series of `DROPPED`, whose
members differ by a glyph or a hand of a clock, and pairs whose Fluent file exceeds `MAX_BYTES`.
Split: sha256 of the *group* modulo 20, so 13/20 train, 3/20 val, 4/20 test. A group is all emoji
whose names agree once colours, sizes, directions, phases, "face", "sign" and the like (`MODIFIERS`)
and everything after "with" are taken out: "green book" with "blue book", "tiger face" with "tiger",
all moon phases, all kissing faces. Both styles of an emoji share its split. Groups that look alike
are joined by `TWINS`; what a later split of train, val and test has of a joined group is in none.
The split "final" was drawn last, of what had been left out: pairs above `MAX_BYTES`, and joined
sequences without a gender or a colon in their name, of groups that no other split has a member of.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools import build_command, read_known, read_members, run

NOTO = "emoji-datasource-google@16.0.0"
FLUENT = "@lobehub/fluent-emoji-3d@1.1.0"
SHA256 = {  # of what `npm pack` gives
    "emoji-datasource-google-16.0.0.tgz": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "lobehub-fluent-emoji-3d-1.1.0.tgz": "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
}
MEMBERS = ("package/emoji.json", "package/img/google/64/", "package/assets/")
MAX_BYTES = 7000
JOINER = "200d"
GENDERED = frozenset({"1f468", "1f469", "2640", "2642"})  # what joined sequences have of it
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
# What splits have that shows the same but for a detail, a colour or a turn: {name or group: group
# that it joins}. Each emoji of val, test and final was put beside the two most like it in another
# split, by the cosine of the embedded tower's class tokens with both drawn alike on grey (the higher
# one of the two styles). All pairs above .967 were looked at, of faces those above .988. Different
# glyphs on the same sign, gestures and expressions that differ are no twins.
TWINS = {
    "accommodation sleeping": "bed", "person": "adult", "raised hand": "back hand",
    "fisted hand sign": "fist aside", "left-facing fist": "fist aside",
    "right-facing fist": "fist aside", "biting lip": "mouth", "shamrock": "clover four leaf",
    "monkey-face": "monkey", "spouting whale": "whale", "dog guide": "dog", "dog service": "dog",
    "taxi": "automobile", "passenger ship": "ferry", "airplane departure": "airplane arriving",
    "cableway mountain": "aerial tramway", "behind cloud rain sun": "behind cloud sun",
    "clau mx": "christma father", "office worker": "in tuxedo", "control passport": "custom",
    "women": "men", "baggage claim": "luggage",
    # faces
    "frowning face": "frowning slightly", "frowning face with open mouth": "anguished",
    "upside-down": "slightly smiling", "ki throwing": "kissing", "persevering": "confounded",
    "angry": "pouting", "eye with": "dizzy",
    "stuck-out tongue with": "eye stuck-out tightly-closed tongue with",
    "eye stuck-out tongue winking with": "eye stuck-out tightly-closed tongue with",
    # hearts and suits
    "broken heart": "heart", "decoration heart": "heart", "exclamation heart": "heart",
    "heart sparkling": "heart", "growing heart": "heart", "beating heart": "heart",
    "heart revolving": "heart", "heart mending": "heart", "fire heart on": "heart",
    "heart suit": "heart", "spade suit": "club suit",
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


def pairs(noto: dict[str, bytes], fluent: dict[str, bytes]) -> Iterator[tuple[dict[str, Any], bytes, bytes]]:
    """Yield what could ship in the order of the emoji list: (record, Noto bytes, Fluent bytes)."""
    for entry in sorted(json.loads(noto["emoji.json"]), key=lambda entry: entry["sort_order"]):
        code = entry["unified"].lower()
        if entry["category"] in ("Flags", "Component"):
            continue
        if entry["subcategory"] in DROPPED or entry["name"].lower().startswith(DROPPED_PREFIX):
            continue
        drawn = noto.get(f"img/google/64/{entry['image']}")
        names = (f"assets/{code}.webp", f"assets/{code.removesuffix('-fe0f')}.webp")
        modelled = next((fluent[name] for name in names if name in fluent), None)
        if not entry["has_img_google"] or drawn is None or modelled is None:
            continue
        group = group_of(entry["name"], entry["subcategory"])
        record = {"code": code, "name": entry["name"].lower()}
        record |= {key: entry[key] for key in ("short_names", "category", "subcategory")}
        record |= {"group": TWINS.get(record["name"], TWINS.get(group, group)), "split": split_of(group)}
        record["bytes"] = [len(drawn), len(modelled)]
        yield record, drawn, modelled


def select(noto: dict[str, bytes], fluent: dict[str, bytes]) -> list[tuple[dict[str, Any], bytes, bytes]]:
    """Choose the pairs that ship: those of train, val, test and none, then those of final."""
    chosen, rest = [], []
    images: set[bytes] = set()
    for pair in pairs(noto, fluent):
        record, drawn, modelled = pair
        if drawn in images or modelled in images:
            continue
        if JOINER in record["code"].split("-") or len(modelled) > MAX_BYTES:
            rest.append(pair)
            continue
        images |= {drawn, modelled}
        chosen.append(pair)
    first: dict[str, str] = {}
    for split in ("train", "val", "test"):
        for record, _, _ in chosen:
            if record["split"] == split and first.setdefault(record["group"], split) != split:
                record["split"] = None
    for pair in rest:
        record, drawn, modelled = pair
        parts = record["code"].split("-")
        gendered = JOINER in parts and (GENDERED & set(parts) or ":" in record["name"])
        if gendered or record["group"] in first or drawn in images or modelled in images:
            continue
        record["split"] = "final"
        images |= {drawn, modelled}
        chosen.append(pair)
    return chosen


def build(folder: Path) -> dict[str, bytes]:
    """Make the shipped files, {file name: content}, from a folder with the two npm archives."""
    packages = []
    for archive, sha256 in SHA256.items():
        content = read_known(folder / archive, sha256, f"npm pack {NOTO} {FLUENT}")
        found = read_members(folder / archive, content, MEMBERS)
        packages.append({name.removeprefix("package/"): image for name, image in found.items()})
    chosen = select(*packages)
    head = {"schema": 1, "packages": [NOTO, FLUENT], "sha256": SHA256, "styles": ["noto", "fluent"]}
    shown = [pair for pair in chosen if pair[0]["split"] != "final"]
    lines = ",\n".join(json.dumps(record, separators=(",", ":")) for record, _, _ in chosen)
    index = f'{json.dumps(head)[:-1]}, "emoji": [\n{lines}\n]}}\n'
    return {
        "emoji-noto.pack": b"".join(drawn for _, drawn, _ in shown),
        "emoji-fluent.pack": b"".join(modelled for _, _, modelled in shown),
        "emoji-final.pack": b"".join(drawn + modelled for _, drawn, modelled in chosen[len(shown) :]),
        "emoji-index.json": index.encode(),
    }


def fetch(scratch: Path) -> Path:
    """Download both npm archives into a folder."""
    run(["npm", "pack", "--silent", NOTO, FLUENT], scratch)
    return scratch


if __name__ == "__main__":
    sys.exit(build_command(build, fetch, source="folder of both .tgz"))
