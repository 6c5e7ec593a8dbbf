"""What moved, for people at 80 characters, for a pull request, and for programs."""

import io
import json

import pytest
from rich.console import Console

from harness.check.moved import Moved
from harness.check.sheet import Verdict
from harness.check.suspects import Suspects

TOWER = "clip_vit_s14.imgfocus_lit"


def one(**changed: object) -> Moved:
    told = {"tower": TOWER, "dataset": "fashion", "row": "patchrank30 reduce_at=[3,6]"}
    told |= {"quantity": "tau", "expected": 0.8092, "now": -0.8092, "by": -1.6184}
    return Moved(**{**told, "allowed": "0.8072 to 0.8112", **changed})


TOKENS = one(
    quantity="tokens_per_block",
    expected=(197, 197, 197, 60, 60, 60),
    now=(197, 197, 197, 59, 59, 58),
    by=None,
    allowed="nothing",
)
SUSPECTS = Suspects(begin=("0123abc",), commits=("1234567 A | change",), more=2, uncommitted=True)
FAILED = Verdict(
    rows=32, moved=(one(), TOKENS), notes=("threads: 2 expected, 1 now",), suspects=SUSPECTS
)


def printed(verdict: Verdict, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    for part in verdict.shown():
        console.print(part, highlight=False, markup=False)
    return console.export_text()


def test_a_check_that_failed_says_what_moved_by_how_much_and_exits_with_1():
    assert FAILED.shown().code == 1
    assert FAILED.summary == "check failed: 2 quantities moved in 1 of 32 rows"
    text = printed(FAILED, 160)
    assert "197×3 60×3" in text
    assert "197×3 59×2 58" in text
    assert "-1.6184" in text
    assert text.splitlines()[-1].strip() == FAILED.summary


@pytest.mark.parametrize("width", [80, 160])
def test_no_line_is_longer_than_the_terminal_and_no_figure_is_cut(width: int):
    text = printed(FAILED, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for figure in ("0.8092", "-0.8092", "-1.6184"):
        assert figure in text


def test_a_check_that_passed_says_so_in_one_line_and_exits_with_0():
    shown = Verdict(rows=1, moved=()).shown()
    assert (shown.code, list(shown)) == (0, ["check passed: nothing moved in 1 row"])


def test_an_update_has_no_bounds_and_exits_with_0():
    update = Verdict(rows=32, moved=(one(),), update=True)
    assert update.shown().code == 0
    assert update.summary == "expectation written: 1 quantity changed in 1 of 32 rows"
    assert "allowed" not in printed(update, 160)
    assert "0.8072 to 0.8112" not in update.markdown()


def test_markdown_has_a_table_the_conditions_and_the_suspects():
    assert FAILED.markdown() == (
        "### check failed: 2 quantities moved in 1 of 32 rows\n"
        "\n"
        f"`{TOWER}`\n"
        "\n"
        "| row | quantity | expected | now | moved by | allowed |\n"
        "| --- | --- | ---: | ---: | ---: | ---: |\n"
        "| fashion patchrank30 reduce_at=[3,6] | tau | 0.8092 | -0.8092 | -1.6184 | "
        "0.8072 to 0.8112 |\n"
        "| fashion patchrank30 reduce_at=[3,6] | tokens_per_block | 197×3 60×3 | "
        "197×3 59×2 58 | – | nothing |\n"
        "\n"
        "- threads: 2 expected, 1 now\n"
        "- suspects, since 0123abc (touch zoo/, baselines/, harness/):\n"
        "  - uncommitted changes\n"
        "  - 1234567 A &#124; change\n"
        "  - and 2 more\n"
    )


def test_data_is_plain_json_with_numbers_as_they_are():
    data = json.loads(json.dumps(FAILED.data(), allow_nan=False))
    assert (data["passed"], data["updated"], data["rows"]) == (False, False, 32)
    assert data["moved"][0]["by"] == -1.6184
    assert data["moved"][1]["now"] == [197, 197, 197, 59, 59, 58]
    assert data["suspects"]["more"] == 2


def test_what_a_file_holds_cannot_steer_the_terminal():
    assert "\x1b[2J" not in printed(Verdict(rows=1, moved=(one(quantity="x", now="\x1b[2J"),)))
