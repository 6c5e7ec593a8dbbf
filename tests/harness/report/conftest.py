"""Records made by hand, of a hundred images."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from harness.correctness import pack_correct
from harness.records import Latency, Record

Make = Callable[..., Record]
IMAGES = 100


def make_row(
    method: str, keep: float, right: int, gflops: float | None = None, **more: Any
) -> Record:
    """Return a record that is right on the first images."""
    values: dict[str, Any] = {
        "created": "2026-01-02T03:04:05+00:00",
        "version": "0.1.0",
        "model": "clip_vit_s14" + (f"_{method}{round(100 * keep)}" if keep < 1 else ""),
        "method": method,
        "keep": keep,
        "method_config": {"reduce_at": [3]},
        "tag": "saliency",
        "weights_sha256": "ab" * 32,
        "dataset": "fashion",
        "dataset_revision": "12ab34cd",
        "split": "test",
        "shots": 16,
        "tuning": "probe",
        "seed": 0,
        "image_count": IMAGES,
        "correct_bits": pack_correct(np.arange(IMAGES) < right),
        "top1": right / IMAGES,
        "top1_low": max(0.0, right / IMAGES - 0.08),
        "top1_high": min(1.0, right / IMAGES + 0.07),
        "gflops": gflops,
        "device": "cpu",
        "device_name": "a processor",
        "dtype": "float32",
        "threads": 2,
        "torch": "2.13.0",
        "timm": "1.0.31",
    }
    return Record(**(values | more))


def make_timed(batch: int, ratio: float) -> Latency:
    return Latency(
        batch=batch,
        median_ms=40.04 * ratio * batch,
        q1_ms=39.0 * ratio * batch,
        q3_ms=42.0 * ratio * batch,
        ratio_to_dense=ratio,
        ratio_low=ratio - 0.01,
        ratio_high=ratio + 0.02,
        images_per_s=25.0 / ratio,
    )


@pytest.fixture
def row() -> Make:
    return make_row


@pytest.fixture
def timed() -> Callable[[int, float], Latency]:
    return make_timed


@pytest.fixture
def dense() -> Record:
    latency = tuple(
        Latency(batch=b, median_ms=40.0 * b, q1_ms=39.0 * b, q3_ms=42.0 * b, images_per_s=25.0)
        for b in (1, 32)
    )
    return make_row(
        "dense", 1.0, 70, 3.4, final_tokens=196, tokens_per_block=(197,) * 4, latency=latency
    )


@pytest.fixture
def random() -> list[Record]:
    return [
        make_row("random", keep, right, gflops)
        for keep, right, gflops in ((0.6, 55, 2.4), (0.3, 40, 1.7))
    ]


@pytest.fixture
def patchrank() -> Record:
    return make_row(
        "patchrank", 0.6, 68, 2.45, diff_to_dense=-0.02, diff_low=-0.051, diff_high=0.012,
        latency=(make_timed(1, 0.71), make_timed(32, 0.7)), tau=0.313, tau_low=0.29, tau_high=0.33,
        match_at_k=0.723, match_k=118, match_chance=118 / 196, golden_images=60,
        weighted_tau=0.413, weighted_tau_low=0.391, weighted_tau_high=0.433,
        border_overlap=0.614, border_low=0.5987, border_high=0.6312, border_chance=0.511,
        final_tokens=118, tokens_per_block=(197, 119, 119, 119),
    )  # fmt: skip


@pytest.fixture
def records(dense: Record, random: list[Record], patchrank: Record) -> list[Record]:
    """Two datasets, one of them by text; not in the order of a table."""
    from dataclasses import replace

    by_text = {"dataset": "emoji", "shots": 0, "tuning": None}
    emoji = [replace(record, **by_text) for record in (dense, *random)]
    return [*random, patchrank, dense, *emoji]
