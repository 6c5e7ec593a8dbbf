"""Records of rows that were never measured."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from harness.records import Record, pack_correct

RIGHT = np.arange(40) % 4 > 0  # 30 of 40


@pytest.fixture
def record() -> Callable[..., Record]:
    """Make a record; ``right`` are the images that were."""

    def make(right: Any = RIGHT, **changed: Any) -> Record:
        flags = np.asarray(right, dtype=bool)
        facts: dict[str, Any] = {
            "created": "2026-01-02T03:04:05+00:00",
            "version": "0.1.0",
            "git_commit": "0123abc",
            "model": "clip_vit_s14_tome30",
            "method": "tome",
            "keep": 0.3,
            "method_config": {"keep": 0.3, "reduce_at": None},
            "tag": "imgfocus_lit",
            "weights_sha256": "ab" * 8,
            "dataset": "fashion",
            "dataset_revision": "12ab34cd",
            "split": "test",
            "shots": 0,
            "seed": 0,
            "image_count": len(flags),
            "correct_bits": pack_correct(flags),
            "top1": float(flags.mean()),
            "top1_low": 0.0,
            "top1_high": 1.0,
            "margin": 0.05,
            "cosine_to_dense": 0.9,
            "cosine_low": 0.8,
            "cosine_high": 0.95,
            "gflops": 2.196547264,
            "params": 16378624,
            "tokens_per_block": (182, 167, 60, 60),
            "final_tokens": 59,
            "tau": 0.3,
            "tau_low": 0.29,
            "tau_high": 0.31,
            "golden_images": len(flags),
            "device": "cpu",
            "device_name": "a processor",
            "dtype": "float32",
            "threads": 2,
            "torch": "2.13.0",
            "timm": "1.0.31",
        }
        return Record(**{**facts, **changed})

    return make


@pytest.fixture
def dense(record: Callable[..., Record]) -> Record:
    nothing = dict.fromkeys(("tau", "tau_low", "tau_high", "golden_images"))
    near = dict.fromkeys(("cosine_to_dense", "cosine_low", "cosine_high"))
    named = {"model": "clip_vit_s14", "method": "dense", "keep": 1.0, "method_config": {}}
    return record(**named, **nothing, **near)
