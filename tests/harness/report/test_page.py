"""Pages are safe, whole and offline, and their tables have every figure."""

import dataclasses
import re
from typing import Any

from by_hand import replace

from harness.base.terminal import Progress
from harness.records.record import Record
from harness.report.folder import write_report
from harness.report.groups import markdown_table
from harness.report.page import page
from harness.report.pictures import TracePicture

HOSTILE = "<script>alert(\"1\")</script> $\\frac{ & | \n 'x' ![](http://a.b)"


def test_the_page_loads_nothing_and_follows_the_readers_colours(drawn: Any) -> None:
    text, parsed = drawn
    assert {"svg", "style", "table"} <= set(parsed.tags)
    assert not {"link", "img", "iframe", "image", "object"} & set(parsed.tags)
    assert all(target and target.startswith("#") for _, target in parsed.links)
    vocabularies = {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}
    assert set(re.findall(r'https?://[^"<\s]*', text)) == vocabularies
    assert "@import" not in text
    for wish in ("prefers-color-scheme: dark", "prefers-reduced-motion", "@media print"):
        assert wish in text
    assert "currentColor" in text
    assert not re.search(r"\d{4}-\d{2}-\d{2}T", text)


def test_every_drawing_is_a_picture_with_words(drawn: Any) -> None:
    text, _ = drawn
    drawings = re.findall(r"<svg[^>]*>", text)
    assert len(drawings) == len(re.findall(r"<svg[^>]*><title id=", text)) >= 6
    for drawing in drawings:
        assert 'role="img"' in drawing
        [named] = re.findall(r'aria-labelledby="([^"]+)"', drawing)
        [words] = re.findall(rf'<title id="{named}">([^<]+)</title>', text)
        assert len(words) > 40


def test_hostile_names_stay_text(made: Any, dense: Record) -> None:
    names = dict.fromkeys(("model", "tag", "dataset", "device_name"), HOSTILE)
    hostile = dataclasses.replace(dense, **names, method_config={HOSTILE: HOSTILE})
    other = replace(hostile, method=HOSTILE, keep=0.5, gflops=2.0)
    text, parsed = made([hostile, other], HOSTILE)
    assert parsed.tags.count("script") == 1
    assert text.count("<script") == 1
    assert parsed.tables[2][0] == HOSTILE
    table = markdown_table([hostile, other])
    assert "<script" not in table
    assert "](http" not in table
    assert len({line.count("|") for line in table.splitlines()[3:]}) == 1


def test_pictures_of_others_become_elements_with_ids_of_their_own(made: Any, dense: Record) -> None:
    svg = (
        b'<?xml version="1.0"?><!DOCTYPE svg><svg xmlns="http://www.w3.org/2000/svg"><defs>'
        b'<path id="a"/></defs><use href="#a" fill="url(#a)" color="#1b1c1d"/></svg>'
    )
    pictures = [
        TracePicture(name=name, title=f"Title {name}", about="How.", alt="What is seen.", files={"svg": svg})
        for name in ("one", "two")
    ]
    photo = TracePicture(name="photo", title="Photo", about="How.", alt='"seen"', files={"jpg": b"jpeg"})
    assert 'alt="&#34;seen&#34;" src="data:image/jpeg;base64,anBlZw=="' in made([dense], pictures=[photo])[0]
    text, parsed = made([dense], pictures=pictures)
    for name in ("one", "two"):
        assert f'<path id="{name}-a"/>' in text
        assert f'<use href="#{name}-a" fill="url(#{name}-a)" color="currentColor"/>' in text
        assert f'<a href="#{name}">Title {name}</a>' in text
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert "Rankings and kept patches" in text
    assert "DOCTYPE svg" not in text
    assert "Rankings and kept patches" not in made([dense])[0]


def test_a_table_per_dataset_with_every_figure(drawn: Any) -> None:
    text, parsed = drawn
    assert text.count("<table data-sortable") == 2
    fashion = parsed.tables[:5]
    assert [" ".join(cells[:2]) for cells in fashion[1:]] == [
        "dense 100 %", "random 60 %", "patchrank 60 %", "random 30 %",
    ]  # fmt: skip
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
    for heading in (
        "fashion test, read by studies, 16 shots, linear probe, clip_vit_s14",
        "emoji test, read by studies, by text",
    ):
        assert heading in text
    for condition in ("100 images", "12ab34cd", "a processor", "float32", "2 threads", "60 images"):
        assert condition in text


def test_what_sorting_goes_by_are_the_figures_unrounded(made: Any, patchrank: Record, dense: Record) -> None:
    _, parsed = made([patchrank, dense])
    at = next(n for n, cells in enumerate(parsed.rows) if cells[0] == "patchrank")
    values = dict(zip(parsed.tables[0], parsed.values[at], strict=True))
    assert (values["Method"], values["Keep"]) == ("patchrank", "0.6")
    assert values["Top-1, %"] == str(patchrank.mean("top1"))
    assert values["To dense"] == str(patchrank.mean("diff_to_dense"))
    assert values["Batch 1, ms [IQR]"] == str(patchrank.latency[0].median_ms)
    assert values["Match at k (chance), %"] == str(patchrank.mean("match_at_k"))
    assert parsed.values[at - 1][parsed.tables[0].index("To dense")] is None


def test_not_measured_is_a_dash_and_never_zero(made: Any, row: Any) -> None:
    text, parsed = made([row("random", 0.6, 50)])
    heading, cells = parsed.tables
    assert cells == ["random", "60 %", "50.0 [42.0, 57.0]"]  # what no row has, has no column
    assert len(cells) == len(heading)
    _, parsed = made([row("random", 0.6, 50), row("random", 0.3, 40, 1.7)])
    assert [cells[parsed.tables[0].index("GFLOPs")] for cells in parsed.tables[1:3]] == ["–", "1.70"]
    assert "<svg" not in text


def test_markdown_has_the_same_cells_as_the_page(drawn: Any, records: list[Record]) -> None:
    _, parsed = drawn
    lines = [line for line in markdown_table(records).splitlines() if line.startswith("|")]
    cells = [line.strip("| ").split(" | ") for line in lines if "---" not in line]
    # On a page the columns that a summary has come first.
    assert [sorted(row) for row in cells] == [sorted(row) for row in parsed.tables]
    assert parsed.tables[0][:8] == [
        "Method", "Keep", "Top-1, %", "To dense", "GFLOPs", "Batch 1, × dense", "Batch 32, × dense", "Kendall τ",
    ]  # fmt: skip


def test_of_many_tables_the_first_are_drawn_and_the_page_says_so(records: list[Record], tmp_path: Any) -> None:
    many = [dataclasses.replace(record, dataset=f"set{at}") for at in range(7) for record in records[:1]]
    report = write_report(many, tmp_path, Progress(), drawn=())
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "Plots and pictures show the first 6 of 7 tables; --all-plots draws all." in text
    assert text.count("<table data-sortable") == 7
    assert "--all-plots" not in page(dataclasses.replace(report, most=None), "All")


def test_the_page_marks_what_is_clear_and_says_so(made: Any, dense: Record, patchrank: Record, row: Any) -> None:
    lost = row("random", 0.3, 40, diff_to_dense=-0.3, diff_low=-0.39, diff_high=-0.21)
    text, parsed = made([dense, patchrank, lost])
    cells = [line[3] for line in parsed.tables]
    assert cells == ["To dense", "–", "-2.0 [-5.1, +1.2]", "-30.0* [-39.0, -21.0]"]
    assert "agreement on 60 images. in the difference to dense: * clear of zero, all rows judged together" in text
    assert "*" not in markdown_table([dense, patchrank, lost])
