"""Records made by hand, of a hundred images, and the page of some, taken apart."""

from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from by_hand import answers, make, replace, timed

from harness.records.record import Record
from harness.report.folder import page
from harness.report.highlights import plots_of
from harness.report.tables import group_records, sections

Make = Callable[..., Record]
IMAGES = 100
VOID = {"meta", "br", "hr", "img", "link", "input"}


def make_row(method: str, keep: float, right: int, gflops: float | None = None, **more: Any) -> Record:
    """Return a record that is right on the first images."""
    values: dict[str, Any] = {
        "created": "2026-01-02T03:04:05+00:00", "version": "0.1.0",
        "model": "clip_vit_s14" + (f"_{method}{round(100 * keep)}" if keep < 1 else ""),
        "method": method, "keep": keep, "method_config": {"reduce_at": [3]}, "tag": "saliency",
        "weights_sha256": "ab" * 32, "dataset": "fashion", "dataset_revision": "12ab34cd",
        "split": "test", "shots": 16, "tuning": "probe", "seed": 0, "gflops": gflops, "threads": 2,
        "device": "cpu", "device_name": "a processor", "precision": "float32", "torch": "2.13.0", "timm": "1.0.31",
    }  # fmt: skip
    return make(**(values | answers(np.arange(IMAGES) < right) | more))


@pytest.fixture(scope="session")
def row() -> Make:
    return make_row


@pytest.fixture(scope="session")
def dense() -> Record:
    facts: dict[str, Any] = {"final_tokens": 196, "tokens_per_block": (197,) * 4}
    return make_row("dense", 1.0, 70, 3.4, latency=(timed(1, 40.0), timed(32, 1280.0)), **facts)


@pytest.fixture(scope="session")
def random() -> list[Record]:
    return [make_row("random", keep, right, gflops) for keep, right, gflops in ((0.6, 55, 2.4), (0.3, 40, 1.7))]


@pytest.fixture(scope="session")
def patchrank() -> Record:
    return make_row(
        "patchrank", 0.6, 68, 2.45, diff_to_dense=-0.02, diff_low=-0.051, diff_high=0.012,
        latency=(timed(1, 28.43, 0.71, 0.7, 0.73), timed(32, 896.9, 0.7, 0.69, 0.72)),
        tau=0.313, tau_low=0.29, tau_high=0.33, match_at_k=0.723, match_k=118, match_chance=118 / 196, golden_images=60,
        final_tokens=118, tokens_per_block=(197, 119, 119, 119),
    )  # fmt: skip


@pytest.fixture(scope="session")
def records(dense: Record, random: list[Record], patchrank: Record) -> list[Record]:
    """Two datasets, one of them by text; not in the order of a table."""
    by_text = {"dataset": "emoji", "shots": 0, "tuning": None}
    emoji = [replace(record, **by_text) for record in (dense, *random)]
    return [*random, patchrank, dense, *emoji]


class Page(HTMLParser):
    """Parse a page into its tags, links and ids, refusing unbalanced tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.ids = list[str](), list[str](), list[str]()
        self.links: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [pair for pair in attrs if pair[0].endswith(("href", "src"))]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="session")
def made() -> Callable[..., tuple[str, Page]]:
    """Return what makes a page of records: its text, and it taken apart."""

    def make(records: list[Record], **more: Any) -> tuple[str, Page]:
        groups = group_records(records)
        text = page(groups, plots_of(groups), list(sections(groups)), **more)
        return text, Page(text)

    return make


@pytest.fixture(scope="session")
def drawn(made: Callable[..., tuple[str, Page]], records: list[Record]) -> tuple[str, Page]:
    """The page of all records, drawn once for the tests that only read it."""
    return made(records)
