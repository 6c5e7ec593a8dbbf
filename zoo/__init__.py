"""Pruned CLIP vision transformers as timm models.

``import zoo`` registers them: ``timm.create_model("clip_vit_b16_patchrank60")``.
"""

from zoo.reducer import METHODS, Reducer, ReducerConfig, register_method
from zoo.tokens import Reduction, Tokens
from zoo.trace import Trace
from zoo.vit import ReducedViT, reduce

from zoo.registry import MODELS  # isort: skip  (registers, so after what methods import)

__all__ = [
    "METHODS",
    "MODELS",
    "ReducedViT",
    "Reducer",
    "ReducerConfig",
    "Reduction",
    "Tokens",
    "Trace",
    "reduce",
    "register_method",
]
