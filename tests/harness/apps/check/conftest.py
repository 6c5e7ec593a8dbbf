"""Records of rows that were never measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import replace

from harness.records.metrics import pack
from harness.records.record import Record, names_of, read_records

RIGHT = np.arange(40) % 4 > 0  # 30 of 40
[KNOWN] = read_records(Path(__file__).parents[2] / "schema" / "record.jsonl")


@pytest.fixture
def record() -> Callable[..., Record]:
    """Make a record; ``right`` are the images that were."""

    def make(right: Any = RIGHT, **changed: Any) -> Record:
        flags = np.asarray(right, dtype=bool)
        facts: dict[str, Any] = dict.fromkeys(names_of(Record, "measurement")) | {
            **{"model": "clip_vit_s14_tome30", "method": "tome", "keep": 0.3},
            **{"method_config": {"keep": 0.3, "reduce_at": None}, "dataset_revision": "12ab34cd"},
            **{"image_count": len(flags), "correct_bits": pack(flags)},
            **{"top1": float(flags.mean()), "top1_low": 0.0, "top1_high": 1.0, "margin": 0.05},
            **{"cosine_distance": 0.1, "cosine_low": 0.05, "cosine_high": 0.2, "latency": ()},
            **{"gflops": 2.196547264, "params": 16378624, "final_tokens": 59},
            "tokens_per_block": (182, 167, 60, 60),
            **{"tau": 0.3, "tau_low": 0.29, "tau_high": 0.31, "golden_images": len(flags)},
            **{"device_name": "a processor", "threads": 2, "torch": "2.13.0"},
        }
        return replace(KNOWN, **facts | changed)

    return make


@pytest.fixture
def dense(record: Callable[..., Record]) -> Record:
    nothing = dict.fromkeys(("tau", "tau_low", "tau_high", "golden_images"))
    near = dict.fromkeys(("cosine_distance", "cosine_low", "cosine_high"))
    named = {"model": "clip_vit_s14", "method": "dense", "keep": 1.0, "method_config": {}}
    return record(**named, **nothing, **near)
