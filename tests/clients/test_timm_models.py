"""timm's tests of models, unmodified, over our names; docs/timm_tests.md is the table below."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm

import zoo

# torch warns of an annotation in its own GraphModule, which timm's tests script.
pytestmark = pytest.mark.filterwarnings("ignore:The TorchScript type system:UserWarning")
DOCS = Path(__file__).parents[2] / "docs" / "timm_tests.md"
PASSES, FAILS, NOT_RUN = "passes", "expected to fail", "not applicable"
NO_GRADIENT = (AssertionError, r"reducer\.predictor\.")
HARD = "a hard choice of patches has no gradient, so none reaches the predictor; the rest gets one"
CNN = "timm takes names that don't begin with `vit_` for CNNs and reads `pool_size`; see `_non_std`"
TIMMS = "timm runs it over models that it names itself, for what only those have"
SMALL = {"img_size": 64, "depth": 4}
REDUCED = {**SMALL, "base": "deit_tiny_patch16_224", "method": "evit", "reduction": {"keep": 0.5}}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What some of timm's functions find for some of our names.

    Attributes:
        functions: names of timm's functions, separated by spaces.
        names: which of ours, as timm's ``list_models`` takes them.
        but: which of these not.
        result: passes, expected to fail or not applicable.
        reason: why it doesn't pass.
        quick: what is run of the names without ``--all-names``: ``sizes`` for each method once
            at every size, and every keep rate at s14; ``s14`` for every keep rate there; ``once``
            for each method once at s14; or one name.
        also: arguments of the functions that timm gives along with a name.
        error: kind and message of an expected failure.
    """

    functions: str
    names: str = "clip_vit_*"
    but: str = ""
    result: str = PASSES
    reason: str = ""
    quick: str = "once"
    also: dict[str, Any] = field(default_factory=dict)
    error: tuple[type[Exception], str] | None = None

    def matching(self, quick: bool) -> list[str]:
        """Return the names to run."""
        names = timm.list_models(self.names, exclude_filters=self.but)
        return [n for n in names if not quick or n not in zoo.MODELS or self._is_quick(n)]

    def _is_quick(self, name: str) -> bool:
        which = zoo.MODELS[name]
        if self.quick in zoo.MODELS:
            return name == self.quick
        small = which.size == "s14"
        once = which.method is None or which.percent == 50
        return (once and self.quick == "sizes") or (small and (once or self.quick != "once"))


CONTRACT = "test_prune_intermediate_layers_contract"
INIT = "test_model_init_weights_after_to_empty"
PATCHRANK = "clip_vit_*_patchrank*"
TABLE = (
    Row(functions="test_model_forward", quick="sizes"),
    Row(functions="test_model_default_cfgs_non_std", quick="sizes"),
    Row(
        functions="test_model_default_cfgs",
        quick="sizes",
        result=FAILS,
        reason=CNN,
        error=(TypeError, "'NoneType' object is not subscriptable"),
    ),
    Row(functions="test_model_backward", but=PATCHRANK, quick="s14"),
    Row(functions="test_model_backward", names=PATCHRANK, quick="s14", result=FAILS, reason=HARD, error=NO_GRADIENT),
    Row(
        functions="test_model_forward_features test_model_forward_intermediates_features "
        "test_model_forward_intermediates",
        quick="s14",
    ),
    Row(functions="test_model_forward_fx test_model_forward_torchscript test_model_forward_fx_torchscript"),
    Row(functions="test_model_backward_fx test_prune_intermediate_layers_params_used", but=PATCHRANK),
    # Slow, and left out of timm's own CI.
    Row(functions=CONTRACT, but=PATCHRANK, quick="clip_vit_s14_evit50"),
    Row(
        functions="test_model_backward_fx test_prune_intermediate_layers_contract",
        names=PATCHRANK,
        result=FAILS,
        reason=HARD,
        error=NO_GRADIENT,
    ),
    Row(
        functions="test_prune_intermediate_layers_params_used",
        names=PATCHRANK,
        result=FAILS,
        reason=HARD,
        error=(AssertionError, "^$"),  # timm says no more there
    ),
    Row(functions="test_model_load_pretrained test_model_features_pretrained", names="clip_vit_s14*", quick="s14"),
    Row(
        functions="test_model_load_pretrained test_model_features_pretrained",
        names="clip_vit_[bl]*",
        result=NOT_RUN,
        reason="downloads weights from the hub; those of s14 come with the package",
    ),
    Row(functions="test_features_only_feature_cls_class test_catavgmax_unsupported"),
    Row(functions="test_head_hidden_size", also={"model_kwargs": SMALL}),
    Row(functions=INIT, also={"kwargs": SMALL}),
    Row(functions="test_head_hidden_size", names="reduced_vit", also={"model_kwargs": REDUCED}),
    Row(functions=INIT, names="reduced_vit", also={"kwargs": REDUCED}),
    Row(
        functions="every other",
        names="reduced_vit",
        result=NOT_RUN,
        reason="needs `base=NAME`, which timm's function doesn't give",
    ),
    Row(functions="test_model_inference", result=NOT_RUN, reason="compares with files of timm's own models on the hub"),
    Row(
        functions="""
test_reset_classifier_keeps_pool test_features_only_grad_checkpointing_backward
test_pruned_efficientnet_in_chans test_model_features_space2depth_reduction
test_model_features_output_stride test_pruned_features_torchscript
test_feature_getter_stage_ends_torchscript test_prune_extra_blocks_stem_width
test_prune_class_token_avg_pool test_forward_after_prune_intermediate_layers
test_prune_intermediate_layers_last_feature test_prune_to_stem_feature
test_forward_intermediates_stop_early_final_norm test_resnetv2_stem_feature_odd_size
test_model_forward_torchscript_with_features_fx test_radio_checkpoint_filter
test_vit_classifier_encoder_hooks test_vit_classifier_checkpoint
test_vit_classifier_pruned_features test_efficientvim_branch_features
test_mobile_model_fusion_features test_swin_family_reinit_after_to_empty
test_swin_family_set_input_size test_swin_family_set_input_size_stage_windows
test_swin_family_set_input_size_window_ratios
test_swin_family_set_input_size_invalid_and_min_windows test_swin_family_resize_metadata
test_swin_family_resize_odd_stage_sizes test_swin_family_set_input_size_after_pruning
test_swin_family_script_after_resize test_swin_family_compile_resize_guards
test_headless_checkpoint_reload test_relpos_non_square_checkpoint_reload
test_relpos_non_square_set_input_size test_relpos_family_set_input_size
test_swin_family_window_padding test_swin_family_dynamic_mask_trace
test_eval_refreshes_attention_bias_cache""",
        result=NOT_RUN,
        reason=TIMMS,
    ),
)


INTRODUCTION = """\
# timm's own tests over our names

`tox -e clients` fetches the source distribution of timm that `tests/clients/timm-sdist.txt` pins,
by its hash, and runs every function of its `tests/test_models.py` that takes a model's name. The
table is that of `tests/clients/test_timm_models.py`; a test compares them. What is expected to fail
must fail, with the error known there. CI runs every keep rate of the smallest size and each method
at every size; `tox -e clients -- --all-names` runs all.
"""


def document() -> str:
    """Write the table."""
    lines = [INTRODUCTION, "| function | names | result | reason |", "|---|---|---|---|"]
    for row in TABLE:
        names = f"`{row.names}`" + (f" but `{row.but}`" if row.but else "")
        for name in [row.functions] if row.functions == "every other" else row.functions.split():
            function = name if row.functions == "every other" else f"`{name}`"
            lines.append(f"| {function} | {names} | {row.result} | {row.reason} |")
    return "\n".join(lines) + "\n"


def cases(quick: bool) -> Iterator[Any]:
    """Name every run: a row, a function, a name."""
    for row in TABLE:
        if row.result == NOT_RUN:
            continue
        fails = pytest.mark.xfail(strict=True, raises=row.error[0]) if row.error else ()
        for function in row.functions.split():
            for name in row.matching(quick):
                yield pytest.param(row, function, name, marks=fails, id=f"{function}-{name}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        quick = not metafunc.config.getoption("--all-names")
        metafunc.parametrize(("row", "function", "name"), list(cases(quick)))


def test_timm_finds(row: Row, function: str, name: str, timm_tests: ModuleType):
    test = getattr(timm_tests, function)
    given = {m.args[0]: m.args[1][0] for m in test.pytestmark if m.name == "parametrize"}
    given["cfg_device"] = "meta"  # a fixture of timm's
    wanted = {"batch_size", "cfg_device"} & inspect.signature(test).parameters.keys()
    try:
        test(model_name=name, **{k: given[k] for k in wanted}, **row.also)
    except pytest.skip.Exception as skipped:
        pytest.fail(f"timm would skip {name}: {skipped}")
    except Exception as error:
        if row.error and not re.search(row.error[1], str(error)):
            pytest.fail(f"expected to fail by {row.error[1]!r}, not by {error!r}")
        raise


def test_the_table_has_every_function_that_takes_a_name(timm_tests: ModuleType):
    there = {
        name
        for name, value in vars(timm_tests).items()
        if name.startswith("test_") and "model_name" in inspect.signature(value).parameters
    }
    listed = {f for row in TABLE if row.functions != "every other" for f in row.functions.split()}
    assert listed == there


def test_every_name_is_run_with_the_flag_and_every_method_at_every_size_without():
    [row] = [row for row in TABLE if row.functions == "test_model_forward"]
    assert row.matching(quick=False) == sorted(zoo.MODELS)
    run = {(zoo.MODELS[n].size, zoo.MODELS[n].method) for n in row.matching(quick=True)}
    assert run == {(name.size, name.method) for name in zoo.MODELS.values()}


def test_docs_hold_the_table(request: pytest.FixtureRequest):
    if request.config.getoption("--write-docs"):
        DOCS.write_text(document())
    assert DOCS.read_text() == document()
