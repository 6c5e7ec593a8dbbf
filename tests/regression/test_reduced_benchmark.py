"""The reduced benchmark: what the embedded models measured when ``expected.json`` was written.

Exact where the machine has no say (tokens, parameters, multiply-adds), within two images for
accuracy and 0.03 for Kendall's tau, where another processor may round another way.
Written anew by ``python tests/regression/test_reduced_benchmark.py``; look at the difference.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.compare import compare
from harness.plan import Plan
from harness.progress import Progress

EXPECTED = Path(__file__).parent / "expected.json"
METHODS = ("dense", "clsattn", "evit", "patchrank", "random", "tome", "golden")
PLAN = Plan(methods=METHODS, keeps=(0.3,), limit=40, batches=())
IMAGES, TAU, GFLOPS = 2, 0.03, 1e-6


def measure() -> dict[str, dict[str, Any]]:
    """Run the reduced benchmark: what to hold on to, by dataset and model."""
    found = {}
    for records in compare(PLAN, [], Progress()):
        for record in records:
            found[f"{record.dataset} {record.model}"] = {
                "correct": int(record.correct.sum()),
                "final_tokens": record.final_tokens,
                "tokens_per_block": list(record.tokens_per_block or ()),
                "gflops": record.gflops,
                "params": record.params,
                "tau": record.tau,
            }
    return found


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, Any]]:
    return measure()


def test_every_row_is_there(measured):
    assert measured.keys() == json.loads(EXPECTED.read_text()).keys()


@pytest.mark.parametrize("row", json.loads(EXPECTED.read_text()) if EXPECTED.is_file() else ())
def test_a_row_measures_as_before(measured, row):
    now, then = measured[row], json.loads(EXPECTED.read_text())[row]
    for exact in ("final_tokens", "tokens_per_block", "params"):
        assert now[exact] == then[exact], exact
    assert abs(now["correct"] - then["correct"]) <= IMAGES
    for field, tolerance in (("gflops", GFLOPS), ("tau", TAU)):
        if then[field] is None:
            assert now[field] is None
        else:
            assert now[field] == pytest.approx(then[field], abs=tolerance), field


def test_the_order_of_methods_holds(measured):
    """Whatever the processor: the oracle and the predictor beat random pruning by far."""
    for dataset in ("fashion", "emoji"):
        hits = {m: measured[f"{dataset} clip_vit_s14_{m}30"]["correct"] for m in METHODS[1:]}
        assert hits["golden"] > hits["random"] + IMAGES
        assert hits["patchrank"] > hits["random"] + IMAGES


if __name__ == "__main__":
    EXPECTED.write_text(json.dumps(measure(), indent=1) + "\n")
