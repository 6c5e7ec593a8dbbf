"""Show a Fashion-MNIST item whole and foremost on a canvas cluttered with parts of other items.

The source is 28 px; the item is drawn 72 to 112 px wide at a random place of a 196 px canvas. The
clutter is crops of items of *other* classes of the same split, always under the item, so the class
is defined by the one complete thing, and its pixels (`Example.mask`) are an outside truth for
rankings. Train and val sources come from the source's training part, test and final from its test part.
"""

import functools
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from harness.datasets import canvas as paint
from harness.datasets.base import FINAL, SPLITS, Dataset, Rendered, Split, SplitName
from harness.datasets.canvas import Pixels, Rng, draw, draws, seeded

CLASSES = (  # in the source's order of labels
    "t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
    "ankle boot",
)  # fmt: skip
TARGET_SIZE = (72, 113)
CLUTTER = (3, 6)
CLUTTER_SIZE = (20, 37)
CLUTTER_LIGHT = 154  # in 1/256
SHADE = 200  # full negative is this much darker than white
CROP = (10, 15)
SEED = 2409


def silhouette(item: Pixels) -> NDArray[np.bool_]:
    """Find an item's pixels, (28, 28) bool: all that dark pixels joined to the border don't reach.

    Dark parts inside an item (a print, a sole) belong to it.
    """
    parts, _ = ndimage.label(np.pad(item < 8, 1, constant_values=True))
    return np.asarray(parts != parts[0, 0])[1:-1, 1:-1]


def _paint(item: Pixels, size: int, rng: Rng, *, light: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw an item (or a crop of one) at a size: colour (size, size, 3) and alpha (size, size).

    The source stores negatives (dark cloth is bright); the shade turns them back. A slight random
    tint follows, then `light` in 1/256.
    """
    tint = draws(rng, 200, 256, (3,))
    shade = 255 - paint.resize(item, size, size)[..., None] * SHADE // 255
    alpha = paint.resize(silhouette(item).astype(np.int64) * 255, size, size)
    return shade * tint * light // (255 * 256), alpha


def compose(item: Pixels, clutter_items: Pixels, rng: Rng) -> tuple[Image.Image, NDArray[np.bool_]]:
    """Make one canvas: grey background, a dim crop of every clutter item, the whole item on top.

    item: (28, 28) uint8. clutter_items: (n, 28, 28) uint8, of other classes; n may be 0.
    Returns image and item's pixels, see ``finish``.
    """
    canvas = paint.backdrop(rng, low=30, high=110, contrast=16, grain=3)
    canvas[...] = canvas[..., :1]
    for other in clutter_items:
        side = draw(rng, *CROP)
        y, x = draw(rng, 3, 26 - side), draw(rng, 3, 26 - side)
        size = draw(rng, *CLUTTER_SIZE)
        colour, alpha = _paint(other[y : y + side, x : x + side], size, rng, light=CLUTTER_LIGHT)
        low, high = -size // 3, paint.SIZE - size // 2
        paint.paste(canvas, colour, alpha, draw(rng, low, high), draw(rng, low, high))
    size = draw(rng, *TARGET_SIZE)
    return paint.finish(canvas, *_paint(item, size, rng, light=256), rng)


def sample(items: Pixels, labels: NDArray[np.integer], index: int, rng: Rng) -> tuple[Image.Image, NDArray[np.bool_]]:
    """Compose item `index` with 3 to 5 clutter items drawn from the other classes of `items`.

    items: (n, 28, 28) uint8. labels: (n,). For the shipped splits and for any larger training set.
    """
    others = np.flatnonzero(labels != labels[index])
    chosen = others[draws(rng, 0, len(others), (draw(rng, *CLUTTER),))]
    return compose(items[index], items[chosen], rng)


class Fashion(Dataset):
    """Ten kinds of clothing on cluttered canvases, with the item's pixel mask."""

    name = "fashion"
    title = "Fashion-MNIST items on cluttered canvases"
    license = "MIT"
    files = ("fashion-items.idx3", "fashion-final.idx3", "fashion-index.json")
    build_command = "python -m tools.build_data fashion"
    shots_from = "val"
    studied = has_final = captions_seen = True
    classes = CLASSES
    templates = (
        "a photo of a {}.", "a picture of a {}.", "a {} on a cluttered background.",
        "a {} among other things.", "an image of a {}, a piece of clothing.",
    )  # fmt: skip

    @functools.cached_property
    def _index(self) -> Any:
        return json.loads(self.path(self.files[2]).read_text())

    @functools.cached_property
    def _items(self) -> dict[SplitName, Pixels]:
        items, final = (
            np.frombuffer(self.path(file).read_bytes(), np.uint8, offset=16).reshape(-1, 28, 28)
            for file in self.files[:2]
        )
        sizes = [len(self.source_index(name)) for name in SPLITS]
        return dict(zip((*SPLITS, FINAL), [*np.split(items, np.cumsum(sizes)[:-1]), final], strict=True))

    def source_index(self, name: SplitName) -> NDArray[np.int64]:
        """Positions of a split's items in the source's part (train, val: "train", else "t10k"), (n,)."""
        return np.array(self._index["splits"][name]["source_index"], dtype=np.int64)

    def items(self, name: SplitName) -> Pixels:
        """The raw items of a split, (n, 28, 28) uint8, in the order of its examples."""
        return self._items[name]

    def _split(self, name: SplitName) -> Split:
        items, source = self._items[name], self.source_index(name)
        labels = np.arange(len(items), dtype=np.int64) % len(CLASSES)
        part = self._index["splits"][name]["part"]

        def render(index: int, variant: int) -> Rendered:
            return sample(items, labels, index, seeded(SEED, (*SPLITS, FINAL).index(name), index, variant))

        return Split(labels, lambda index: f"fashion/{part}-{source[index]:05d}", render)


DATASETS = (Fashion(),)
