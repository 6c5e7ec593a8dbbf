"""Pruned CLIP vision transformers as timm models.

``import zoo`` registers them: ``timm.create_model("clip_vit_b16_patchrank60")``. open_clip knows them, too, whichever
is imported first. Learning, ranking, export and open_clip are imported when they are used.
"""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from zoo.core.recipes import GoldenConfig, RecoveryConfig, TuneConfig
from zoo.core.reducer import METHODS, Reducer, ReducerConfig, register_method
from zoo.core.tokens import Reduction, Tokens, Trace
from zoo.loading.adopt import add_prompts, add_recovery, reduce, reduced_vit
from zoo.loading.learned_files import read_schedule
from zoo.loading.registry import load_methods
from zoo.loading.sizes import MODELS
from zoo.loading.weights import read_weights
from zoo.towers.eva import ReducedBeit, ReducedEva, ReducedNaFlexVit
from zoo.towers.vit import ReducedViT

if TYPE_CHECKING:
    from zoo.deploy.export import export_model, load_exported
    from zoo.deploy.optimized import optimize
    from zoo.learning.recovery import recover, save_recovery
    from zoo.learning.tuning import Labelled, tune
    from zoo.loading.clip import Clip, create_clip
    from zoo.loading.open_clip import from_open_clip
    from zoo.ranking.golden import GoldenEngine, golden_importance
    from zoo.towers.open_clip import ReducedOpenClip

__all__ = [
    "METHODS",
    "MODELS",
    "Clip",
    "GoldenConfig",
    "GoldenEngine",
    "Labelled",
    "RecoveryConfig",
    "ReducedBeit",
    "ReducedEva",
    "ReducedNaFlexVit",
    "ReducedOpenClip",
    "ReducedViT",
    "Reducer",
    "ReducerConfig",
    "Reduction",
    "Tokens",
    "Trace",
    "TuneConfig",
    "add_prompts",
    "add_recovery",
    "create_clip",
    "export_model",
    "from_open_clip",
    "golden_importance",
    "load_exported",
    "optimize",
    "read_schedule",
    "read_weights",
    "recover",
    "reduce",
    "reduced_vit",
    "register_method",
    "register_open_clip",
    "save_recovery",
    "tune",
]

# Names that are imported when they are asked for.
_MODULES = {
    **dict.fromkeys(("export_model", "load_exported"), "zoo.deploy.export"),
    **dict.fromkeys(("Labelled", "tune"), "zoo.learning.tuning"),
    **dict.fromkeys(("recover", "save_recovery"), "zoo.learning.recovery"),
    **dict.fromkeys(("Clip", "create_clip"), "zoo.loading.clip"),
    **dict.fromkeys(("GoldenEngine", "golden_importance"), "zoo.ranking.golden"),
    "ReducedOpenClip": "zoo.towers.open_clip",
    "from_open_clip": "zoo.loading.open_clip",
    "optimize": "zoo.deploy.optimized",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def register_open_clip() -> None:
    """Import open_clip and register our models there, as ``import zoo, open_clip`` does in either order."""
    import_module("zoo.loading.open_clip")


class _OpenClipFinder:
    """Finds open_clip as the other finders do, and has our models registered behind its import."""

    @classmethod
    def find_spec(cls, name: str, *_: Any) -> ModuleSpec | None:
        if name != "open_clip":
            return None
        sys.meta_path.remove(cls)
        try:
            spec = find_spec(name)
        finally:
            sys.meta_path.insert(0, cls)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: Any) -> None:
                run(module)
                sys.meta_path.remove(cls)
                register_open_clip()

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


load_methods()  # last: methods import from this package
if "open_clip" in sys.modules:
    register_open_clip()
else:
    sys.meta_path.insert(0, _OpenClipFinder)
