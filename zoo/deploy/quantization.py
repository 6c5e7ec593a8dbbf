"""Int8 models: recipes for NNCF, and which products of a graph take them.

A product of two activations stays in float: attention's, and what chooses tokens, such as matrices of cosines. Sorting
isn't quantised at all, so that only weights of products are left to name; a method's own, such as a predictor's, stay
in float, too.
"""

import logging
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zoo.core.digests import digest
from zoo.core.host import Host
from zoo.core.settings import expected

INT8 = "int8"
LEAST_PICTURES = 50  # to calibrate with
BATCH = 8  # pictures at a time, whose ranges are seen together
ENDS, DOWN = "ends", "down"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model becomes int8.

    Attributes:
        activations: int8, too, in ranges that calibration pictures show; else the weights alone, and activations in
            groups as they come.
        smooth: SmoothQuant's alpha (arXiv 2211.10438), which moves outliers from activations into weights.
        spare: parts whose weights stay in float: ``ends``, the first and last block; ``down``, the second layer of
            each MLP, whose inputs have the largest outliers.
    """

    activations: bool = True
    smooth: float = 0.5
    spare: tuple[str, ...] = ()


# The fastest first.
RECIPES = {
    "static": Recipe(),
    "static-smooth95": Recipe(smooth=0.95),
    "static-ends": Recipe(spare=(ENDS,)),
    "static-down": Recipe(spare=(DOWN,)),
    "weights": Recipe(activations=False),
}


class GraphProduct(NamedTuple):
    """A matrix product or convolution of a graph, by its name there, with the constants that it takes, if any."""

    name: str
    constants: Sequence[NDArray[Any]]


def is_made_for_int8() -> bool:
    """Tell whether the CPU sums products of int8 exactly in one instruction: on x86 by VNNI.

    By others the sums of pairs may overflow, and int8 is hardly faster than float32.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.cpu._is_vnni_supported() or bool(known.get("avx_vnni"))


def find_recipe(name: str) -> Recipe:
    """Return a recipe; raise ValueError for an unknown name."""
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r}: {expected(name, RECIPES)}")
    return RECIPES[name]


def require_pictures(calibration: Tensor) -> None:
    """Raise ValueError for too few different pictures (n, 3, H, W) to calibrate with."""
    different = len({_digest(picture.numpy()) for picture in calibration})
    if different < LEAST_PICTURES:
        raise ValueError(
            f"{different} different pictures to calibrate with, of {len(calibration)}: int8 needs {LEAST_PICTURES}; "
            "give more"
        )


def require_apart(calibration: Tensor, judged: Tensor) -> None:
    """Raise ValueError if a picture to calibrate with, (n, 3, H, W), is one that judges the result."""
    both = {_digest(picture.numpy()) for picture in calibration} & {_digest(picture.numpy()) for picture in judged}
    if both:
        raise ValueError(
            f"{len(both)} of {len(calibration)} pictures to calibrate with are among the {len(judged)} that the model "
            "is checked on: give other pictures"
        )


def calibration_digest(calibration: Tensor) -> str:
    """Return 16 hex digits over pictures (n, 3, H, W) as the model takes them."""
    return _digest(calibration.numpy())


def calibration_batches(calibration: Tensor) -> list[NDArray[np.float32]]:
    """Cut pictures (n, 3, H, W) into whole batches.

    NNCF averages the extremes of its samples. Of single pictures the mean cuts off what is rare: the error is half as
    large again as by batches, which do as well as the extremes of all pictures.
    """
    return [batch.numpy() for batch in calibration.split(BATCH) if len(batch) == BATCH]


def products_in_float(products: Iterable[GraphProduct], model: nn.Module, recipe: Recipe) -> list[str]:
    """Return the names of the products that a recipe leaves in float."""
    names = _names_of_weights(model)
    spared = _spared_weights(model, recipe)
    kept = []
    for product in products:
        weights = {names.get(_digest(constant), "") for constant in product.constants}
        if not product.constants or any(name in spared or "reducer." in name for name in weights):
            kept.append(product.name)
    return kept


def _names_of_weights(model: nn.Module) -> dict[str, str]:
    """Return the name of each weight by the digest of its values, as they are and transposed."""
    names = {}
    for name, weight in model.state_dict().items():
        values = weight.detach().float().numpy()
        for each in (values, values.T) if values.ndim == 2 else (values,):
            names[_digest(each)] = name
    return names


def _spared_weights(model: nn.Module, recipe: Recipe) -> set[str]:
    """Return the names of the weights in the parts of blocks that a recipe spares."""
    host = next((module for module in model.modules() if isinstance(module, Host)), None)
    if host is None or not recipe.spare:
        return set()
    places = {id(weight): name for name, weight in model.named_parameters()}
    spared: set[str] = set()
    for index, block in enumerate(host.block_modules):
        for weight in block.parameters():
            at_end = ENDS in recipe.spare and index in (0, host.depth - 1)
            down = DOWN in recipe.spare and weight.ndim == 2 and weight.shape[1] > weight.shape[0]
            if (at_end or down) and id(weight) in places:
                spared.add(places[id(weight)])
    return spared


def _digest(values: NDArray[Any]) -> str:
    content = np.ascontiguousarray(values, dtype=np.float32)
    return digest(content.shape, content.tobytes())


def quantize(graph: Any, products: Iterable[GraphProduct], model: nn.Module, recipe: Recipe, batches: list[Any]) -> Any:
    """Return a graph of OpenVINO or ONNX, which NNCF takes, in int8; ``batches`` are inputs of the graph."""
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, AdvancedSmoothQuantParameters

    nncf.set_log_level(logging.ERROR)
    spared = nncf.IgnoredScope(names=products_in_float(products, model, recipe))
    if not recipe.activations:
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=spared)
    smooth = AdvancedSmoothQuantParameters(matmul=recipe.smooth)
    return nncf.quantize(
        graph,
        nncf.Dataset(batches),
        subset_size=len(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=spared,
        advanced_parameters=AdvancedQuantizationParameters(smooth_quant_alphas=smooth),
    )
