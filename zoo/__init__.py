"""Pruned CLIP vision transformers as timm models.

``import zoo`` registers them: ``timm.create_model("clip_vit_b16_patchrank60")``.
"""

from zoo.adopt import add_prompts, reduce, reduced_vit
from zoo.beit import ReducedBeit
from zoo.clip import Clip, create_clip
from zoo.eva import ReducedEva
from zoo.export import export_model, load_exported
from zoo.golden import GoldenConfig, GoldenEngine, golden_importance
from zoo.naflex import ReducedNaFlexVit
from zoo.open_clip import from_open_clip, offer_models
from zoo.open_clip_tower import ReducedOpenClip
from zoo.optimized import optimize
from zoo.prompt_learner import TuneConfig
from zoo.recovery import RecoveryConfig, add_recovery, recover, save_recovery
from zoo.reducer import METHODS, Reducer, ReducerConfig, register_method
from zoo.registry import load_methods
from zoo.schedule import read_schedule
from zoo.sizes import MODELS
from zoo.tokens import Reduction, Tokens, Trace
from zoo.tuning import Labelled, tune
from zoo.vit import ReducedViT
from zoo.weight_file import read_weights

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
