"""Files that hold both towers of CLIP: where they are, and the text side of one."""

from collections.abc import Mapping
from pathlib import Path

import open_clip
from open_clip.model import CLIP
from open_clip.pretrained import download_pretrained, get_pretrained_cfg
from torch import Tensor

from zoo.missing import UNUSABLE, unusable
from zoo.sizes import SIZES
from zoo.text import OpenClipText
from zoo.weights import cache_folder

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
# The image tower of a model that is made for its text tower; it is thrown away.
_LEAST_VISION = {"layers": 1, "width": 64, "patch_size": 32, "image_size": 32}


def own_weights(size: str, tag: str) -> Path | None:
    """Find the file that the user laid into their cache for these weights, if there is one."""
    stem = cache_folder() / "weights" / f"clip_vit_{size}.{tag}"
    files = (stem.with_name(stem.name + suffix) for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def find_clip(size: str, tag: str) -> Path:
    """Find the file with both towers: the user's own, else open_clip's on the hub.

    Args:
        size: one that has an architecture of open_clip.
        tag: its weight tag.

    Raises:
        FileNotFoundError: neither is here, and the hub is out of reach; names the file wanted and
            the ways to supply it.
    """
    if (own := own_weights(size, tag)) is not None:
        return own
    spec = SIZES[size]
    assert spec.open_clip is not None
    cfg = get_pretrained_cfg(spec.open_clip, spec.tags[tag].open_clip)
    try:
        return Path(download_pretrained(cfg))
    except UNUSABLE as error:
        name = f"clip_vit_{size}.{tag}"
        wanted = f"{cfg['hf_hub']}open_clip_model.safetensors"
        otherwise = f"put a file of these weights at {own_path(name)}"
        raise unusable(f"{name} ({wanted})", error, otherwise) from error


def own_path(name: str) -> str:
    """Say where the user may lay a file of the weights ``name``, which has a tag."""
    return f"{cache_folder() / 'weights' / name}{{{','.join(SUFFIXES)}}}"


def open_clip_text(
    size: str, tag: str, weights: Mapping[str, Tensor] | None = None
) -> tuple[OpenClipText, float, int]:
    """Build the text tower of a size.

    Args:
        size: one that has an architecture of open_clip.
        tag: decides the activation.
        weights: of both towers, as open_clip and OpenAI name them; None for random ones.

    Returns:
        The tower, the log of the logit scale, and the context length in tokens.

    Raises:
        ValueError: weights of another architecture.
    """
    spec = SIZES[size]
    config = open_clip.get_model_config(spec.open_clip)
    text = config["text_cfg"]
    model = CLIP(config["embed_dim"], _LEAST_VISION, text, quick_gelu=spec.tags[tag].quick_gelu)
    scale = model.logit_scale.detach()
    module = OpenClipText(model)
    if weights is not None:
        named = {k.removeprefix("text."): v for k, v in weights.items()}
        named = {k: v for k, v in named.items() if not k.startswith("visual.")}
        try:
            scale = named.pop("logit_scale")
            module.model.load_state_dict(named)
        except KeyError as error:
            raise ValueError(f"{error.args[0]!r} is missing") from error
        except RuntimeError as error:
            raise ValueError(
                f"no text tower of {spec.open_clip}: {first_mismatch(error)}"
            ) from error
    return module.eval(), scale.item(), text["context_length"]


def first_mismatch(error: BaseException) -> str:
    """Return the first thing that torch says of weights that don't fit a module."""
    return next(iter(str(error).splitlines()[1:]), str(error)).strip()


def image_side(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the image tower's part of both towers' weights."""
    return {name: value for name, value in weights.items() if name.startswith("visual.")}


def require_positions(weights: Mapping[str, Tensor], size: str) -> None:
    """Refuse weights of another image size, which timm would resample without a word.

    Raises:
        ValueError: another number of positions, or no image tower of CLIP.
    """
    table = weights.get("visual.positional_embedding")
    if table is None:
        raise ValueError("no image tower: 'visual.positional_embedding' is missing")
    spec = SIZES[size]
    wanted = 1 + (spec.image // spec.vit_args["patch_size"]) ** 2
    if len(table) != wanted:
        raise ValueError(f"trained with {len(table)} tokens, this size has {wanted}")
