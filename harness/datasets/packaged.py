"""The datasets that ship: emoji and clothing on painted canvases, photographs whole and in crops.

Canvases are painted by integer arithmetic and raw PCG64 words only, so that an image is the same on every machine and
with every version: numpy keeps a bit generator's raw stream fixed for ever, but not the draws of `Generator`, and image
libraries change their filters. `tools.build_data` makes the packaged files.
"""

import functools
import io
import json
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from harness.datasets.base import DATA_DIR, FINAL, SPLITS, Dataset, Rendered, Split, SplitName
from harness.datasets.images import open_image

SIZE = 196  # of a canvas
Pixels = NDArray[np.uint8]
Rng = np.random.PCG64


def seeded(*key: int) -> Rng:
    """Make the generator that belongs to a key of non-negative integers."""
    return Rng(np.random.SeedSequence(key))


def draw(rng: Rng, low: int, high: int) -> int:
    """Draw an integer from [low, high); the modulo bias is below 2**-50 here."""
    return low + int(rng.random_raw()) % (high - low)


def draws(rng: Rng, low: int, high: int, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Draw integers from [low, high) in an array of that shape."""
    words = rng.random_raw(int(np.prod(shape)))
    return (low + (words % np.uint64(high - low)).astype(np.int64)).reshape(shape)


def _taps(size_in: int, size_out: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return left neighbours and the right neighbours' weights in 1/256, half-pixel centres."""
    centres = ((2 * np.arange(size_out, dtype=np.int64) + 1) * size_in * 128) // size_out - 128
    centres = np.clip(centres, 0, (size_in - 1) * 256)
    left = np.minimum(centres // 256, size_in - 2)
    return left, centres - left * 256


def resize(pixels: NDArray[np.integer], height: int, width: int) -> NDArray[np.int64]:
    """Resize (H, W) or (H, W, C) bilinearly in integers, both sides 2 or more; no antialiasing."""
    values = pixels.astype(np.int64)
    row, down = _taps(values.shape[0], height)
    down = down.reshape(-1, *[1] * (values.ndim - 1))
    values = values[row] * (256 - down) + values[row + 1] * down
    col, right = _taps(values.shape[1], width)
    right = right.reshape(1, -1, *[1] * (values.ndim - 2))
    values = values[:, col] * (256 - right) + values[:, col + 1] * right
    return (values + 32768) // 65536


def halve(pixels: NDArray[np.integer]) -> NDArray[np.int64]:
    """Average 2 x 2 blocks of (H, W, C); a last odd row or column is dropped."""
    even = pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2].astype(np.int64)
    return (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2] + 2) // 4


def backdrop(rng: Rng, *, low: int, high: int, contrast: int, grain: int) -> Pixels:
    """Make a smooth coloured field, (SIZE, SIZE, 3).

    Each channel has its own level in [low, high); a coarse grid of 2 to 5 cells a side moves it by up to +-contrast,
    and fine grain by up to +-grain.
    """
    cells = draw(rng, 2, 6)
    level = draws(rng, low, high, (3,))
    coarse = draws(rng, -contrast, contrast + 1, (cells, cells, 1))
    tint = draws(rng, -contrast // 2, contrast // 2 + 1, (cells, cells, 3))
    fine = draws(rng, -grain, grain + 1, (SIZE, SIZE, 1))
    field = level + resize(coarse + tint + 256, SIZE, SIZE) - 256 + fine
    return np.asarray(np.clip(field, 0, 255), dtype=np.uint8)


def paste(canvas: Pixels, colour: NDArray[np.integer], alpha: NDArray[np.integer], top: int, left: int) -> None:
    """Blend colour (h, w, 3) over the canvas in place, by alpha (h, w) in 0..255; what lies outside is cut off."""
    height, width = alpha.shape
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + height, canvas.shape[0]), min(left + width, canvas.shape[1])
    if y0 >= y1 or x0 >= x1:
        return
    inside = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
    weight = alpha[inside].astype(np.int64)[..., None]
    under = canvas[y0:y1, x0:x1].astype(np.int64)
    mixed = (under * (255 - weight) + colour[inside].astype(np.int64) * weight + 127) // 255
    canvas[y0:y1, x0:x1] = mixed.astype(np.uint8)


def finish(canvas: Pixels, colour: NDArray[np.integer], alpha: NDArray[np.int64], rng: Rng) -> Rendered:
    """Blend a whole thing, (size, size, 3), over the canvas at a random place; its pixels have at least half alpha."""
    size = len(alpha)
    top, left = draw(rng, 0, SIZE - size + 1), draw(rng, 0, SIZE - size + 1)
    paste(canvas, colour, alpha, top, left)
    mask = np.zeros((SIZE, SIZE), dtype=np.bool_)
    mask[top : top + size, left : left + size] = alpha >= 128
    return Image.fromarray(canvas), mask


STYLES = ("noto", "fluent")
DRAWING_SIZE = (96, 161)  # of an emoji, lower bound and first above
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


def compose_drawing(drawing: Pixels, rng: Rng) -> Rendered:
    """Put a drawing (H, W, 4), alpha not premultiplied, at a random size and place on a random background."""
    size = draw(rng, *DRAWING_SIZE)
    alpha = drawing[..., 3:].astype(np.int64)
    pixels = np.concatenate([drawing[..., :3] * alpha, alpha * 255], axis=-1)  # premultiplied
    while len(pixels) >= 2 * size:
        pixels = halve(pixels)
    pixels = resize(pixels, size, size)
    colour = np.minimum(pixels[..., :3] * 255 // np.maximum(pixels[..., 3:], 1), 255)
    weight = (pixels[..., 3] + 127) // 255
    canvas = backdrop(rng, low=50, high=236, contrast=draw(rng, 0, 48), grain=0)
    return finish(canvas, colour, weight, rng)


class Emoji(NamedTuple):
    """One emoji as the index lists it; `images` are its encoded files, in the order of STYLES."""

    code: str
    name: str
    short_names: list[str]
    category: str
    subcategory: str
    group: str
    split: SplitName | None  # None: too like one of an earlier split
    images: tuple[bytes, bytes]


class EmojiCategory(Dataset):
    """Eight categories, in two art styles: Noto (flat) and Fluent 3D, on plain or gradient backgrounds.

    Splits are disjoint by group of near-duplicates (rule: `tools.build_data`). The drawing has 96 to 160 of 196 px.
    """

    name = images_of = "emoji"
    title = "Emoji categories, Noto and Fluent 3D"
    shots_from: SplitName = "val"
    has_final = captions_seen = True
    classes: tuple[str, ...] = tuple(CATEGORIES.values())
    license = "Apache-2.0 (Noto art), MIT (Fluent art; names and categories)"
    files = ("emoji-noto.pack", "emoji-fluent.pack", "emoji-final.pack", "emoji-index.json")
    studied = True
    templates: tuple[str, ...] = (
        "an emoji showing {}.", "an emoji of the kind {}.", "a drawing of {}.", "an icon of {}.",
        "a 3d rendering of {}.",
    )  # fmt: skip

    @functools.cached_property
    def emoji(self) -> tuple[Emoji, ...]:
        """All shipped emoji, in the order of the emoji list."""
        *packs, final = (io.BytesIO((DATA_DIR / file).read_bytes()) for file in self.files[:3])
        emoji = []
        for row in json.loads((DATA_DIR / self.files[3]).read_text())["emoji"]:
            files = [final, final] if row["split"] == FINAL else packs
            noto, fluent = (file.read(size) for file, size in zip(files, row.pop("bytes"), strict=True))
            emoji.append(Emoji(**row, images=(noto, fluent)))
        return tuple(emoji)

    @functools.cached_property
    def by_code(self) -> dict[str, Emoji]:
        """All shipped emoji by code, which is the second part of an image's id."""
        return {emoji.code: emoji for emoji in self.emoji}

    def group_of(self, image_id: str) -> str:
        """Near-duplicates and both styles of an emoji are one group."""
        return self.by_code[image_id.split("/")[1]].group

    def members(self, name: SplitName) -> list[Emoji]:
        """The emoji of a split; example 2 i + s shows member i in style s."""
        return [emoji for emoji in self.emoji if emoji.split == name]

    def _split(self, name: SplitName) -> Split:
        members, categories = self.members(name), list(CATEGORIES)
        labels = [categories.index(emoji.category) if self.classes else -1 for emoji in members]

        def image_id(index: int) -> str:
            place, style = divmod(index, len(STYLES))
            return f"emoji/{members[place].code}/{STYLES[style]}"

        def render(index: int, variant: int) -> Rendered:
            place, style = divmod(index, len(STYLES))
            emoji = members[place]
            key = [int(point, 16) for point in emoji.code.split("-")]
            drawing = np.asarray(open_image(emoji.images[style]).convert("RGBA"))
            return compose_drawing(drawing, seeded(1607, style, variant, *key))

        return Split(np.repeat(np.array(labels, dtype=np.int64), len(STYLES)), image_id, render)


class EmojiCaptions(EmojiCategory):
    """Test emoji whose names the embedded text tower has words for, with captions of these, for retrieval.

    Both styles share a caption; train and val are empty.
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
        return (CAPTION.format(self.by_code[image_id.split("/")[1]].name),)

    def members(self, name: SplitName) -> list[Emoji]:
        """The captioned emoji of the test split; the others are empty."""
        return [emoji for emoji in super().members(name) if name == "test" and emoji.name in CAPTIONED]


CLOTHES = (  # in the source's order of labels
    "t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
    "ankle boot",
)  # fmt: skip
TARGET_SIZE = (72, 113)
CLUTTER = (3, 6)
CLUTTER_SIZE = (20, 37)
CLUTTER_LIGHT = 154  # in 1/256
SHADE = 200  # full negative is this much darker than white
CROP = (10, 15)


def silhouette(item: Pixels) -> NDArray[np.bool_]:
    """Find an item's pixels, (28, 28) bool: all but the dark pixels that are joined to the border.

    Dark parts inside an item (a print, a sole) belong to it.
    """
    parts, _ = ndimage.label(np.pad(item < 8, 1, constant_values=True))
    return np.asarray(parts != parts[0, 0])[1:-1, 1:-1]


def paint_item(item: Pixels, size: int, rng: Rng, *, light: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw an item (or a crop of one) at a size: colour (size, size, 3) and alpha (size, size).

    The source stores negatives (dark cloth is bright); the shade turns them back. A slight random tint follows, then
    `light` in 1/256.
    """
    tint = draws(rng, 200, 256, (3,))
    shade = 255 - resize(item, size, size)[..., None] * SHADE // 255
    alpha = resize(silhouette(item).astype(np.int64) * 255, size, size)
    return shade * tint * light // (255 * 256), alpha


def compose_item(item: Pixels, clutter: Pixels, rng: Rng) -> Rendered:
    """Make one canvas: grey background, a dim crop of every clutter item, the whole item on top.

    item: (28, 28) uint8. clutter: (n, 28, 28) uint8, of other classes; n may be 0.
    """
    canvas = backdrop(rng, low=30, high=110, contrast=16, grain=3)
    canvas[...] = canvas[..., :1]
    for clutter_item in clutter:
        side = draw(rng, *CROP)
        y, x = draw(rng, 3, 26 - side), draw(rng, 3, 26 - side)
        size = draw(rng, *CLUTTER_SIZE)
        colour, alpha = paint_item(clutter_item[y : y + side, x : x + side], size, rng, light=CLUTTER_LIGHT)
        low, high = -size // 3, SIZE - size // 2
        paste(canvas, colour, alpha, draw(rng, low, high), draw(rng, low, high))
    return finish(canvas, *paint_item(item, draw(rng, *TARGET_SIZE), rng, light=256), rng)


def sample_item(items: Pixels, labels: NDArray[np.integer], index: int, rng: Rng) -> Rendered:
    """Compose item `index` with 3 to 5 clutter items drawn from the other classes of `items`.

    items: (n, 28, 28) uint8. labels: (n,). For the shipped splits and for any larger training set.
    """
    rest = np.flatnonzero(labels != labels[index])
    chosen = rest[draws(rng, 0, len(rest), (draw(rng, *CLUTTER),))]
    return compose_item(items[index], items[chosen], rng)


class Fashion(Dataset):
    """Ten kinds of clothing: a Fashion-MNIST item, whole and foremost, on a canvas cluttered with parts of others.

    The source is 28 px; the item is drawn 72 to 112 px wide. The clutter is crops of items of *other* classes of the
    same split, always under the item, so the class is defined by the one complete thing, and its pixels
    (`Example.mask`) are an outside truth for rankings.
    """

    name = "fashion"
    title = "Fashion-MNIST items on cluttered canvases"
    license = "MIT"
    files = ("fashion-items.idx3", "fashion-final.idx3", "fashion-index.json")
    shots_from = "val"
    studied = has_final = captions_seen = True
    classes = CLOTHES
    templates = (
        "a photo of a {}.", "a picture of a {}.", "a {} on a cluttered background.",
        "a {} among other things.", "an image of a {}, a piece of clothing.",
    )  # fmt: skip

    @functools.cached_property
    def sources(self) -> dict[SplitName, tuple[str, list[int]]]:
        """The source of each split's items: its part, "train" or "t10k", and positions in that part."""
        index = json.loads((DATA_DIR / self.files[2]).read_text())["splits"]
        return {name: (entry["part"], entry["source_index"]) for name, entry in index.items()}

    @functools.cached_property
    def items(self) -> dict[SplitName, Pixels]:
        """The raw items of each split, (n, 28, 28) uint8, in the order of its examples."""
        items, final = (
            np.frombuffer((DATA_DIR / file).read_bytes(), np.uint8, offset=16).reshape(-1, 28, 28)
            for file in self.files[:2]
        )
        ends = np.cumsum([len(self.sources[name][1]) for name in SPLITS[:-1]])
        return dict(zip((*SPLITS, FINAL), [*np.split(items, ends), final], strict=True))

    def _split(self, name: SplitName) -> Split:
        items, (part, source) = self.items[name], self.sources[name]
        labels = np.arange(len(items), dtype=np.int64) % len(CLOTHES)

        def render(index: int, variant: int) -> Rendered:
            return sample_item(items, labels, index, seeded(2409, (*SPLITS, FINAL).index(name), index, variant))

        return Split(labels, lambda index: f"fashion/{part}-{source[index]:05d}", render)


SMALLEST = 60  # side of another variant, per cent of the crop's


class Photos(Dataset):
    """Crops of free photographs; only fidelity to the dense model can be measured on them.

    Other variants than 0 are smaller crops of the image, at random places, half of them mirrored. Crops of one
    photograph, or of one series of an author, are one group; a group is in one split of both datasets.
    """

    name = "photos"
    title = "Crops of 61 natural photographs, without labels"
    license = "CC0-1.0, CC-BY-4.0, CC-BY-2.0 or public domain, each photograph in NOTICE"
    files = ("photos.pack", "photos-index.json")
    templates: tuple[str, ...] = ()
    classes = ()
    has_final = True

    @functools.cached_property
    def photos(self) -> list[dict[str, Any]]:
        """The index's entry of each photograph."""
        photos: list[dict[str, Any]] = json.loads((DATA_DIR / self.files[1]).read_bytes())["photos"]
        return photos

    @functools.cached_property
    def _crops(self) -> dict[str, list[tuple[str, bytes]]]:
        """Ids and encoded images of the crops of each split."""
        file = io.BytesIO((DATA_DIR / self.files[0]).read_bytes())
        crops = defaultdict[str, list[tuple[str, bytes]]](list)
        for photo in self.photos:
            for at, box in enumerate(photo["crops"]):
                crops[photo["split"]].append((f"{self.name}/{photo['name']}/{at}", file.read(box[-1])))
        return crops

    @functools.cached_property
    def _groups(self) -> dict[str, str]:
        return {photo["name"]: photo["group"] for photo in self.photos}

    def group_of(self, image_id: str) -> str:
        """Crops of a photograph, and photographs of one series, are one group."""
        return self._groups[image_id.split("/")[1]]

    def _split(self, name: SplitName) -> Split:
        crops = self._crops[name]

        def render(index: int, variant: int) -> Rendered:
            image_id, content = crops[index]
            image = open_image(content).convert("RGB")
            if not variant:
                return image, None
            rng, side = seeded(1712, variant, *image_id.encode()), min(image.size)
            new = draw(rng, side * SMALLEST // 100, side + 1)
            left, top = draw(rng, 0, image.width - new + 1), draw(rng, 0, image.height - new + 1)
            image = image.crop((left, top, left + new, top + new))
            return (image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw(rng, 0, 2) else image), None

        return Split(np.full(len(crops), -1, dtype=np.int64), lambda index: crops[index][0], render)


class Frames(Photos):
    """Whole photographs, as their photographers framed them, cut to the square around the middle."""

    name = "frames"
    title = "107 whole photographs, without labels"
    license = "CC0-1.0, CC-BY-4.0, CC-BY-2.0, MIT, BSD-3-Clause or public domain, each photograph in NOTICE"
    files = ("frames.pack", "frames-index.json")


DATASETS = (EmojiCategory(), EmojiCaptions(), Fashion(), Photos(), Frames())
