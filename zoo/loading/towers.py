"""Dense image towers by name: ours, any timm ViT, any open_clip ViT."""

import difflib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg
from torch import nn

from zoo.core.host import Host
from zoo.core.learned import CosineHead
from zoo.core.settings import expected, tower_name
from zoo.loading.adopt import load_predictor, reduce
from zoo.loading.clip import Clip, ClipParts, Preprocess, create_clip, image_transform
from zoo.loading.learned_files import ANY_KEEP, PredictorFile, with_predictor
from zoo.loading.sizes import MODELS, SIZES, unknown_model
from zoo.loading.weights import FOLDER, HUB, loading, timm_source
from zoo.towers.vit import TimmHost

TIMM, OPEN_CLIP, TRANSFORMERS = "timm:", "open_clip:", "transformers:"  # a bare name means timm's
KINDS = (
    "a dense name of `patchrank list`, a ViT of timm.list_models() (NAME or timm:NAME), "
    "local-dir:FOLDER, hf-hub:OWNER/NAME, open_clip:ARCH/PRETRAINED, or transformers:FOLDER"
)


class Tower(NamedTuple):
    """A dense image tower, in evaluation mode and float32, and what belongs to it."""

    vit: Host  # what its head gives is compared by golden scores
    preprocess: Preprocess
    name: str  # with its weight tag; free of folders
    clip: ClipParts | None = None  # None without a text tower

    @property
    def arch(self) -> str:
        """The name without its weight tag."""
        return self.name.partition(".")[0]

    @property
    def tag(self) -> str:
        """The weight tag, or an empty string."""
        return self.name.partition(".")[2]

    def require_clip(self) -> ClipParts:
        """Return its parts; ValueError if no text tower belongs to it."""
        if self.clip is None:
            raise ValueError(
                f"{self.name} has no text tower here, so it takes no words; use one of {', '.join(dense_names())}, "
                f"{OPEN_CLIP}ARCH/PRETRAINED, or {TRANSFORMERS}FOLDER with CLIP, SigLIP or SigLIP 2, which bring theirs"
            )
        return self.clip


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
    """Split a model's name into its dense tower's (without ``timm:``), its method (None if dense) and its keep rate."""
    name = name.removeprefix(TIMM)
    arch, _, tag = name.partition(".")
    known = MODELS.get(arch)
    if known is None and arch.startswith("clip_vit_"):
        raise unknown_model(name)
    if known is None or known.method is None:
        return name, None, 1.0
    return tower_name(known.dense, tag), known.method, known.percent / 100


def load_tower(name: str) -> Tower:
    """Load a dense image tower with its weights, and its text tower where there is one, by a name of `KINDS`.

    A classifier's logits are no features, so `drop_classifier` takes a classifier away. Of a model that was saved
    with a reduction method, the dense tower is taken, and of a tuned one the projection; learned visual tokens stay.

    Raises:
        ValueError: unknown name, unreadable weights, or a tower that can't be reduced.
        FileNotFoundError: the weights are neither here nor cached, and the hub is out of reach.
    """
    if not name.isprintable():
        raise ValueError(f"model {name!r} has a character in its name that can't be shown; rename its folder")
    dense, method, keep = split_method(name)
    if method is not None:
        raise ValueError(f"model {name!r} is reduced; give the dense one, {dense}, with method {method}, keep {keep:g}")
    if name.startswith(OPEN_CLIP):
        from zoo.loading.open_clip import load_open_clip

        clip, spec = load_open_clip(name.removeprefix(OPEN_CLIP))
        return Tower(clip.model.visual, clip.preprocess, OPEN_CLIP + spec, clip)
    if name.startswith(TRANSFORMERS):
        if find_spec("transformers") is None:
            raise ValueError(f"{name} needs transformers: pip install 'clip-patchrank[transformers]'")
        from zoo.loading.transformers_clip import load_transformers

        folder = Path(name.removeprefix(TRANSFORMERS))
        visual, preprocess, parts = load_transformers(folder)
        return Tower(visual, preprocess, without_folders(name), parts)
    name = name.removeprefix(TIMM)
    if not name.startswith((FOLDER, HUB)):
        name = _full_name(name)
    if name.partition(".")[0] in MODELS:
        clip = create_clip(name)
        return Tower(clip.model.visual, clip.preprocess, name, clip)
    vit = _dense(create_pretrained(name), name)
    return Tower(vit, image_transform(vit), without_folders(name))


def without_folders(name: str) -> str:
    """Return a dense tower's name with the last part of its path alone."""
    for prefix in (FOLDER, TRANSFORMERS):
        if name.startswith(prefix):
            return prefix + Path(name.removeprefix(prefix)).resolve().name
    return name


def without_text(tower: Tower) -> ClipParts:
    """Return the parts of a tower for images without classes; naming one raises ValueError."""
    model = Clip(tower.vit, nn.Identity(), 0.0).eval()
    return ClipParts(model, tower.preprocess, lambda texts: tower.require_clip().tokenizer(texts))


def drop_classifier(model: TimmHost) -> None:
    """Make a model give features: take its head away unless that projects to a joint space of images and text."""
    if model.num_classes and not _has_projection(model):
        model.reset_classifier(0)


def _has_projection(model: TimmHost) -> bool:
    """Tell whether the head projects to a joint space of images and text, or classifies.

    Our names have a projection of known width. For timm's ``_clip_`` names and Perception Encoder's core the bias
    decides: a projection has none, which timm stores as zeros, and fine-tuned classifiers (``_ft_in1k``) have one.
    """
    attributes = model.__dict__
    arch = attributes.get("_model_args", {}).get("base") or attributes["pretrained_cfg"]["architecture"]
    arch = arch.partition(".")[0]
    if arch in MODELS:
        return bool(model.num_classes == SIZES[MODELS[arch].size].features)
    bias = getattr(model.head, "bias", None)
    return ("_clip_" in arch or "_pe_core_" in arch) and (bias is None or not bias.any())


def _require_folder(name: str) -> None:
    """Refuse a folder without a model that timm saved."""
    folder = Path(name.removeprefix(FOLDER))
    if (folder / "open_clip_config.json").is_file():
        raise ValueError(f"model {name!r} was saved by open_clip: use {OPEN_CLIP}{name}")
    if not (folder / "config.json").is_file():
        way = "timm.models.save_for_hf(model, FOLDER) writes one"
        raise FileNotFoundError(f"model {name!r}: no config.json there; {way}")


def _full_name(name: str) -> str:
    """Check a name of ours or timm's and complete it with its tag."""
    arch, _, tag = name.partition(".")
    if arch in MODELS:
        return ".".join(split_name(name))
    if not timm.is_model(arch):
        import open_clip

        # zoo adds our names to open_clip's.
        theirs = [n for n in open_clip.list_models() if n.partition(".")[0] not in MODELS]
        names = [*dense_names(), *timm.list_models(exclude_filters=list(MODELS)), *theirs]
        near = next(iter(difflib.get_close_matches(arch, names, n=1)), None)
        near = f"{OPEN_CLIP}{near}/PRETRAINED" if near in theirs else near
        hint = f"did you mean {near!r}? " if near else ""
        raise ValueError(f"model {name!r}: {hint}expected {KINDS}")
    tags = _tags(arch)
    if not tags:
        raise ValueError(f"model {name!r}: timm has no weights for it; expected {KINDS}")
    tag = tag or tags[0]
    if tag not in tags:
        raise ValueError(f"weight tag {tag!r} of {arch}: {expected(tag, tags)}")
    quick = arch.replace("_clip_", "_clip_quickgelu_")
    if quick != arch and timm.is_model(quick) and tag in _tags(quick):
        raise ValueError(
            f"model {name!r}: these weights were trained with QuickGELU, which this name leaves out; use {quick}.{tag}"
        )
    return f"{arch}.{tag}"


def _tags(arch: str) -> list[str]:
    """List timm's weight tags of an architecture, the default first."""
    return [name.partition(".")[2] for name, cfg in get_arch_pretrained_cfgs(arch).items() if cfg.has_weights]


def create_pretrained(name: str) -> Any:
    """Create timm's model ``name`` with its weights; raises what ``load_tower`` does."""
    otherwise = f"pass {FOLDER}FOLDER, saved by timm's save_for_hf"
    source = ""
    if name.startswith(FOLDER):
        _require_folder(name)
    elif name.startswith(HUB):
        source = f"{name.removeprefix(HUB)}/config.json"
    elif (cfg := get_pretrained_cfg(name)) is not None and name.partition(".")[0] not in MODELS:
        source = timm_source(cfg)
    with loading(name, otherwise, source):
        return timm.create_model(name, pretrained=True)


def _dense(model: Any, name: str) -> TimmHost:
    """Bring timm's model to a dense tower whose head gives features."""
    if isinstance(getattr(model, "head", None), CosineHead):
        model.num_classes = model.head.classes.in_features
        model.head = model.head.projection
    try:
        if not isinstance(model, TimmHost) or model.reducer is not None:
            model = reduce(model, method=None)
        drop_classifier(model)
        vit: TimmHost = model.float().eval()
        vit.spec()
    except ValueError as error:
        raise ValueError(f"model {name!r}: {error}") from error
    if not vit.global_pool:
        raise ValueError(f"model {name!r}: global_pool='' gives tokens, not one feature per image")
    return vit


def find_tower(name: str, *, random_weights: bool) -> Tower:
    """Load a tower, or build a dense one of ours without weights: time doesn't depend on them, rankings do.

    Raises:
        ValueError: another tower to be built without, and what ``load_tower`` raises.
    """
    if not random_weights:
        return load_tower(name)
    if split_method(name)[0].partition(".")[0] not in MODELS:
        raise ValueError(
            f"--random-weights with model {name!r}: only models of `patchrank list`, "
            "such as clip_vit_b16, can be built without; name one or leave the flag out"
        )
    arch, tag = split_name(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit: Any = timm.create_model(f"{arch}.{tag}", pretrained=False)
    return Tower(vit.eval(), image_transform(vit), f"{arch} (random weights)")


def require_predictor(model: str, method: str, keep: float) -> None:
    """Refuse a method whose predictor is missing before the weights of a tower of ours are fetched.

    Whether another tower has one is only known once it is loaded. Raises ValueError for a keep rate that the method
    can't do, FileNotFoundError for the predictor.
    """
    arch, _, tag = model.removeprefix(TIMM).partition(".")
    known = MODELS.get(arch)
    if known is not None and tag in ("", *(size := SIZES[known.size]).tags):
        tag = tag or next(iter(size.tags))
        with_predictor(known.dense, tag, method, {"keep": keep}, size.vit_args["depth"])


def reduce_tower(
    tower: Tower, method: str, options: Mapping[str, Any], predictor: Path | None = None, **adaptive: Any
) -> tuple[Host, PredictorFile | None]:
    """Reduce a tower by a registered method with its ``options``, ``keep`` among them; the weights are shared.

    ``predictor`` is a file in place of the tower's own; the file that was loaded is returned, too. ``adaptive`` are
    ``budgets`` and ``cost`` of ``zoo.reduce`` in place of a keep rate.

    Raises ValueError for options that the method can't do or another tower's predictor, FileNotFoundError without one.
    """
    dense = tower.vit
    stand_in = {"keep": ANY_KEEP} if adaptive else {}
    completed, file = with_predictor(tower.arch, tower.tag, method, {**options, **stand_in}, dense.depth, predictor)
    completed = {name: value for name, value in completed.items() if name not in stand_in}
    vit = reduce(dense, method=method, **completed, **adaptive)
    if file is not None:
        load_predictor(vit, file)
    return vit.eval(), file
