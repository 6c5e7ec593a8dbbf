"""Show emoji of two art styles, Noto (flat) and Fluent 3D, on plain or gradient backgrounds.

Tasks differ in the labels of the same images. Splits are disjoint by group of near-duplicates (rule:
`tools.build_data`). The drawing has 96 to 160 of 196 px.
"""

import functools
import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.datasets.base import FINAL, Dataset, Rendered, Split, SplitName
from harness.datasets.canvas import compose, decode, seeded

STYLES = ("noto", "fluent")
SEED = 1607
CAPTION = "an emoji showing {}."  # the first of the templates that text training used
# Test emoji whose names have words that the embedded text tower knows.
CAPTIONED = frozenset((
    "smirking face", "hole", "heart hands", "mechanical leg", "eyes", "eye", "person frowning", "face palm",
    "construction worker", "tropical fish", "meat on bone", "rice ball", "school", "tram car", "crescent moon",
    "wind face", "coat", "flat shoe", "womans hat", "bell", "bell with cancellation stroke", "microphone",
    "musical keyboard", "card file box", "mirror", "cross mark",
))  # fmt: skip

CATEGORIES = {
    "Smileys & Emotion": "smiley or emotion", "People & Body": "person or body part",
    "Animals & Nature": "animal or plant", "Food & Drink": "food or drink",
    "Travel & Places": "vehicle, place or weather", "Activities": "sport, game or celebration",
    "Objects": "everyday object", "Symbols": "sign or symbol",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """One emoji as the index lists it; `images` are its encoded files, in the order of STYLES."""

    code: str
    name: str
    short_names: tuple[str, ...]
    category: str
    subcategory: str
    group: str
    split: SplitName | None  # None: too like one of an earlier split
    images: tuple[bytes, bytes]


class EmojiCategory(Dataset):
    """Eight categories, across two styles."""

    name = images_of = "emoji"
    title = "Emoji categories, Noto and Fluent 3D"
    shots_from: SplitName = "val"
    has_final = captions_seen = True
    classes: tuple[str, ...] = tuple(CATEGORIES.values())
    license = "Apache-2.0 (Noto art), MIT (Fluent art; names and categories)"
    files = ("emoji-noto.pack", "emoji-fluent.pack", "emoji-final.pack", "emoji-index.json")
    build_command = "python -m tools.build_data emoji"
    studied = True
    templates: tuple[str, ...] = (
        "an emoji showing {}.", "an emoji of the kind {}.", "a drawing of {}.", "an icon of {}.",
        "a 3d rendering of {}.",
    )  # fmt: skip

    @functools.cached_property
    def emoji(self) -> tuple[Emoji, ...]:
        """All shipped emoji, in the order of the emoji list."""
        records: list[dict[str, Any]] = json.loads(self.path(self.files[3]).read_text())["emoji"]
        *packs, final = (io.BytesIO(self.path(file).read_bytes()) for file in self.files[:3])
        emoji = []
        for record in records:
            files = [final, final] if record["split"] == FINAL else packs
            noto, fluent = (f.read(n) for f, n in zip(files, record.pop("bytes"), strict=True))
            names = tuple(record.pop("short_names"))
            emoji.append(Emoji(**record, short_names=names, images=(noto, fluent)))
        return tuple(emoji)

    @functools.cached_property
    def _by_code(self) -> dict[str, Emoji]:
        return {emoji.code: emoji for emoji in self.emoji}

    def group_of(self, image_id: str) -> str:
        """Near-duplicates and both styles of an emoji are one group."""
        return self._by_code[image_id.split("/")[1]].group

    def members(self, name: SplitName) -> list[tuple[Emoji, int]]:
        """(emoji, label) of a split; example 2 i + s shows member i in style s."""
        return [(e, list(CATEGORIES).index(e.category)) for e in self.emoji if e.split == name]

    def _split(self, name: SplitName) -> Split:
        members = self.members(name)
        labels = np.repeat(np.array([label for _, label in members], dtype=np.int64), len(STYLES))

        def image_id(index: int) -> str:
            place, style = divmod(index, len(STYLES))
            return f"emoji/{members[place][0].code}/{STYLES[style]}"

        def render(index: int, variant: int) -> Rendered:
            place, style = divmod(index, len(STYLES))
            emoji, _ = members[place]
            code = [int(point, 16) for point in emoji.code.split("-")]
            return compose(decode(emoji.images[style]), seeded(SEED, style, variant, *code))

        return Split(labels, image_id, render)


class EmojiCaptions(EmojiCategory):
    """Test emoji with captions of their names, for retrieval; both styles share one, and train and val are empty.

    Only those whose names the embedded text tower has words for.
    """

    name = "emoji-captions"
    title = "Held-out emoji and captions of their names, Noto and Fluent 3D"
    shots_from: SplitName = "train"
    has_final = captions_seen = False
    templates: tuple[str, ...] = ()
    classes = ()
    captioned = True

    def captions_of(self, image_id: str) -> tuple[str, ...]:
        """Return the one caption of an image."""
        return (CAPTION.format(self._by_code[image_id.split("/")[1]].name),)

    def members(self, name: SplitName) -> list[tuple[Emoji, int]]:
        """(emoji, -1), which is no class, of the test split; the others are empty."""
        return [(emoji, -1) for emoji, _ in super().members(name) if name == "test" and emoji.name in CAPTIONED]


DATASETS = (EmojiCategory(), EmojiCaptions())
