"""The user's own images through the commands: the same answers, and no record taken for another."""

import io
from collections.abc import Callable
from pathlib import Path

import datasets
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


@pytest.fixture
def tars(tmp_path: Path, tarred: Callable[..., bytes]) -> Path:
    """The same in two tars, as CLIP_benchmark writes them."""
    folder, fashion = tmp_path / "tars", get_dataset("fashion")
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text("2\n")
    (folder / "classnames.txt").write_text("\n".join(fashion.classes) + "\n")
    templates = "".join(t.replace("{}", "{c}") + "\n" for t in fashion.templates)
    (folder / "zeroshot_classification_templates.txt").write_text(templates)
    for shard in range(2):
        members: dict[str, bytes] = {}
        for number, example in enumerate(fashion_images()):
            if number * 2 // COUNT == shard:
                image = io.BytesIO()
                example.image.save(image, "webp", lossless=True)
                members[f"s{number:07d}.webp"] = image.getvalue()
                members[f"s{number:07d}.cls"] = str(example.label).encode()
        (folder / "test" / f"{shard}.tar").write_bytes(tarred(members, "w"))
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """The same as `datasets` saves it."""
    datasets.disable_progress_bars()
    images = [example.image for example in fashion_images()]
    labels = [example.label for example in fashion_images()]
    names = datasets.ClassLabel(names=list(get_dataset("fashion").classes))
    features = datasets.Features({"image": datasets.Image(), "label": names})
    rows = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    datasets.DatasetDict(test=rows).save_to_disk(tmp_path / "rows")
    datasets.enable_progress_bars()
    return tmp_path / "rows"


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


def test_the_same_images_are_right_wherever_they_lie(folder: Path, tars: Path, table: Path, measured: Measured):
    """Random pruning judges every image alike, so its answers may be compared as well."""
    fashion = get_dataset("fashion")
    own = measured("--dataset", "fashion", "--limit", str(COUNT))
    wanted = [right_by_image(record, "fashion") for record in own]
    given = {
        "folder-items": ["--dataset", f"folder:{folder}", "--templates", *fashion.templates],
        "hfds-rows": ["--dataset", f"hfds:{table}", "--templates", *fashion.templates],
        "wds-tars": ["--dataset", f"wds:{tars}"],
    }
    for name, flags in given.items():
        records = measured(*flags)
        assert [record.dataset for record in records] == [name] * 2
        assert [record.image_count for record in records] == [COUNT] * 2
        assert get_dataset(flags[1]).classes == fashion.classes
        assert [right_by_image(record, flags[1]) for record in records] == wanted
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
