"""The page about public datasets says what their files say."""

from pathlib import Path

import pytest

from harness.datasets import get_dataset, list_datasets
from harness.datasets.rooted import RootedDataset

PAGE = Path(__file__).parents[3] / "docs" / "datasets.md"
NAMES = [name for name in list_datasets() if isinstance(get_dataset(name), RootedDataset)]


def row(dataset: RootedDataset) -> str:
    """Lay out a line of the table."""
    counts = " / ".join(f"{n:,}" if n else "–" for n in dataset.counts.values())
    by_hand = [archive.file for archive in dataset.archives if archive.url is None]
    by_hand = [file for file in by_hand if file not in {a.holds for a in dataset.archives}]
    cells = (
        f"`{dataset.name}`",
        f"[{dataset.title}]({dataset.homepage})",
        f"{dataset.class_count:,}",
        counts,
        f"{100 * dataset.chance:.3g} %",
        f"`{dataset.templates[0]}`",
        dataset.license,
        dataset.source,
        ", ".join(f"`{file}`" for file in by_hand) or "nothing",
    )
    return f"| {' | '.join(cells)} |"


def files(dataset: RootedDataset) -> str:
    """Lay out a line of the list of files."""
    names = []
    for archive in dataset.archives:
        sums = " or ".join(f"`{told}`" for told in archive.checksums) or "no published sum"
        names.append(f"`{archive.file}` ({sums})")
    return f"- `{dataset.name}` in `{dataset.folder}/`: {'; '.join(names)}"


def citation(dataset: RootedDataset) -> str:
    return f"- `{dataset.name}`: {dataset.citation}"


@pytest.mark.parametrize("name", NAMES)
def test_the_page_has_its_line(name: str):
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    dataset = get_dataset(name)
    for wanted in (row(dataset), files(dataset), citation(dataset)):
        assert wanted in lines


def test_the_page_has_no_other_dataset():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("| `") for line in lines) == len(NAMES)
