"""Errors planted into the code that is measured: ``check`` must fail, and name what they moved.

A plant says which rows and quantities it must be seen in, so that none is caught by accident.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from timm.models.vision_transformer import Block
from torch import Tensor

import baselines.evit
import baselines.tome
import harness.measure.bench
import harness.records.metrics
import zoo.core.reducer
import zoo.loading.clip
import zoo.towers.vit
from harness.base.table import Shown
from harness.datasets.base import Dataset
from harness.measure.rows import Oracle
from zoo.loading.clip import ClipParts
from zoo.loading.sizes import SIZES
from zoo.methods.patchrank import PatchRank
from zoo.towers.vit import ViTBlock

pytestmark = pytest.mark.slow
Plant = Callable[[pytest.MonkeyPatch], None]
Seen = set[tuple[str, str]]
FUSED, SPARSE = "evit30 fuse=true", "tome30 reduce_at=[2,4,6]"


def wrong_activation(patch: pytest.MonkeyPatch) -> None:
    """QuickGELU for weights that were trained with GELU."""
    tags = SIZES["s14"].tags
    patch.setitem(tags, "imgfocus_lit", tags["imgfocus_lit"]._replace(quick_gelu=True))


def one_token_less(patch: pytest.MonkeyPatch) -> None:
    real = zoo.core.reducer.final_count
    patch.setattr(zoo.core.reducer, "final_count", lambda patches, keep: real(patches, keep) - 1)


def inverted_predictor(patch: pytest.MonkeyPatch) -> None:
    real = PatchRank.importance
    patch.setattr(PatchRank, "importance", lambda *given: -real(*given))


def inverted_attention(patch: pytest.MonkeyPatch) -> None:
    for module, name in ((zoo.towers.vit, "mean_share"), (baselines.evit, "cls_attention")):
        real = getattr(module, name)
        patch.setattr(module, name, lambda *args, real=real: -real(*args))


def inverted_oracle(patch: pytest.MonkeyPatch) -> None:
    real = Oracle.importance
    patch.setattr(Oracle, "importance", lambda *given: -real(*given))


def text_sees_what_follows(patch: pytest.MonkeyPatch) -> None:
    """The text tower lost its causal mask."""
    blind = functools.partial(zoo.loading.clip.TextTransformer, no_causal_mask=True)
    patch.setattr(zoo.loading.clip, "TextTransformer", blind)


def merging_blocks_lose_their_mask(patch: pytest.MonkeyPatch) -> None:
    """ToMe's bias isn't added where a block merges."""
    real = ViTBlock.attend
    patch.setattr(ViTBlock, "attend", lambda self, tokens, bias=None: real(self, tokens))


def later_blocks_lose_their_mask(patch: pytest.MonkeyPatch) -> None:
    """ToMe's bias isn't added where a block doesn't merge, but others did before."""
    real = Block.forward
    patch.setattr(Block, "forward", lambda self, x, attn_mask=None, is_causal=False: real(self, x))


def no_proportional_attention(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(baselines.tome.ToMe, "attention_bias", lambda self, tokens: None)


def predictor_reads_the_next_block(patch: pytest.MonkeyPatch) -> None:
    real = PatchRank.importance

    def late(self: PatchRank, block: int, tokens: Any, module: Any) -> Tensor:
        return real(self, block, tokens._replace(x=module.whole(tokens)), module)

    patch.setattr(PatchRank, "importance", late)


def merging_forgets_sizes(patch: pytest.MonkeyPatch) -> None:
    """Merge by the plain mean of two tokens, however many patches they stand for."""
    real = baselines.tome.merge

    def plain(block: int, tokens: Any, metric: Tensor, r: int) -> Any:
        sized = real(block, tokens, metric, r)
        return sized._replace(x=real(block, tokens._replace(size=None), metric, r).x)

    patch.setattr(baselines.tome, "merge", plain)


def no_fused_token(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(baselines.evit, "_append_fused", lambda kept, tokens, importance: kept)


def empty_fused_token(patch: pytest.MonkeyPatch) -> None:
    """The token is there, and with it all counts, but it holds nothing."""
    real = baselines.evit._append_fused

    def empty(kept: Any, tokens: Any, importance: Tensor) -> Any:
        fused = real(kept, tokens, importance)
        x = fused.x.clone()
        x[:, -1] = 0.0
        return fused._replace(x=x)

    patch.setattr(baselines.evit, "_append_fused", empty)


def other_normalisation(patch: pytest.MonkeyPatch) -> None:
    """CLIP's mean and deviation, which are near those of ImageNet."""
    real = zoo.loading.clip.image_transform_v2

    def transform(cfg: Any, **options: Any) -> Any:
        return real(replace(cfg, mean=OPENAI_CLIP_MEAN, std=OPENAI_CLIP_STD), **options)

    patch.setattr(zoo.loading.clip, "image_transform_v2", transform)


def _change_pixels(patch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> None:
    """Change what the preprocessing returns."""
    real = zoo.loading.clip.image_transform_v2

    def transform(cfg: Any, **options: Any) -> Any:
        preprocess = real(cfg, **options)
        return lambda image: change(preprocess(image))

    patch.setattr(zoo.loading.clip, "image_transform_v2", transform)


def inputs_two_percent_larger(patch: pytest.MonkeyPatch) -> None:
    _change_pixels(patch, lambda pixels: 1.02 * pixels)


def mean_two_percent_off(patch: pytest.MonkeyPatch) -> None:
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    _change_pixels(patch, lambda pixels: pixels - 0.02 * mean / std)


def two_captions_swapped(patch: pytest.MonkeyPatch) -> None:
    real = harness.measure.bench.text_classifier

    def swapped(parts: ClipParts, dataset: Dataset) -> tuple[Tensor, tuple[str, ...]]:
        classifier, left_out = real(parts, dataset)
        return classifier[[1, 0, *range(2, len(classifier))]], left_out

    patch.setattr(harness.measure.bench, "text_classifier", swapped)


# What is planted, methods that are measured beside the dense row, and what must be seen to move at
# least. The empty fused token has a test of its own.
PLANTS: list[tuple[Plant, str, str]] = [
    (wrong_activation, "dense", "dense: answers flipped, margin"),
    (one_token_less, "clsattn", "clsattn30: final_tokens, tokens_per_block, gflops"),
    (inverted_predictor, "patchrank", "patchrank30: tau, images right"),
    (inverted_attention, "clsattn evit", f"clsattn30: tau; evit30: tau; {FUSED}: tau"),
    (inverted_oracle, "golden", "golden30: tau, images right"),
    (text_sees_what_follows, "dense", "dense: margin"),
    (merging_blocks_lose_their_mask, "tome", "tome30: cosine distance"),
    (later_blocks_lose_their_mask, "tome", f"{SPARSE}: cosine distance"),
    (no_proportional_attention, "tome", f"tome30: cosine distance; {SPARSE}: cosine distance"),
    (predictor_reads_the_next_block, "patchrank", "patchrank30: tau"),
    (merging_forgets_sizes, "tome", f"{SPARSE}: cosine distance, margin"),
    (no_fused_token, "evit", f"{FUSED}: final_tokens, cosine distance"),
    (other_normalisation, "clsattn", "dense: margin; clsattn30: cosine distance"),
    (inputs_two_percent_larger, "patchrank", "dense: feature probe; patchrank30: feature probe"),
    (mean_two_percent_off, "dense", "dense: feature probe"),
    (two_captions_swapped, "dense", "dense: margin, answers flipped"),
]


def captions_of_others(patch: pytest.MonkeyPatch) -> None:
    real = harness.measure.bench.captions_of

    def given(*words: Any) -> Any:
        texts, pairs = real(*words)
        return [*texts[1:], texts[0]], pairs

    patch.setattr(harness.measure.bench, "captions_of", given)


def one_image_a_caption(patch: pytest.MonkeyPatch) -> None:
    """The second image of a caption counts as wrong."""
    real = harness.measure.bench.captions_of

    def given(*words: Any) -> Any:
        texts, pairs = real(*words)
        return [texts[text] for text in pairs[:, 1]], np.stack([pairs[:, 0], np.arange(len(pairs))], axis=1)

    patch.setattr(harness.measure.bench, "captions_of", given)


def counted_from_one(patch: pytest.MonkeyPatch) -> None:
    real = harness.records.metrics.found_after
    patch.setattr(harness.records.metrics, "found_after", lambda *given: real(*given) + 1)


RETRIEVAL: list[tuple[Plant, set[str]]] = [
    (captions_of_others, {"recall image 1", "recall image 5", "recall text 1", "recall text 5"}),
    (one_image_a_caption, {"recall image 1", "recall text 1"}),
    (counted_from_one, {"recall image 1", "recall text 1"}),
]


def seen(shown: Shown) -> Seen:
    return {(one["row"], one["quantity"]) for one in shown.data["moved"]}


def test_nothing_moves_in_the_code_as_it_is(check):
    shown = check("clsattn", "evit", "patchrank", "tome", "golden")
    assert (shown.code, shown.data["moved"], shown.data["rows"]) == (0, [], 8)


@pytest.mark.parametrize(("plant", "methods", "expected"), PLANTS, ids=[plant.__name__ for plant, _, _ in PLANTS])
def test_a_planted_error_is_seen(plant: Plant, methods: str, expected: str, check, monkeypatch):
    plant(monkeypatch)
    shown = check(*methods.split())
    assert shown.code == 1
    rows = (part.partition(": ") for part in expected.split("; "))
    assert {(row, name) for row, _, names in rows for name in names.split(", ")} <= seen(shown)


@pytest.mark.parametrize(("plant", "expected"), RETRIEVAL, ids=[plant.__name__ for plant, _ in RETRIEVAL])
def test_an_error_planted_into_retrieval_is_seen(plant: Plant, expected: set[str], run, captions: Path, monkeypatch):
    assert run(str(captions)).code == 0
    plant(monkeypatch)
    assert expected <= {name for _, name in seen(run(str(captions)))}


def test_rows_that_a_plant_does_not_touch_do_not_move(check, monkeypatch):
    empty_fused_token(monkeypatch)
    found = seen(check("evit", "clsattn"))
    assert (FUSED, "cosine distance") in found
    assert {row for row, _ in found} == {FUSED}


def test_an_update_writes_and_tells_the_difference(run, small: Path, tmp_path: Path, monkeypatch):
    file = tmp_path / "mine.jsonl"
    kept = [line for line in small.read_text().splitlines() if "patchrank" in line]
    dense = small.read_text().splitlines()[0]
    file.write_text("\n".join([dense, *kept, ""]))
    inverted_predictor(monkeypatch)
    options = run(str(file), "--update")
    assert options.code == 0
    assert ("patchrank30", "tau") in seen(options)
    assert run(str(file)).code == 0
    monkeypatch.undo()
    found = run(str(file))
    assert found.code == 1
    assert seen(found) == seen(options)
