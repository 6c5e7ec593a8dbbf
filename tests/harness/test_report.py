"""Check that pages are safe, whole, offline and honest about what was not measured."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from harness.correctness import pack_correct
from harness.records import Latency, Record
from harness.report import markdown_table, write_plot, write_report

HOSTILE = "<script>alert(\"1\")</script> $\\frac{ & | \n 'x' ![](http://a.b)"
VOID = {"meta", "br", "hr", "img", "link", "input"}


def row(
    method: str, keep: float, right: int, gflops: float | None = None, **more: object
) -> Record:
    correct = np.arange(100) < right
    values = {
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
        "image_count": 100,
        "correct_bits": pack_correct(correct),
        "top1": right / 100,
        "top1_low": right / 100 - 0.08,
        "top1_high": right / 100 + 0.07,
        "gflops": gflops,
        "device": "cpu",
        "device_name": "a processor",
        "dtype": "float32",
        "threads": 2,
        "torch": "2.13.0",
        "timm": "1.0.31",
    }
    return Record(**(values | more))


def timed(batch: int, ratio: float) -> Latency:
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


DENSE = row("dense", 1.0, 70, 3.4, final_tokens=196)
RANDOM = [row("random", keep, right, g) for keep, right, g in ((0.6, 55, 2.4), (0.3, 40, 1.7))]
PATCHRANK = row(
    "patchrank", 0.6, 68, 2.45, diff_to_dense=-0.02, diff_low=-0.051, diff_high=0.012,
    latency=(timed(1, 0.71), timed(32, 0.7)), tau=0.313, tau_low=0.29, tau_high=0.33,
    match_at_k=0.723, match_k=118, match_chance=118 / 196, golden_images=60,
    weighted_tau=0.413, weighted_tau_low=0.391, weighted_tau_high=0.433,
    border_overlap=0.614, border_low=0.5987, border_high=0.6312, border_chance=0.511,
    final_tokens=118,
)  # fmt: skip
BY_TEXT = {"dataset": "emoji", "shots": 0, "tuning": None}
EMOJI = [dataclasses.replace(record, **BY_TEXT) for record in (DENSE, *RANDOM)]
RECORDS = [*RANDOM, PATCHRANK, DENSE, *EMOJI]


class Page(HTMLParser):
    """Parse a page into tables of text, refusing unbalanced tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[tuple[str, str | None]] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [pair for pair in attrs if pair[0].endswith(("href", "src"))]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [pair for pair in attrs if pair[0].endswith(("href", "src"))]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in {"td", "th"}:
            self.rows[-1][-1] += data


def page(records: list[Record], folder: Path, title: str = "Results") -> tuple[str, Page]:
    path = folder / "report.html"
    write_report(records, path, title)
    text = path.read_text("utf-8")
    return text, Page(text)


def test_a_table_per_dataset_with_every_figure(tmp_path: Path) -> None:
    text, parsed = page(RECORDS, tmp_path)
    assert text.count("<table>") == text.count("<section>") == 2
    fashion = parsed.rows[:5]
    assert [cells[:2] for cells in fashion[1:]] == [
        ["dense", "100 %"],
        ["random", "60 %"],
        ["patchrank", "60 %"],
        ["random", "30 %"],
    ]
    assert dict(zip(fashion[0], fashion[3], strict=True)) == {
        "Method": "patchrank",
        "Keep": "60 %",
        "Top-1, %": "68.0 [60.0, 75.0]",
        "To dense": "-2.0 [-5.1, +1.2]",
        "GFLOPs": "2.45",
        "Batch 1, ms [IQR]": "28.4 [27.7, 29.8]",
        "Batch 1, × dense": "0.71 [0.70, 0.73]",
        "Batch 1, images/s": "35.2",
        "Batch 32, ms [IQR]": "896.9 [873.6, 940.8]",
        "Batch 32, × dense": "0.70 [0.69, 0.72]",
        "Batch 32, images/s": "35.7",
        "Kendall τ": "+0.31 [+0.29, +0.33]",
        "Weighted τ": "+0.41 [+0.39, +0.43]",
        "Match at k (chance), %": "72.3 at 118 (60.2)",
        "Border overlap (chance), %": "61.4 [59.9, 63.1] (51.1)",
        "Final tokens": "118",
    }
    for heading in ("fashion test, 16 shots, linear probe, clip_vit_s14", "emoji test, by text"):
        assert heading in text
    for condition in ("100 images", "12ab34cd", "a processor", "float32", "2 threads", "60 images"):
        assert condition in text


def test_not_measured_is_a_dash_and_never_zero(tmp_path: Path) -> None:
    _, parsed = page([row("random", 0.6, 50)], tmp_path)
    heading, cells = parsed.rows
    assert cells[:3] == ["random", "60 %", "50.0 [42.0, 57.0]"]
    assert set(cells[3:]) == {"–"}
    assert len(cells) == len(heading)
    assert "GFLOPs not measured" in (tmp_path / "report.html").read_text("utf-8")


def test_the_page_loads_nothing_and_follows_the_readers_colours(tmp_path: Path) -> None:
    text, parsed = page(RECORDS, tmp_path)
    assert {"svg", "style", "table"} <= set(parsed.tags)
    assert not {"script", "link", "img", "iframe", "image", "object"} & set(parsed.tags)
    assert all(target and target.startswith("#") for _, target in parsed.links)
    assert re.findall(r'https?://[^"<\s]*', text) == [  # the names of XML vocabularies
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    ]
    assert "url(http" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert "currentColor" in text
    assert not re.search(r"\d{4}-\d{2}-\d{2}T", text)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    hostile = dataclasses.replace(
        DENSE,
        model=HOSTILE,
        tag=HOSTILE,
        dataset=HOSTILE,
        device_name=HOSTILE,
        method_config={HOSTILE: HOSTILE},
    )
    other = dataclasses.replace(hostile, method=HOSTILE, keep=0.5, gflops=2.0)
    text, parsed = page([hostile, other], tmp_path, title=HOSTILE)
    assert "script" not in parsed.tags
    assert "<script" not in text
    assert parsed.rows[2][0] == HOSTILE
    table = markdown_table([hostile, other])
    assert "<script" not in table
    assert "](http" not in table
    assert {line.count("|") for line in table.splitlines()[3:]} == {11}


def test_different_conditions_are_refused_but_towers_get_their_own_table(tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(PATCHRANK, device_name="another processor")
    with pytest.raises(ValueError, match="different device_name"):
        write_report([DENSE, elsewhere], tmp_path / "report.html", "Results")
    assert not (tmp_path / "report.html").exists()
    bigger = dataclasses.replace(DENSE, weights_sha256="cd" * 32)
    assert markdown_table([DENSE, bigger]).count("### ") == 2
    with pytest.raises(ValueError, match="no records"):
        markdown_table([])


def test_markdown_has_the_same_cells_as_the_page(tmp_path: Path) -> None:
    _, parsed = page(RECORDS, tmp_path)
    lines = [line for line in markdown_table(RECORDS).splitlines() if line.startswith("|")]
    cells = [line.strip("| ").split(" | ") for line in lines if "---" not in line]
    assert cells == parsed.rows


def test_the_page_marks_what_is_clear_and_says_so(tmp_path: Path) -> None:
    lost = row("random", 0.3, 40, diff_to_dense=-0.3, diff_low=-0.39, diff_high=-0.21)
    text, parsed = page([DENSE, PATCHRANK, lost], tmp_path)
    cells = [line[3] for line in parsed.rows]
    assert cells == ["To dense", "–", "-2.0 [-5.1, +1.2]", "-30.0* [-39.0, -21.0]"]
    assert "agreement on 60 images. * clear of zero, all rows judged together" in text
    assert "*" not in markdown_table([DENSE, PATCHRANK, lost])


def test_the_same_records_draw_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg", "a.png", "b.png"):
        write_plot(RECORDS, tmp_path / name)
    svg, png = (tmp_path / "a.svg").read_bytes(), (tmp_path / "a.png").read_bytes()
    assert svg == (tmp_path / "b.svg").read_bytes()
    assert png == (tmp_path / "b.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert len(png) > 10_000
    words = b"patchrank", b"random", b"dense", b"top-1, %", b"GFLOPs per image", b"emoji test"
    for word in words:
        assert word in svg
    with pytest.raises(ValueError, match=r"\.png or \.svg, got 'plot.gif'"):
        write_plot(RECORDS, tmp_path / "plot.gif")
