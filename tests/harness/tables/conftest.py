"""Real records, and what it means that a table fits."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table as RichTable

from harness.base.table import Part, Table, fit, fit_pipe
from harness.records.record import Record, read_records

RESULTS = Path(__file__).parents[3] / "docs" / "results" / "records.jsonl"


@pytest.fixture(scope="package")
def records() -> list[Record]:
    return [row for row in read_records(RESULTS) if row.dataset == "emoji"]


@pytest.fixture
def fit() -> Callable[[Part, int | None], None]:
    """Check that no line is longer than a terminal and no figure cut; None for a pipe."""

    def check(part: Part, width: int | None) -> None:
        forms = part.forms() if isinstance(part, Table) else (part,)
        if width is None:
            shown, width = fit_pipe(forms[0])
            assert len(shown.columns) == len(forms[0].columns)
        else:
            shown = fit(forms, width)
        assert isinstance(shown, RichTable), "rows are stacked, and can't be compared"
        console = Console(file=io.StringIO(), width=width, force_terminal=False)
        console.print(shown)
        text = console.file.getvalue()
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        right = [c for column in shown.columns if column.justify == "right" for c in column.cells]
        figures = [console.render_str(str(cell)).plain for cell in right]
        assert [figure for figure in figures if figure not in text] == []

    return check
