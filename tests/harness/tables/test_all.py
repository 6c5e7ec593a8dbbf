"""No table of ours is left out of these tests."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[3]
# What makes forms of a table, or tables of pages, which have no width; or folds every column.
BELOW = ("console.table", "report.sections", "check.verdict")

# Filled by its callers; tested at every width in test_times.py; written as Markdown alone, tested in test_groups.py.
ELSEWHERE = ("table_of", "latency_table", "equal_time_tables", "brief_tables")


def tables() -> list[tuple[str, str]]:
    """Return module and name of every function that makes a table."""
    found = []
    for path in (ROOT / "harness").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            returns = isinstance(node, ast.FunctionDef) and node.returns
            if returns and ast.unparse(returns) in ("Table", "list[Table]"):
                found.append((module, node.name))
    return [
        (module, name)
        for module, name in found
        if module.partition(".")[2] not in BELOW and name[0] != "_" and name not in ELSEWHERE
    ]


def test_every_table_is_made_to_fit_here():
    text = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    missing = [(module, name) for module, name in tables() if not (f"from {module} " in text and f"{name}(" in text)]
    assert len(tables()) >= 15
    assert missing == []
