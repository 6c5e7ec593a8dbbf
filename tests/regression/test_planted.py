"""Errors planted into the code that is measured: ``check`` must fail, and name what they moved.

A plant says which rows and quantities it must be seen in, so that none is caught by accident.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import pytest
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor

import baselines.evit
import baselines.tome
import harness.measure.bench
import harness.records.metrics
import zoo.core.reducer
import zoo.towers.vit
from harness.apps.check import Case, CheckPlan, CheckRow, measure
from harness.base.table import Shown
from harness.base.terminal import Progress
from harness.cli.apps import run_check
from harness.cli.entry import parse
from harness.measure.rows import Oracle
from harness.measure.settings import Plan
from harness.records.record import write_records
from zoo.loading.sizes import SIZES
from zoo.methods.patchrank import PatchRank
from zoo.towers.vit import ViTBlock

pytestmark = pytest.mark.slow
Seen = set[tuple[str, str]]
FUSED, SPARSE = "evit30 fuse=true", "tome30 reduce_at=[2,4,6]"
BENCH = harness.measure.bench
ROWS = [
    CheckRow(dataset="fashion", method=name, keep=0.3, options=options)
    for name, options in (
        ("clsattn", {}), ("evit", {}), ("patchrank", {}), ("tome", {}), ("golden", {}),
        ("evit", {"fuse": True}), ("tome", {"reduce_at": [2, 4, 6]}),
    )
]  # fmt: skip


def write_expectation(file: Path, dataset: str, limit: int, rows: list[CheckRow], cache: Path) -> Path:
    """Measure the dense row of the embedded tower and others, and write the records."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        plan = Plan(methods=(), datasets=(dataset,), limit=limit, batches=())
        dense = CheckRow(dataset=dataset, method="dense", keep=1.0)
        case = Case("clip_vit_s14.imgfocus_lit", plan, [dense, *rows], file)
        write_records(file, [now for *_, now in measure([case], CheckPlan(), Progress()) if now is not None])
    return file


@pytest.fixture(scope="session")
def run() -> Callable[..., Shown]:
    """Run ``check`` with words of a command line, quietly and without timing."""

    def call(*words: str) -> Shown:
        return run_check(parse(["check", "--no-latency", *words]), Progress())

    return call


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an expectation of 24 images at keep 30."""
    folder = tmp_path_factory.mktemp("expected")
    return write_expectation(folder / "small.jsonl", "fashion", 24, ROWS, folder / "cache")


@pytest.fixture
def check(run: Callable[..., Shown], small: Path) -> Callable[..., Shown]:
    """Check some methods of the small benchmark."""
    return lambda *methods: run(str(small), "--methods", *methods)


@pytest.fixture(scope="session")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an expectation of retrieval."""
    folder = tmp_path_factory.mktemp("expected")
    return write_expectation(folder / "captions.jsonl", "emoji-captions", 96, [], folder / "cache")


class Plant(NamedTuple):
    """An error: what ``change`` makes of a function and its arguments stands in the function's place."""

    places: tuple[tuple[Any, str], ...]
    change: Callable[..., Any]
    methods: str = ""  # that are measured beside the dense row
    seen: str = ""  # what must be seen to move at least, by row

    def put(self, patch: pytest.MonkeyPatch) -> None:
        """Plant it."""
        for owner, name in self.places:
            real = getattr(owner, name)
            patch.setattr(owner, name, lambda *args, real=real, **options: self.change(real, *args, **options))


def invert(real: Any, *args: Any) -> Any:
    return -real(*args)


def empty_fused(real: Any, *args: Any) -> Any:
    """The token is there, and with it all counts, but it holds nothing."""
    fused = real(*args)
    return fused._replace(x=torch.cat([fused.x[:, :-1], torch.zeros_like(fused.x[:, -1:])], dim=1))


def unsized(real: Any, block: int, tokens: Any, metric: Tensor, r: int) -> Any:
    """Merge by the plain mean of two tokens, however many patches they stand for."""
    x = real(block, tokens._replace(size=None), metric, r).x
    return real(block, tokens, metric, r)._replace(x=x)


def change_pixels(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """Change what the preprocessing returns."""

    def transform(real: Any, cfg: Any, **options: Any) -> Any:
        preprocess = real(cfg, **options)
        return lambda image: change(preprocess(image))

    return transform


def move_mean(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return pixels - 0.02 * mean / std


def swap_captions(real: Any, *args: Any) -> Any:
    classifier, left_out = real(*args)
    return classifier[[1, 0, *range(2, len(classifier))]], left_out


def rotate_captions(real: Any, *args: Any) -> Any:
    texts, pairs = real(*args)
    return [*texts[1:], texts[0]], pairs


def split_captions(real: Any, *args: Any) -> Any:
    """The second image of a caption counts as wrong."""
    texts, pairs = real(*args)
    return [texts[text] for text in pairs[:, 1]], np.stack([pairs[:, 0], np.arange(len(pairs))], axis=1)


TRANSFORM, FUSE = ((open_clip.transform, "image_transform_v2"),), ((baselines.evit, "append_fused"),)
RANK = ((PatchRank, "importance"),)
PLANTS = {
    "one token less": Plant(
        ((zoo.core.reducer, "final_count"),), lambda real, *args: real(*args) - 1,
        "clsattn", "clsattn30: final_tokens, tokens_per_block, gflops",
    ),
    "inverted predictor": Plant(RANK, invert, "patchrank", "patchrank30: tau, images right"),
    "inverted attention": Plant(
        ((zoo.towers.vit, "mean_share"), (baselines.evit, "cls_attention")), invert,
        "clsattn evit", f"clsattn30: tau; evit30: tau; {FUSED}: tau",
    ),
    "inverted oracle": Plant(((Oracle, "importance"),), invert, "golden", "golden30: tau, images right"),
    "text without causal mask": Plant(
        ((open_clip.transformer, "TextTransformer"),),
        lambda real, *args, **options: real(*args, no_causal_mask=True, **options),
        "dense", "dense: margin",
    ),
    "merging blocks without bias": Plant(
        ((ViTBlock, "attend"),), lambda real, block, tokens, *_, **__: real(block, tokens),
        "tome", "tome30: cosine distance",
    ),
    "later blocks without bias": Plant(
        ((ViTBlock, "whole"),), lambda real, block, tokens, *_, **__: real(block, tokens),
        "tome", f"{SPARSE}: cosine distance",
    ),
    "no proportional attention": Plant(
        ((baselines.tome.ToMe, "attention_bias"),), lambda *_: None,
        "tome", f"tome30: cosine distance; {SPARSE}: cosine distance",
    ),
    "predictor reads the next block": Plant(
        RANK,
        lambda real, own, block, tokens, module: real(own, block, tokens._replace(x=module.whole(tokens)), module),
        "patchrank", "patchrank30: tau",
    ),
    "merging forgets sizes": Plant(
        ((baselines.tome, "merge"),), unsized, "tome", f"{SPARSE}: cosine distance, margin"
    ),
    "no fused token": Plant(
        FUSE, lambda real, kept, *_: kept, "evit", f"{FUSED}: final_tokens, cosine distance"
    ),
    "CLIP's normalisation": Plant(
        TRANSFORM, lambda real, cfg, **o: real(replace(cfg, mean=OPENAI_CLIP_MEAN, std=OPENAI_CLIP_STD), **o),
        "clsattn", "dense: margin; clsattn30: cosine distance",
    ),
    "inputs 2 % larger": Plant(
        TRANSFORM, change_pixels(lambda pixels: 1.02 * pixels),
        "patchrank", "dense: feature probe; patchrank30: feature probe",
    ),
    "mean 2 % off": Plant(TRANSFORM, change_pixels(move_mean), "dense", "dense: feature probe"),
    "two captions swapped": Plant(
        ((BENCH, "text_classifier"),), swap_captions, "dense", "dense: margin, answers flipped"
    ),
}  # fmt: skip
RETRIEVAL = {
    "captions of others": Plant(
        ((BENCH, "captions_of"),), rotate_captions,
        seen="dense: recall image 1, recall text 1, recall image 5, recall text 5",
    ),
    "one image a caption": Plant(
        ((BENCH, "captions_of"),), split_captions, seen="dense: recall image 1, recall text 1"
    ),
    "counted from one": Plant(
        ((harness.records.metrics, "found_after"),), lambda real, *args: real(*args) + 1,
        seen="dense: recall image 1, recall text 1",
    ),
}  # fmt: skip


def seen(shown: Shown) -> Seen:
    return {(one["row"], one["quantity"]) for one in shown.data["moved"]}


def test_nothing_moves_in_the_code_as_it_is(check, run, captions: Path):
    assert run(str(captions)).code == 0
    shown = check("clsattn", "evit", "patchrank", "tome", "golden")
    assert (shown.code, shown.data["moved"], shown.data["rows"]) == (0, [], 8)


def require_seen(shown: Shown, expected: str) -> None:
    assert shown.code == 1
    rows = (part.partition(": ") for part in expected.split("; "))
    assert {(row, name) for row, _, names in rows for name in names.split(", ")} <= seen(shown)


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_error_is_seen(name: str, check, monkeypatch):
    plant = PLANTS[name]
    plant.put(monkeypatch)
    require_seen(check(*plant.methods.split()), plant.seen)


def test_a_wrong_activation_is_seen(check, monkeypatch):
    """QuickGELU for weights that were trained with GELU."""
    tags = SIZES["s14"].tags
    monkeypatch.setitem(tags, "imgfocus_lit", tags["imgfocus_lit"]._replace(quick_gelu=True))
    require_seen(check("dense"), "dense: answers flipped, margin")


@pytest.mark.parametrize("name", RETRIEVAL)
def test_an_error_planted_into_retrieval_is_seen(name: str, run, captions: Path, monkeypatch):
    RETRIEVAL[name].put(monkeypatch)
    require_seen(run(str(captions)), RETRIEVAL[name].seen)


def test_rows_that_a_plant_does_not_touch_do_not_move(check, monkeypatch):
    Plant(FUSE, empty_fused).put(monkeypatch)
    found = seen(check("evit", "clsattn"))
    assert (FUSED, "cosine distance") in found
    assert {row for row, _ in found} == {FUSED}


def test_an_update_writes_and_tells_the_difference(run, small: Path, tmp_path: Path, monkeypatch):
    file = tmp_path / "mine.jsonl"
    dense, *others = small.read_text().splitlines()
    file.write_text("\n".join([dense, *(line for line in others if "patchrank" in line), ""]))
    PLANTS["inverted predictor"].put(monkeypatch)
    options = run(str(file), "--update")
    assert options.code == 0
    assert ("patchrank30", "tau") in seen(options)
    assert run(str(file)).code == 0
    monkeypatch.undo()
    found = run(str(file))
    assert (found.code, seen(found)) == (1, seen(options))
