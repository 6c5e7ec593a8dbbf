"""What tells a dataset taken one way from the same taken another way."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from harness.datasets import Dataset, forget, get_dataset, names_of
from harness.golden.store import ranked_revision
from harness.measure.bench import blank
from harness.measure.plan import Plan
from harness.measure.rows import Variant
from harness.records.record import fitting, images_digest


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
    [name] = names_of(given, **options)  # type: ignore[arg-type]
    return get_dataset(name).condition


def test_records_tell_templates_images_and_what_is_left_out(folder: Path):
    asked = f"folder:{folder}"
    plain = condition(asked)
    assert plain == condition(asked) == condition(asked, templates=["a photo of a {}."])
    other = condition(asked, templates=["a {}"])
    assert other.startswith(f"{plain}-")
    seen = {plain, other, condition(asked, templates=["a {}", "{}"])}
    (folder / "bag" / "bad.png").write_text("no image")
    seen |= {condition(asked), condition(asked, skip_bad=True)}
    seen |= {condition(asked, skip_bad=True, templates=["a {}"])}
    assert len(seen) == 6
    fashion = get_dataset("fashion").revision
    assert condition("fashion") == condition("fashion", skip_bad=False) == fashion
    assert condition("fashion", templates=["a {}"]).startswith(f"{fashion}-")
    assert condition("fashion") == fashion  # nothing is left of what another command said


def test_rankings_go_by_images_and_by_prompts_where_these_matter(folder: Path):
    [name] = names_of([f"folder:{folder}"], templates=["a {}"])
    dataset = get_dataset(name)
    assert ranked_revision(dataset, "preservation") == dataset.revision != dataset.condition
    for score in ("label", "confidence"):
        assert ranked_revision(dataset, score) == dataset.condition


def test_a_record_of_other_prompts_is_not_used_again(toy: Dataset):
    vit = SimpleNamespace(input_size=(64, 64))
    row = Variant(model="m", method="dense", keep=1.0, config={}, vit=vit)
    plan = Plan(models=("m",), methods=(), keeps=(), datasets=("toy",), shots=(0,))
    options = {"plan": plan, "tag": "t", "weights": "w"}
    tuning, ids = plan.tunings(0)[0], toy.split("test").image_ids[:4]
    known = blank(row, toy, tuning, ids, **options)
    assert (known.images_sha256, known.image_size) == (images_digest(ids), (64, 64))
    assert fitting(blank(row, toy, tuning, ids, **options), [known], ()) is known
    assert fitting(blank(row, toy, tuning, ids[::-1], **options), [known], ()) is None
    for other in (toy.with_templates(["a {}"]), toy.without([toy.split("test").image_ids[0]])):
        assert fitting(blank(row, other, tuning, ids, **options), [known], ()) is None
