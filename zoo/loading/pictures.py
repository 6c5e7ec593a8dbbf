"""Pictures as files hold them: which formats are read, and upright RGB."""

import numpy as np
from PIL import Image, ImageOps

# What images are read, by PIL's names, and their extensions. To read one neither starts a program, as EPS does, nor
# opens another file.
FORMATS = {
    "AVIF": "avif", "BMP": "bmp", "GIF": "gif", "JPEG": "jfif jpeg jpg", "JPEG2000": "jp2", "PNG": "png",
    "PPM": "pbm pgm pnm ppm", "TIFF": "tif tiff", "WEBP": "webp",
}  # fmt: skip
EXTENSIONS = frozenset(f".{name}" for names in FORMATS.values() for name in names.split())


def upright_rgb(image: Image.Image, behind: str | None = None) -> Image.Image:
    """Turn an image, in place, as its EXIF says, and return it as 8-bit RGB, on the colour ``behind`` if that is given.

    16-bit greys are scaled, where PIL's own conversion clips them at 255.
    """
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # PIL raises whatever it stumbles over; damaged EXIF turns nothing
        pass
    if image.mode == "F":
        raise ValueError("mode F: the range of floating-point pixels is unknown")
    if image.mode.startswith("I"):
        grey = np.asarray(image).clip(0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:
        image = image.convert("RGBA")  # else PIL warns of palettes with transparency
    if behind is not None and image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, behind), image.convert("RGBA"))
    return image.convert("RGB")
