"""Pages are safe, whole and offline."""

import base64
import dataclasses
import hashlib
import itertools
import re
from typing import Any

from harness.picture import Picture
from harness.records import Record
from harness.report.sections import markdown_table

HOSTILE = "<script>alert(\"1\")</script> $\\frac{ & | \n 'x' ![](http://a.b)"


def test_the_page_loads_nothing_and_follows_the_readers_colours(drawn: Any) -> None:
    text, parsed = drawn
    assert {"svg", "style", "table"} <= set(parsed.tags)
    assert not {"link", "img", "iframe", "image", "object"} & set(parsed.tags)
    assert all(target and target.startswith("#") for _, target in parsed.links)
    assert set(re.findall(r'https?://[^"<\s]*', text)) == {  # the names of XML vocabularies
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    }
    assert "url(http" not in text
    assert "@import" not in text
    for wish in ("prefers-color-scheme: dark", "prefers-reduced-motion", "@media print"):
        assert wish in text
    assert "currentColor" in text
    assert not re.search(r"\d{4}-\d{2}-\d{2}T", text)


def test_only_our_script_may_run_and_nothing_may_be_fetched(drawn: Any) -> None:
    text, parsed = drawn
    assert parsed.tags.count("script") == 1
    script = text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    told = dict(part.split(" ", 1) for part in policy.split("; "))
    assert told == {
        "default-src": "'none'",
        "script-src": f"'sha256-{digest}'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not re.search(r"\son\w+=", text)


def test_headings_are_in_order_and_links_lead_somewhere_once(drawn: Any) -> None:
    _, parsed = drawn
    levels = [int(heading[1]) for heading in parsed.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert len(set(parsed.ids)) == len(parsed.ids)
    targets = {target.removeprefix("#") for _, target in parsed.links if target}
    assert targets <= set(parsed.ids)
    assert len([target for target in targets if target.startswith("table-")]) == 2


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
    hostile = dataclasses.replace(
        dense,
        model=HOSTILE,
        tag=HOSTILE,
        dataset=HOSTILE,
        device_name=HOSTILE,
        method_config={HOSTILE: HOSTILE},
    )
    other = dataclasses.replace(hostile, method=HOSTILE, keep=0.5, gflops=2.0)
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
        Picture(name=name, title=f"Title {name}", about="How to read it.", alt="What is seen.",
                svg=svg, png=b"")
        for name in ("one", "two")
    ]  # fmt: skip
    text, parsed = made([dense], pictures=pictures)
    for name in ("one", "two"):
        assert f'<path id="{name}-a"/>' in text
        assert f'<use href="#{name}-a" fill="url(#{name}-a)" color="currentColor"/>' in text
        assert f'<a href="#{name}">Title {name}</a>' in text
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert "Rankings and kept patches" in text
    assert "DOCTYPE svg" not in text
    assert "Rankings and kept patches" not in made([dense])[0]


def test_the_same_records_give_the_same_page(made: Any, drawn: Any, records: list[Record]) -> None:
    assert made(records)[0] == drawn[0]
