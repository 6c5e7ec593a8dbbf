"""Build the shipped emoji pairs: one drawing by Noto, one by Fluent 3D, matched by code point.

A pack holds the packages' own image files, end to end and unchanged (PNG, WebP). The shipped index lists the emoji with
their names, groups and splits, and the lengths of both files. Nothing is encoded here, so a rebuild is byte-equal.

How the index was made: left out are flags, joined sequences (gendered and skin-tone versions), series whose members
differ by a glyph or a hand of a clock, and pairs whose Fluent file exceeds 7000 bytes. Split: sha256 of the *group*
modulo 20, so 13/20 train, 3/20 val, 4/20 test. A group is all emoji whose names agree without colours, sizes,
directions, phases, "face", "sign" and the like, and everything after "with": "green book" with "blue book", "tiger
face" with "tiger", all moon phases, all kissing faces. Both styles of an emoji share its split. Each emoji of val,
test and final was put beside the two most like it in another split, by the cosine of the embedded tower's class
tokens; pairs that look alike were joined. What a later split of train, val and test has of a joined group is in none.
The split "final" was drawn last, of what had been left out: pairs of larger files, and joined sequences without a
gender or a colon in their name, of groups that no other split has a member of.
"""

import json
import sys
from pathlib import Path

from tools import DATA_DIR, build_command, read_known, read_members, run

INDEX = json.loads((DATA_DIR / "emoji-index.json").read_bytes())
FOLDERS = ("package/img/google/64/", "package/assets/")  # of Noto's and Fluent's images


def build(folder: Path) -> dict[str, bytes]:
    """Make the packs, {file name: content}, from a folder with the two npm archives."""
    packages = []
    for (archive, sha256), prefix in zip(INDEX["sha256"].items(), FOLDERS, strict=True):
        content = read_known(folder / archive, sha256, f"npm pack {' '.join(INDEX['packages'])}")
        found = read_members(folder / archive, content, (prefix,))
        packages.append({name.removeprefix(prefix): image for name, image in found.items()})
    noto, fluent = packages
    names = ("emoji-noto.pack", "emoji-fluent.pack", "emoji-final.pack")
    packs: dict[str, list[bytes]] = {name: [] for name in names}
    for emoji in INDEX["emoji"]:
        code = emoji["code"]
        modelled = fluent.get(f"{code}.webp") or fluent[f"{code.removesuffix('-fe0f')}.webp"]
        for name, image in zip(names, (noto[f"{code}.png"], modelled), strict=False):
            packs[names[2] if emoji["split"] == "final" else name].append(image)
    return {name: b"".join(images) for name, images in packs.items()}


def fetch(scratch: Path) -> Path:
    """Download both npm archives into a folder."""
    run(["npm", "pack", "--silent", *INDEX["packages"]], scratch)
    return scratch


if __name__ == "__main__":
    sys.exit(build_command(build, fetch, source="folder of both .tgz"))
