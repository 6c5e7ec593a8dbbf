"""Pruned CLIP vision transformers as timm models.

``import zoo`` registers them: ``timm.create_model("clip_vit_b16_patchrank60")``.
"""

from zoo.core.recipes import GoldenConfig, RecoveryConfig, TuneConfig
from zoo.core.reducer import METHODS, Reducer, ReducerConfig, register_method
from zoo.core.tokens import Reduction, Tokens, Trace
from zoo.deploy.export import export_model, load_exported
from zoo.deploy.optimized import optimize
from zoo.learning.recovery import recover
from zoo.learning.tuning import Labelled, tune
from zoo.loading.adopt import add_prompts, reduce, reduced_vit
from zoo.loading.clip import Clip, create_clip
from zoo.loading.learned_files import read_schedule
from zoo.loading.open_clip import from_open_clip, offer_models
from zoo.loading.recovery_file import add_recovery, save_recovery
from zoo.loading.registry import load_methods
from zoo.loading.sizes import MODELS
from zoo.loading.weights import read_weights
from zoo.ranking.golden import GoldenEngine, golden_importance
from zoo.towers.eva import ReducedBeit, ReducedEva, ReducedNaFlexVit
from zoo.towers.open_clip import ReducedOpenClip
from zoo.towers.vit import ReducedViT

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
    "save_recovery",
    "tune",
]

offer_models()
load_methods()  # last: methods import from this package
