"""Pictures on their way to a tower: which formats are read, upright RGB, and preprocessing as JSON and back."""

import importlib
import inspect
import json
from typing import Any

import numpy as np
from PIL import Image, ImageOps

# What images are read, by PIL's names, and their extensions. To read one neither starts a program, as EPS does, nor
# opens another file.
FORMATS = {
    "AVIF": "avif", "BMP": "bmp", "GIF": "gif", "JPEG": "jfif jpeg jpg", "JPEG2000": "jp2", "PNG": "png",
    "PPM": "pbm pgm pnm ppm", "TIFF": "tif tiff", "WEBP": "webp",
}  # fmt: skip
EXTENSIONS = frozenset(f".{name}" for names in FORMATS.values() for name in names.split())
_MODULES = {"torchvision": "torchvision.transforms", "timm": "timm.data.transforms", "open_clip": "open_clip.transform"}
_STEPS = (
    *("Resize", "ResizeKeepRatio", "CenterCrop", "CenterCropOrPad", "TrimBorder"),
    *("MaybeConvertMode", "ToTensor", "MaybeToTensor", "Normalize"),
)
_SUMMARY = ("interpolation", "size", "mean", "std")  # of all steps, for those who preprocess by other means


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


def describe_preprocessing(preprocess: Any) -> dict[str, Any]:
    """Return what is done to an image as JSON values, which ``build_preprocessing`` takes.

    They are ``steps``, each with its settings, and the settings of all steps together; or the settings of the
    ``processor`` of transformers.
    """
    if hasattr(preprocess, "processor"):
        return {"processor": json.loads(preprocess.processor.to_json_string()), "square": preprocess.square}
    steps = []
    for step in preprocess.transforms:
        kind = type(step)
        values = {name: getattr(step, name) for name in inspect.signature(kind).parameters if hasattr(step, name)}
        steps.append({"step": f"{kind.__module__.partition('.')[0]}.{kind.__name__}"} | _plain(values))
    summary = {name: step[name] for step in steps for name in _SUMMARY if step.get(name) is not None}
    return {"steps": steps} | summary  # the size is the last step's, after resizing and cropping


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    values = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in values.items()}
    plain: dict[str, Any] = json.loads(json.dumps(values, default=lambda value: getattr(value, "value", str(value))))
    return plain


def build_preprocessing(description: dict[str, Any]) -> Any:
    """Return what maps a PIL image to (C, H, W) as ``describe_preprocessing`` describes it; no other class is made.

    Raises:
        ValueError: an unknown step, settings that a step doesn't take, or transformers is missing.
    """
    if "processor" in description:
        from zoo.loading.transformers_clip import Preprocess

        return Preprocess.of(description["processor"], description.get("square"))
    from torchvision.transforms import Compose

    try:
        return Compose([_build_step(**step) for step in description["steps"]])
    except (KeyError, TypeError) as error:
        raise ValueError(f"no preprocessing: {error!r}") from error


def _build_step(step: str, **values: Any) -> Any:
    import torch
    from torchvision.transforms import InterpolationMode

    package, _, name = step.partition(".")
    if package not in _MODULES or name not in _STEPS:
        raise ValueError(f"step {step!r} of a preprocessing is unknown here")
    if "interpolation" in values and package != "timm":
        values["interpolation"] = InterpolationMode(values["interpolation"])
    for statistic in {"mean", "std"} & values.keys():
        values[statistic] = torch.tensor(values[statistic])
    return getattr(importlib.import_module(_MODULES[package]), name)(**values)
