"""Names of models: which library they are of, and what ours say."""

from zoo.core.messages import expected, tower_name
from zoo.loading.sizes import MODELS, SIZES, unknown_model

TIMM, OPEN_CLIP, TRANSFORMERS = "timm:", "open_clip:", "transformers:"  # a bare name means timm's


def dense_names() -> list[str]:
    """Return the names of our dense models."""
    return [name for name, parts in MODELS.items() if parts.method is None]


def split_name(name: str) -> tuple[str, str]:
    """Split the name of a dense model of ours into architecture and weight tag, or the default."""
    name = name.removeprefix(TIMM)
    arch, _, tag = name.partition(".")
    dense = dense_names()
    if arch not in dense:
        raise ValueError(f"model {name!r}: {expected(arch, dense)}")
    tags = SIZES[MODELS[arch].size].tags
    if tag and tag not in tags:
        raise ValueError(f"weight tag {tag!r} of {arch}: {expected(tag, tags)}")
    return arch, tag or next(iter(tags))


def split_method(name: str) -> tuple[str, str | None, float]:
    """Split a model's name into its dense tower's (without ``timm:``), its method (None if dense) and its keep rate.

    Raises:
        ValueError: it looks like a model of ours and is none.
    """
    name = name.removeprefix(TIMM)
    arch, _, tag = name.partition(".")
    known = MODELS.get(arch)
    if known is None and arch.startswith("clip_vit_"):
        raise unknown_model(name)
    if known is None or known.method is None:
        return name, None, 1.0
    return tower_name(known.dense, tag), known.method, known.percent / 100
