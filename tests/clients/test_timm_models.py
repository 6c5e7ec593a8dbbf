"""timm's tests of models, unmodified, over our names; docs/internals.md says what they find."""

import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import timm

import zoo

# Without --all-names: the dense tower, and one method of each way to shorten a sequence.
FEW = {"clip_vit_s14", *(f"clip_vit_s14_{method}50" for method in ("patchrank", "tome", "evitfuse"))}
ONCE = {f"clip_vit_s14_{method}50" for method in zoo.METHODS} | {"clip_vit_s14", "clip_vit_b16"}
SMALL = {"img_size": 64, "depth": 4}
REDUCED = {**SMALL, "base": "deit_tiny_patch16_224", "method": "evit", "reduction": {"keep": 0.5}}
PATCHRANK = "clip_vit_*_patchrank*"
NO_GRADIENT = (AssertionError, r"reducer\.predictor\.")


class Run(NamedTuple):
    """Functions of timm's over names that match a pattern: they pass, or raise an error of a kind with a message."""

    functions: str
    names: str = "clip_vit_*"
    but: str = ""
    error: tuple[type[Exception], str] | None = None
    quick: set[str] = FEW
    also: dict[str, Any] | None = None  # arguments that timm gives along with a name


RUNS = (
    Run("test_model_forward test_model_default_cfgs_non_std", quick=ONCE),
    # timm takes names that don't begin with `vit_` for CNNs and reads `pool_size`.
    Run("test_model_default_cfgs", error=(TypeError, "'NoneType' object is not subscriptable")),
    Run("test_model_forward_features test_model_forward_intermediates_features test_model_forward_intermediates"),
    Run("test_model_backward test_prune_intermediate_layers_params_used", but=PATCHRANK),
    # A hard choice of patches has no gradient, so none reaches the predictor; the rest gets one.
    Run("test_model_backward", names=PATCHRANK, error=NO_GRADIENT),
    Run("test_prune_intermediate_layers_params_used", names=PATCHRANK, error=(AssertionError, "^$")),
    # Slow, and left out of timm's own CI.
    Run("test_prune_intermediate_layers_contract", but=PATCHRANK, quick={"clip_vit_s14_evitfuse50"}),
    Run("test_prune_intermediate_layers_contract", names=PATCHRANK, error=NO_GRADIENT),
    Run("test_model_load_pretrained test_model_features_pretrained", names="clip_vit_s14*"),
    Run("test_features_only_feature_cls_class test_catavgmax_unsupported"),
    Run("test_head_hidden_size", also={"model_kwargs": SMALL}),
    Run("test_model_init_weights_after_to_empty", also={"kwargs": SMALL}),
    Run("test_head_hidden_size", names="reduced_vit", also={"model_kwargs": REDUCED}, quick={"reduced_vit"}),
    Run("test_model_init_weights_after_to_empty", names="reduced_vit", also={"kwargs": REDUCED}, quick={"reduced_vit"}),
)


def cases(quick: bool) -> Iterator[Any]:
    for run in RUNS:
        fails = pytest.mark.xfail(strict=True, raises=run.error[0]) if run.error else ()
        for function in run.functions.split():
            for name in timm.list_models(run.names, exclude_filters=run.but):
                if not quick or name in run.quick:
                    yield pytest.param(run, function, name, marks=fails, id=f"{function}-{name}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        quick = not metafunc.config.getoption("--all-names")
        metafunc.parametrize(("run", "function", "name"), list(cases(quick)))


def test_timm_finds(run: Run, function: str, name: str, timm_tests: ModuleType):
    test = getattr(timm_tests, function)
    given = {m.args[0]: m.args[1][0] for m in test.pytestmark if m.name == "parametrize"}
    given["cfg_device"] = "meta"  # a fixture of timm's
    wanted = {"batch_size", "cfg_device"} & inspect.signature(test).parameters.keys()
    try:
        test(model_name=name, **{k: given[k] for k in wanted}, **(run.also or {}))
    except pytest.skip.Exception as skipped:
        pytest.fail(f"timm would skip {name}: {skipped}")
    except Exception as error:
        if run.error and not re.search(run.error[1], str(error)):
            pytest.fail(f"expected to fail by {run.error[1]!r}, not by {error!r}")
        raise
