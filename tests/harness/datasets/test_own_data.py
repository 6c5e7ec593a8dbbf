"""The user's own images through the commands: the same answers, and no record taken for another."""

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli.entry import main
from harness.cli.measure import evaluated
from harness.datasets import get_dataset
from harness.datasets.base import Example
from harness.datasets.few_shot import subset
from harness.records.record import Record

COUNT = 10  # images of fashion


def fashion_images() -> list[Example]:
    """Draw those that ``--limit`` takes."""
    return list(subset(get_dataset("fashion").split("test"), COUNT))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The first images of fashion as PNG files, in the order of its classes."""
    folder = tmp_path / "items"
    classes = get_dataset("fashion").classes
    for number, example in enumerate(fashion_images()):
        place = folder / f"{example.label}_{classes[example.label]}" / f"{number:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        example.image.save(place)
    lines = [f"{i}_{name}\t{name}" for i, name in enumerate(classes)]
    (folder / "classes.txt").write_text("\n".join(lines))
    return folder


Measured = Callable[..., list[Record]]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Run `eval` and return its records."""
    records: list[Record] = []

    def call(*flags: str) -> list[Record]:
        assert main(["eval", "--model", "clip_vit_s14_random60", *flags]) == 0
        return list(records)

    def kept(*args: object) -> list[list[Record]]:
        [records[:]] = groups = list(evaluated(*args))  # type: ignore[arg-type]
        return groups

    monkeypatch.setattr("harness.cli.measure.evaluated", kept)
    return call


def right_by_image(record: Record, dataset: str) -> dict[bytes, bool]:
    split = subset(get_dataset(dataset).split("test"), COUNT)
    images = [example.image.tobytes() for example in split]
    return dict(zip(images, record.correct.tolist(), strict=True))


def test_the_same_images_are_right_wherever_they_lie(folder: Path, measured: Measured):
    """Random pruning judges every image alike, so its answers may be compared as well."""
    fashion = get_dataset("fashion")
    own = measured("--dataset", "fashion", "--limit", str(COUNT))
    wanted = [right_by_image(record, "fashion") for record in own]
    records = measured("--dataset", f"folder:{folder}", "--templates", *fashion.templates)
    assert [(record.dataset, record.image_count) for record in records] == [("folder-items", COUNT)] * 2
    assert get_dataset(f"folder:{folder}").classes == fashion.classes
    assert [right_by_image(record, f"folder:{folder}") for record in records] == wanted
    assert 0 < records[0].mean("top1") < 1
    assert own[0].dataset_revision == fashion.revision


def test_a_damaged_image_stops_with_its_name(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "8_bag" / "bad.png").write_bytes(b"\x89PNG")
    command = ["eval", "--model", "clip_vit_s14_random60", "--dataset", f"folder:{folder}"]
    assert main(command) == 2
    err = capsys.readouterr().err
    assert f"error: image '{folder / '8_bag' / 'bad.png'}' can't be read" in err
    assert "--skip-bad" in err
    assert main([*command, "--skip-bad"]) == 0
    assert "(test, 10 images" in capsys.readouterr().out
    assert main(command) == 2
    assert "as was found before: 1; the first: image '" in capsys.readouterr().err
