"""Small copies of traced images, so that a run can be shown where its data isn't."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from harness.datasets.base import Split
from harness.evaluate import batches
from harness.golden.maps import unprocessed
from harness.golden.store import BrokenShardError
from harness.traces.row import Facts, digest_of, words_of
from harness.traces.sealed import seal, unseal
from zoo.files import write_whole

THUMBNAILS, KIND, VERSION = "thumbnails", "thumbnails", 1
SIDE = 224  # pixels of the longer side, at most
QUALITY = 85
# Of a row's facts those that its small images go by: all rows of a tower share them.
_GIVEN = ("dataset", "dataset_revision", "split", "tag", "weights_sha256")


@dataclass(frozen=True, kw_only=True, eq=False)
class Thumbnails:
    """Images as a tower sees them, cropped and resized, so that its patch grid lies on them.

    Attributes:
        jpeg: image id -> the file's bytes.
    """

    jpeg: dict[str, bytes]

    def __contains__(self, image_id: str) -> bool:
        """Tell whether there is one of an image."""
        return image_id in self.jpeg

    def view(self, image_id: str) -> NDArray[np.floating]:
        """Return an image's pixels, (H, W, 3) in [0, 1].

        Raises:
            KeyError: there is none.
        """
        with Image.open(io.BytesIO(self.jpeg[image_id])) as image:
            return np.asarray(image.convert("RGB"), dtype=np.float32) / 255


def thumbnails_path(run: Path, facts: Facts) -> Path:
    """Return where those of a row belong."""
    digest = digest_of({name: getattr(facts, name) for name in _GIVEN})
    return run / THUMBNAILS / f"{words_of(f'{facts.dataset}-{facts.split}')}-{digest}.parquet"


def read_thumbnails(run: Path | str, facts: Facts) -> Thumbnails:
    """Read the small images of a row's dataset and tower; none if they were left out.

    Args:
        run: the run's folder.
        facts: of one of the rows.

    Raises:
        ValueError: the file is torn, somebody else's, or of a newer version.
    """
    path = thumbnails_path(Path(run), facts)
    try:
        return Thumbnails(jpeg=_read(path))
    except BrokenShardError as error:
        raise ValueError(
            f"{str(path)!r} is broken ({error}): delete it, or make it again by the same "
            "`compare` command with --fresh"
        ) from error


def keep_thumbnails(
    run: Path, facts: Facts, split: Split, preprocess: Any, on_batch: Callable[[int], None]
) -> None:
    """Store small copies of a split's images beside those that are there.

    Args:
        run: the run's folder.
        facts: of one of the rows.
        split: the images; only those without a copy are drawn.
        preprocess: from PIL image to (C, H, W).
        on_batch: called with the number of images done.

    Raises:
        ValueError: what is there can't be read.
    """
    path = thumbnails_path(run, facts)
    try:
        known = _read(path)
    except BrokenShardError:
        known = {}
    lacking = [i for i, name in enumerate(split.image_ids) if name not in known]
    done = 0
    for examples, images in batches(split.subset(lacking), preprocess):
        views = unprocessed(preprocess, images).permute(0, 2, 3, 1).numpy()
        known |= {e.image_id: _jpeg(view) for e, view in zip(examples, views, strict=True)}
        done += len(examples)
        on_batch(done)
    if lacking:
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({"image_id": list(known), "jpeg": list(known.values())})
        write_whole(path, seal(table, KIND, VERSION, dataset=facts.dataset, split=facts.split))


def _read(path: Path) -> dict[str, bytes]:
    if not path.is_file():
        return {}
    try:
        table, _ = unseal(path.read_bytes(), KIND, VERSION)
    except BrokenShardError:
        raise
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error
    names: list[str] = table["image_id"].to_pylist()
    return dict(zip(names, table["jpeg"].to_pylist(), strict=True))


def _jpeg(view: NDArray[np.floating]) -> bytes:
    small = Image.fromarray(np.rint(view * 255).astype(np.uint8))
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=QUALITY, subsampling=0, optimize=True)
    return buffer.getvalue()
