"""Show natural photographs, whole and in crops, without labels.

Crops of one photograph, or of one series of an author, are one group; a group is in one split of both datasets
(`tools.build_data`, which also says whose each photograph is). Other variants than 0
are smaller crops of the image, at random places, half of them mirrored.
"""

import functools
import io
import json
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from harness.datasets.base import Dataset, Rendered, Split, SplitName
from harness.datasets.canvas import draw, seeded
from harness.datasets.images import open_image

SEED = 1712
SMALLEST = 60  # side of another variant, per cent of the crop's


class Crop(NamedTuple):
    """One crop: its id, and the encoded image."""

    image_id: str
    image: bytes


class Photos(Dataset):
    """Crops of free photographs; only fidelity to the dense model can be measured on them."""

    name = "photos"
    title = "Crops of 61 natural photographs, without labels"
    license = "CC0-1.0, CC-BY-4.0, CC-BY-2.0 or public domain, each photograph in NOTICE"
    files = ("photos.pack", "photos-index.json")
    build_command = "python -m tools.build_data photos"
    templates: tuple[str, ...] = ()
    classes = ()
    has_final = True

    @functools.cached_property
    def photos(self) -> list[dict[str, Any]]:
        """What the index says of each photograph."""
        photos: list[dict[str, Any]] = json.loads(self.path(self.files[1]).read_bytes())["photos"]
        return photos

    @functools.cached_property
    def _crops(self) -> dict[str, list[Crop]]:
        """Map splits to their crops."""
        file = io.BytesIO(self.path(self.files[0]).read_bytes())
        crops: dict[str, list[Crop]] = {}
        for photo in self.photos:
            for number, (*_, size) in enumerate(photo["crops"]):
                image_id = f"{self.name}/{photo['name']}/{number}"
                crops.setdefault(photo["split"], []).append(Crop(image_id, file.read(size)))
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
            image_id, image = crops[index]
            return compose(image, variant, *image_id.encode()), None

        return Split(np.full(len(crops), -1, dtype=np.int64), lambda index: crops[index].image_id, render)


def compose(content: bytes, variant: int, *key: int) -> Image.Image:
    """Decode a crop; for another variant than 0, cut a square out of it and mirror every second."""
    image = open_image(content).convert("RGB")
    if not variant:
        return image
    rng, side = seeded(SEED, variant, *key), min(image.size)
    new = draw(rng, side * SMALLEST // 100, side + 1)
    left, top = draw(rng, 0, image.width - new + 1), draw(rng, 0, image.height - new + 1)
    image = image.crop((left, top, left + new, top + new))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw(rng, 0, 2) else image


class Frames(Photos):
    """Whole photographs, as their photographers framed them, cut to the square around the middle."""

    name = "frames"
    title = "107 whole photographs, without labels"
    license = "CC0-1.0, CC-BY-4.0, CC-BY-2.0, MIT, BSD-3-Clause or public domain, each photograph in NOTICE"
    files = ("frames.pack", "frames-index.json")


DATASETS = (Frames(), Photos())
