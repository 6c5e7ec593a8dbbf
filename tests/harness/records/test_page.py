"""docs/internals.md has every metric."""

import re
from pathlib import Path

from harness.records.metrics import METRICS, RECALL_AT

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "internals.md").read_text("utf-8")


def test_every_metric_is_there_in_order_with_its_unit_and_direction():
    section = TEXT.partition("\n### Metrics\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| `(\w+)` \| (\w*) ?\| (\w*) ?\|", section, re.M)
    of_k = [line for line in lines if "_K" in line[0]]
    documented = [(name.replace("K", str(k)), [*own]) for k in RECALL_AT for name, *own in of_k]
    documented += [(name, [*own]) for name, *own in lines if "_K" not in name]
    assert documented == [(name, [own.unit, own.better]) for name, own in METRICS.items()]
