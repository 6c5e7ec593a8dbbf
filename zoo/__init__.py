"""Pruned CLIP vision transformers as timm models.

``import zoo`` registers them: ``timm.create_model("clip_vit_b16_patchrank60")``.
"""

from zoo.adopt import add_prompts, reduce
from zoo.clip import Clip, create_clip
from zoo.from_open_clip import from_open_clip
from zoo.golden import GoldenConfig, GoldenEngine, golden_importance
from zoo.rebuild import reduced_vit
from zoo.reducer import METHODS, Reducer, ReducerConfig, register_method
from zoo.tokens import Reduction, Tokens
from zoo.trace import Trace
from zoo.tune_config import TuneConfig
from zoo.tuning import Labelled, tune
from zoo.vit import ReducedViT
from zoo.weight_file import read_weights

from zoo.registry import MODELS  # isort: skip  (registers, so after what methods import)

__all__ = [
    "METHODS",
    "MODELS",
    "Clip",
    "GoldenConfig",
    "GoldenEngine",
    "Labelled",
    "ReducedViT",
    "Reducer",
    "ReducerConfig",
    "Reduction",
    "Tokens",
    "Trace",
    "TuneConfig",
    "add_prompts",
    "create_clip",
    "from_open_clip",
    "golden_importance",
    "read_weights",
    "reduce",
    "reduced_vit",
    "register_method",
    "tune",
]
