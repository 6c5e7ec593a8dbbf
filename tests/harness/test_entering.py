"""Tokens on disk: right, computed once, made again when what they go by or their file changed."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zoo
from harness.console.terminal import Progress
from harness.datasets import few_shot as sampling
from harness.datasets.base import Dataset, Split
from harness.golden import fit as module
from harness.golden.fit import Entering, Joined, entering
from harness.golden.store import Rankings
from zoo.clip import ClipParts
from zoo.weights import cache_folder

Compute = Callable[..., Entering]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the images that go through the tower, batch by batch."""
    calls: list[int] = []
    advance = module._advance

    def counted(vit: Any, images: torch.Tensor, block: int) -> Any:
        calls.append(len(images))
        return advance(vit, images, block)

    monkeypatch.setattr(module, "_advance", counted)
    return calls


@pytest.fixture
def compute(parts: ClipParts, toy: Dataset, ranked: Callable[..., Rankings]) -> Compute:
    def call(count: int = 5, ids: list[str] | None = None, **facts: Any) -> Entering:
        rankings = ranked("val", count)
        told = replace(rankings.provenance, **facts)
        names = rankings.image_ids if ids is None else ids
        return entering(
            told, toy.split("val"), names, parts.model.visual, parts.preprocess, Progress()
        )

    return call


def files() -> list[Path]:
    return sorted((cache_folder() / "tokens").iterdir())


@pytest.mark.parametrize("block", [0, 2])
@torch.no_grad()
def test_tokens_are_the_towers(
    block: int, compute: Compute, dense: zoo.ReducedViT, parts: ClipParts, toy: Dataset
):
    found = compute(block=block)
    assert found.tokens.dtype == torch.float16
    assert found.labels.tolist() == [0, 1, 2, 3, 0]
    for example, tokens in zip(toy.split("val"), found.tokens, strict=False):
        image = parts.preprocess(example.image)[None]
        slow, _ = dense.advance(dense.embed(image), stop=block)
        assert torch.allclose(tokens.float(), slow.x[0], atol=2e-3, rtol=2e-3)


def test_batches_are_strung_together(
    compute: Compute, passes: list[int], monkeypatch: pytest.MonkeyPatch
):
    whole = compute().tokens.clone()
    for file in files():
        file.unlink()
    monkeypatch.setattr(sampling, "BATCH", 2)
    assert torch.allclose(compute().tokens.float(), whole.float(), atol=2e-3, rtol=2e-3)
    assert passes == [5, 2, 2, 1]


def test_computed_once_whatever_the_order(compute: Compute, passes: list[int]):
    first = compute()
    again = compute(ids=list(first.image_ids[::-1]))
    assert passes == [5]
    assert torch.equal(first.tokens, again.tokens)
    assert (first.image_ids, first.labels.tolist()) == (again.image_ids, again.labels.tolist())
    names = [file.name for file in files()]
    assert re.fullmatch(r"(toy-val-b3-\w{16})\.json \1\.npy", " ".join(names))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the ids of the images that are drawn."""
    ids: list[str] = []
    draw = Split.__getitem__

    def noted(self: Split, index: Any) -> Any:
        example = draw(self, index)
        ids.append(example.image_id)
        return example

    monkeypatch.setattr(Split, "__getitem__", noted)
    return ids


def test_only_wanted_images_are_drawn_and_only_once(compute: Compute, drawn: list[str]):
    ids = ["toy/val-6", "toy/val-1", "toy/val-4"]
    with pytest.raises(ValueError, match="1 ranked images are not"):
        compute(count=0, ids=[*ids, "toy/val-98"])
    assert drawn == []
    first, again = compute(count=0, ids=ids), compute(count=0, ids=ids)
    assert drawn == ["toy/val-1", "toy/val-4", "toy/val-6"]
    assert first.image_ids == again.image_ids == tuple(drawn)
    assert first.labels.tolist() == again.labels.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    "facts",
    [
        {"weights": "0" * 16},
        {"model": "clip_vit_b16.laion2b"},
        {"block": 2},
        {"revision": "0" * 12},
        {"split": "train"},
        {"count": 4},
    ],
    ids=str,
)
def test_other_tokens_for_anything_else(facts: dict, compute: Compute, passes: list[int]):
    compute()
    compute(**facts)
    assert passes == [5, facts.get("count", 5)]
    assert len(files()) == 4


@pytest.mark.parametrize("facts", [{"score": "label"}, {"stride": 2}, {"greedy": 4}], ids=str)
def test_how_rankings_were_made_does_not_matter(facts: dict, compute: Compute, passes: list[int]):
    compute()
    compute(**facts)
    assert passes == [5]


def test_another_release_of_a_package_computes_again(
    compute: Compute, passes: list[int], monkeypatch: pytest.MonkeyPatch
):
    compute()
    monkeypatch.setattr(module.metadata, "version", lambda name: f"{name} of tomorrow")
    compute()
    assert passes == [5, 5]


def _cut(tokens: Path, facts: Path) -> None:
    tokens.write_bytes(tokens.read_bytes()[:-1])


def _without_facts(tokens: Path, facts: Path) -> None:
    facts.unlink()


def _half_facts(tokens: Path, facts: Path) -> None:
    facts.write_bytes(facts.read_bytes()[:-5])


def _other_ids(tokens: Path, facts: Path) -> None:
    told = json.loads(facts.read_text())
    facts.write_text(json.dumps({**told, "image_ids": [*told["image_ids"][1:], "toy/val-77"]}))


def _other_shape(tokens: Path, facts: Path) -> None:
    np.save(tokens, np.load(tokens)[:, 1:])


def _other_type(tokens: Path, facts: Path) -> None:
    np.save(tokens, np.load(tokens).astype(np.float32))


@pytest.mark.parametrize(
    "harm", [_cut, _without_facts, _half_facts, _other_ids, _other_shape, _other_type]
)
def test_damaged_files_are_made_again(
    harm: Callable[[Path, Path], None], compute: Compute, passes: list[int]
):
    whole = compute().tokens.clone()
    facts, tokens = files()
    harm(tokens, facts)
    assert torch.equal(compute().tokens, whole)
    assert passes == [5, 5]
    assert files() == [facts, tokens]


def test_writing_to_tokens_leaves_the_file_alone(compute: Compute):
    first = compute()
    before = first.tokens.clone()
    first.tokens.zero_()
    assert torch.equal(compute().tokens, before)


def test_images_that_are_not_there(compute: Compute, ranked: Callable[..., Rankings]):
    ids = [*ranked("val", 3).image_ids, "toy/val-98", "toy/val-99"]
    match = r"2 ranked images are not in toy val, such as 'toy/val-98'; make rankings with: python"
    with pytest.raises(ValueError, match=match):
        compute(ids=ids)
    assert not (cache_folder() / "tokens").exists()


def test_tokens_beyond_float16(compute: Compute, dense: zoo.ReducedViT):
    with torch.no_grad():
        dense.blocks[0].mlp.fc2.bias.fill_(1e6)
    with pytest.raises(ValueError, match="tokens that enter block 3 are beyond float16's 65504"):
        compute()
    assert files() == []


@pytest.mark.parametrize(
    ("place", "name", "error"),
    [
        (os, "fsync", OSError(28, "No space left on device")),
        (module, "_advance", KeyboardInterrupt()),
    ],
    ids=["full disk", "interrupted"],
)
def test_what_ends_a_computation_leaves_nothing(
    place: Any, name: str, error: BaseException, compute: Compute, monkeypatch: pytest.MonkeyPatch
):
    def stop(*_: Any) -> None:
        raise error

    monkeypatch.setattr(place, name, stop)
    with pytest.raises(type(error)):
        compute()
    assert files() == []


def test_several_sets_read_as_one():
    parts = [torch.randn(n, 3, 2).half() for n in (4, 1, 5)]
    whole, joined = torch.cat(parts), Joined(parts)
    assert joined.shape == whole.shape
    for rows in ([], [0], [9, 0, 4, 4, 3, 5], list(range(10))):
        index = torch.tensor(rows, dtype=torch.int64)
        assert torch.equal(joined[index], whole[index])
