"""Paint deterministic canvases: integer arithmetic and raw PCG64 words only.

numpy keeps a bit generator's raw stream fixed for ever, but not what `Generator` methods make of
it, and image libraries change their filters; so neither is used, and an image is the same on every
machine and with every version.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.datasets.images import open_image

SIZE = 196
DRAWING_SIZE = (96, 161)  # of an emoji, lower bound and first above

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
    """Left neighbours and the right neighbours' weights in 1/256, half-pixel centres."""
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

    Each channel has its own level in [low, high); a coarse grid of 2 to 5 cells a side moves it
    by up to +-contrast, and fine grain by up to +-grain.
    """
    cells = draw(rng, 2, 6)
    level = draws(rng, low, high, (3,))
    coarse = draws(rng, -contrast, contrast + 1, (cells, cells, 1))
    tint = draws(rng, -contrast // 2, contrast // 2 + 1, (cells, cells, 3))
    fine = draws(rng, -grain, grain + 1, (SIZE, SIZE, 1))
    field = level + resize(coarse + tint + 256, SIZE, SIZE) - 256 + fine
    return np.asarray(np.clip(field, 0, 255), dtype=np.uint8)


def paste(canvas: Pixels, colour: NDArray[np.integer], alpha: NDArray[np.integer], top: int, left: int) -> None:
    """Blend colour (h, w, 3) over the canvas in place; alpha (h, w) in 0..255.

    What lies outside the canvas is cut off; top and left may be negative.
    """
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


def finish(
    canvas: Pixels, colour: NDArray[np.integer], alpha: NDArray[np.int64], rng: Rng
) -> tuple[Image.Image, NDArray[np.bool_]]:
    """Blend a whole thing, (size, size, 3), over the canvas at a random place.

    Returns the RGB image and the thing's pixels, (SIZE, SIZE) bool: alpha at least half.
    """
    size = len(alpha)
    top, left = draw(rng, 0, SIZE - size + 1), draw(rng, 0, SIZE - size + 1)
    paste(canvas, colour, alpha, top, left)
    mask = np.zeros((SIZE, SIZE), dtype=np.bool_)
    mask[top : top + size, left : left + size] = alpha >= 128
    return Image.fromarray(canvas), mask


def decode(image: bytes) -> Pixels:
    """Decode an emoji file to (H, W, 4) uint8, alpha not premultiplied."""
    return np.asarray(open_image(image).convert("RGBA"))


def compose(drawing: Pixels, rng: Rng) -> tuple[Image.Image, NDArray[np.bool_]]:
    """Put a drawing (H, W, 4) at a random size and place on a random background, see ``finish``."""
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
