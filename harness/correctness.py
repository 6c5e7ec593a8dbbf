"""Which images were judged and which of them were right, as text."""

import hashlib
import math
import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

SHA256 = re.compile(r"[0-9a-f]{64}")  # what `images_digest` gives


def images_digest(image_ids: Iterable[str]) -> str:
    """Return the SHA-256 of ids in their order, in hex: the same for the same images only.

    Each id is preceded by its length in bytes, so that no two lists read alike.
    """
    digest = hashlib.sha256()
    for image_id in image_ids:
        name = image_id.encode()
        digest.update(b"%d:%s" % (len(name), name))
    return digest.hexdigest()


def pack_correct(correct: ArrayLike) -> str:
    """Return the hex bitmap of (n,) bool, first image in the highest bit of the first byte.

    Raises:
        ValueError: Not (n,) bool.
    """
    flags = np.asarray(correct)
    if flags.ndim != 1 or flags.dtype != np.bool_:
        raise ValueError(f"correctness must be (n,) bool, got {flags.shape} {flags.dtype}")
    return np.packbits(flags).tobytes().hex()


def unpack_correct(bits: str, image_count: int) -> NDArray[np.bool_]:
    """Return (image_count,) bool from a hex bitmap.

    Raises:
        ValueError: The bitmap is no hex, or not of that many images.
    """
    packed = np.frombuffer(bytes.fromhex(bits), dtype=np.uint8)
    flags = np.unpackbits(packed).astype(np.bool_)
    if len(packed) != math.ceil(image_count / 8) or flags[image_count:].any():
        raise ValueError(f"correct_bits of {len(packed)} bytes is not of {image_count} images")
    return flags[:image_count]


def by_image(
    correct: NDArray[np.bool_], images_sha256: str | None, image_ids: Sequence[str]
) -> dict[str, bool]:
    """Return whether each image was right, by its id.

    Args:
        correct: (n,) of a record.
        images_sha256: of the same record.
        image_ids: n ids, such as a split gives.

    Raises:
        ValueError: the record is of other images, or of a version that doesn't know its images.
    """
    given = images_digest(image_ids)
    if given != images_sha256:
        known = "doesn't say which images it is of" if images_sha256 is None else "is of others"
        raise ValueError(
            f"these {len(image_ids)} images have the hash {given}, and the record, of "
            f"{len(correct)}, {known}: expected {images_sha256!r}; give the ids of its dataset's "
            "split, revision and limit, in order"
        )
    return dict(zip(image_ids, map(bool, correct), strict=True))
