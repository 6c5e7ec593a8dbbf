"""open_clip models by architecture and weights, with their image tower in our class."""

import difflib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import open_clip
from open_clip.pretrained import (
    download_pretrained,
    get_pretrained_cfg,
    list_pretrained_tags_by_model,
)
from safetensors.torch import save_file

from zoo.clip import Clip, ClipParts
from zoo.from_open_clip import from_open_clip
from zoo.missing import UNUSABLE, unusable
from zoo.reducer import expected
from zoo.text import OpenClipText
from zoo.weight_file import read_weights

FOLDER, HUB = "local-dir:", "hf-hub:"


def load_open_clip(spec: str) -> tuple[ClipParts, str]:
    """Load an open_clip model and convert its image tower.

    Files are what ``read_weights`` reads, tensors and nothing else. A tag gets the activation that
    it was trained with (OpenAI, MetaCLIP, DFN: QuickGELU); a file gets the architecture's
    activation and preprocessing, so that QuickGELU has to be asked for:
    ``ViT-B-16-quickgelu/FILE``.

    Args:
        spec: ``ARCH/TAG``, ``ARCH/FILE``, or ``local-dir:FOLDER`` and ``hf-hub:OWNER/NAME`` as
            open_clip's ``push_to_hf_hub`` writes them.

    Returns:
        Model, preprocessing and tokenizer; and the spec without folders.

    Raises:
        ValueError: unknown architecture or tag, unreadable weights, or what ``from_open_clip``
            refuses.
        FileNotFoundError: the weights are neither here nor cached, and the hub is out of reach.
    """
    arch, pretrained, quick = _parts(spec)
    try:
        # Here rather than below, where open_clip logs a failure as well as raising it.
        download_pretrained(get_pretrained_cfg(arch, pretrained or ""))
        with _readable(pretrained) as told:
            model, preprocess = open_clip.create_model_from_pretrained(
                arch, told, force_quick_gelu=quick
            )
        tokenizer = open_clip.get_tokenizer(arch)
    except UNUSABLE as error:
        raise unusable(spec, error, "give a file: open_clip:ARCH/FILE") from error
    try:
        visual = from_open_clip(model).eval()
    except ValueError as error:
        raise ValueError(f"open_clip model {spec!r}: {error}") from error
    logit_scale = model.logit_scale.item()
    clip = Clip(visual, OpenClipText(model), logit_scale).eval()
    name = spec
    if spec.startswith(FOLDER):
        name = FOLDER + Path(spec.removeprefix(FOLDER)).resolve().name
    elif pretrained is not None:
        name = f"{arch}/{Path(pretrained).name}"
    return ClipParts(clip, preprocess, tokenizer), name


@contextmanager
def _readable(pretrained: str | None) -> Iterator[str | None]:
    """Give a file to open_clip as safetensors, whatever it was; tags stay as they are."""
    if pretrained is None or not Path(pretrained).is_file():
        yield pretrained
        return
    weights = {name: value.contiguous() for name, value in read_weights(pretrained).items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights.safetensors")
        save_file(weights, path)
        yield str(path)


def _parts(spec: str) -> tuple[str, str | None, bool]:
    """Return open_clip's ``model_name`` and ``pretrained``, and whether to force QuickGELU."""
    if spec.startswith(HUB):
        return spec, None, False
    if spec.startswith(FOLDER):
        if not (Path(spec.removeprefix(FOLDER)) / "open_clip_config.json").is_file():
            raise FileNotFoundError(
                f"open_clip model {spec!r}: no open_clip_config.json there; open_clip's "
                "push_to_hf_hub.save_for_hf writes one"
            )
        return spec, None, False
    arch, _, pretrained = spec.partition("/")
    config = open_clip.get_model_config(arch) if arch in open_clip.list_models() else None
    if config is None:
        near = difflib.get_close_matches(arch, open_clip.list_models(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"open_clip model {arch!r}: {hint}expected one of open_clip.list_models()")
    tags = list_pretrained_tags_by_model(arch)
    tag = pretrained.lower().replace("-", "_")  # as open_clip itself reads tags
    if tag in tags:
        quick = bool(get_pretrained_cfg(arch, tag).get("quick_gelu"))
        if config.get("quick_gelu") and not quick:
            raise ValueError(
                f"open_clip model {arch!r} computes with QuickGELU, and its weights {tag!r} were "
                f"trained without; use {arch.removesuffix('-quickgelu')}/{tag}"
            )
        return arch, tag, quick
    if Path(pretrained).is_file():
        return arch, pretrained, False
    known = expected(pretrained, tags) if tags else "there are no tags"
    raise ValueError(f"weights {pretrained!r} of open_clip model {arch!r}: {known}; or a file")
