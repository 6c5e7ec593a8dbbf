"""Preprocessing as JSON: what is described is made again, pixel for pixel, and nothing else is made."""

import json
from typing import Any

import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from timm.data import create_transform

from zoo.loading.preprocessing import build_preprocessing, describe_preprocessing

SIZES = (40, (24, 48))
MADE = {
    **{("timm", mode): {"crop_mode": mode, "crop_pct": 0.9} for mode in ("center", "squash", "border")},
    **{
        ("open_clip", mode): {"resize_mode": mode, "mean": (0.1, 0.2, 0.3)}
        for mode in ("shortest", "squash", "longest")
    },
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", MADE, ids="-".join)
def test_what_is_described_is_made_again(kind: tuple[str, str], size: Any):
    image = Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 50)
    preprocess: Any
    if kind[0] == "timm":
        preprocess, image = create_transform(size, interpolation="bicubic", **MADE[kind]), image.convert("RGB")
    else:
        preprocess = image_transform_v2(PreprocessCfg(size=size, **MADE[kind]), is_train=False)
    description = json.loads(json.dumps(describe_preprocessing(preprocess)))
    assert torch.equal(build_preprocessing(description)(image), preprocess(image))
    assert description["interpolation"] == "bicubic"
    assert description["size"] == ([size, size] if isinstance(size, int) else list(size))


@pytest.mark.parametrize("description", [
    {},
    {"steps": [{"step": "torchvision.Lambda", "lambd": "print"}]},
    {"steps": [{"step": "os.system", "command": "true"}]},
    {"steps": [{"step": "torchvision.Resize"}]},
    {"steps": [{"step": "torchvision.Resize", "size": 3, "interpolation": "none"}]},
    {"steps": [{}]},
    {"steps": 1},
])  # fmt: skip
def test_refusals(description: dict[str, Any]):
    with pytest.raises(ValueError, match=r"preprocessing|none"):
        build_preprocessing(description)
