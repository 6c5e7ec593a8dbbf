"""What tells a dataset taken one way from the same taken another way."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from harness.datasets import Options, forget, get_dataset, names_of
from harness.golden.store import ranked_revision


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    forget()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of two classes."""
    for name in ("bag", "dress"):
        (tmp_path / "items" / name).mkdir(parents=True)
        Image.new("RGB", (len(name), 9)).save(tmp_path / "items" / name / "1.png")
    return tmp_path / "items"


def condition(*given: str, **options: object) -> str:
    [name] = names_of(given, Options(**options))  # type: ignore[arg-type]
    return get_dataset(name).condition


def test_records_tell_templates_images_and_what_is_left_out(folder: Path):
    asked = f"folder:{folder}"
    plain = condition(asked)
    assert plain == condition(asked) == condition(asked, templates=["a photo of a {}."])
    seen = {plain, condition(asked, templates=["a {}"]), condition(asked, templates=["a {}", "{}"])}
    (folder / "bag" / "bad.png").write_text("no image")
    seen |= {condition(asked), condition(asked, skip_bad=True)}
    assert len(seen) == 5


def test_rankings_go_by_images_and_by_prompts_where_these_matter(folder: Path):
    [name] = names_of([f"folder:{folder}"], Options(templates=["a {}"]))
    dataset = get_dataset(name)
    assert ranked_revision(dataset, "preservation") == dataset.revision != dataset.condition
    for score in ("label", "confidence"):
        assert ranked_revision(dataset, score) == dataset.condition
