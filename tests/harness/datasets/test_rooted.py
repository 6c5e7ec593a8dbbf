"""One contract over all public datasets, on small copies packed as their sources ship them."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.cli import main
from harness.datasets import get_dataset, list_datasets
from harness.datasets.base import SPLITS
from harness.datasets.rooted import RootedDataset
from harness.records.averages import captions

NAMES = [name for name in list_datasets() if isinstance(get_dataset(name), RootedDataset)]
ZHOU = [name for name in NAMES if hasattr(get_dataset(name), "split_file")]
FOLDERS = [name for name in NAMES if name.startswith("imagenet")]
Ship = Callable[..., object]


def file_of(dataset: RootedDataset, image_id: str) -> Path:
    """Find the file of an image; many a class has one of the same name."""
    *_, folder, name = image_id.split("/")
    found = [path for path in dataset.place.rglob("*") if path.name == name]
    [file] = [path for path in found if path.parent.name == folder] or found
    return file


def test_there_are_fifteen():
    assert (len(NAMES), len(ZHOU), len(FOLDERS)) == (15, 9, 5)


@pytest.mark.parametrize("name", NAMES)
def test_facts_are_known_without_a_root(name: str):
    dataset = get_dataset(name)
    assert set(dataset.counts) == set(SPLITS)
    assert dataset.counts["test"] > 0
    assert dataset.captions_seen == (True,) * dataset.class_count
    assert captions(name) == "text classifier"
    [template] = dataset.templates
    assert template.count("{}") == 1
    for text in (dataset.title, dataset.license, dataset.source):
        assert text == text.strip() != ""
    assert dataset.homepage.startswith("https://")
    for archive in dataset.archives:
        assert archive.page.startswith("https://")
        assert archive.url is None or archive.url.startswith("https://")
        for told in archive.checksums:
            kind, _, digits = told.partition(":")
            assert len(bytes.fromhex(digits)) == {"md5": 16, "sha256": 32}[kind]
    with pytest.raises(FileNotFoundError, match=f"'{name}' isn't shipped here; .*--root FOLDER"):
        dataset.split("test")
    with pytest.raises(FileNotFoundError, match="--root"):
        _ = dataset.revision


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_unpacked_and_read(name: str, ship: Ship, tmp_path: Path):
    copy = ship(name)
    dataset = get_dataset(name).at(tmp_path)
    for split in SPLITS:
        wanted, found = sorted(copy.examples[split]), dataset.split(split)
        pairs = zip(found.image_ids, found.labels.tolist(), strict=True)
        assert sorted(pairs) == [(image_id, label) for image_id, label, _ in wanted]
        pictures = {example.image_id: example for example in found}
        for image_id, label, content in wanted:
            example = pictures[image_id]
            assert example.label == label
            decoded = Image.open(io.BytesIO(content)).convert("RGB")
            assert np.array_equal(example.image, decoded)
            assert str(tmp_path) not in image_id
    assert get_dataset(name).at(tmp_path).revision == dataset.revision
    assert len(dataset.revision) == 12
    assert list(tmp_path.rglob("*.unpacking")) == []


@pytest.mark.parametrize("name", NAMES)
def test_problems_tell_a_copy_from_the_whole(name: str, ship: Ship, tmp_path: Path):
    copy = ship(name)
    dataset = get_dataset(name).at(tmp_path)
    found = "\n".join(dataset.problems())
    for split in SPLITS:
        whole, there = dataset.counts[split], len(copy.examples[split])
        assert (f"{split}: {there:,} images instead of {whole:,}" in found) == (there != whole)
    if name in FOLDERS:
        labels = {label for _, label, _ in copy.examples["test"]}
        assert "class folders missing in" in found
        assert f"test: no image of {dataset.class_count - len(labels)} classes" in found
    else:
        assert f"classes: {len(dataset.classes)} instead of {dataset.class_count}" in found
    assert "md5" not in found
    for archive in dataset.archives:
        if (file := archive.find(dataset.place)) and archive.checksums:
            file.write_bytes(b"another")
            [line] = [line for line in dataset.problems() if str(file) in line]
            assert f"expected {archive.checksums[0]}" in line


@pytest.mark.parametrize("name", NAMES)
def test_nothing_there_names_the_folder_the_file_and_the_way(name: str, tmp_path: Path):
    dataset = get_dataset(name)
    with pytest.raises(FileNotFoundError, match=r"--root '.*none': there is no such folder"):
        dataset.at(tmp_path / "none")
    with pytest.raises(FileNotFoundError) as caught:
        dataset.at(tmp_path)
    text = str(caught.value)
    assert str(tmp_path / dataset.folder) in text
    for archive in dataset.archives:
        if not archive.optional:
            assert archive.file in text
            assert archive.page in text
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file; give a folder"):
        dataset.at(tmp_path / "file")


@pytest.mark.parametrize("name", NAMES)
def test_a_corrupt_image_is_named_when_it_is_read(name: str, ship: Ship, tmp_path: Path):
    ship(name)
    dataset = get_dataset(name).at(tmp_path)
    before = dataset.revision
    image_id = dataset.split("test").image_ids[1]
    file = file_of(dataset, image_id)
    file.write_bytes(file.read_bytes()[:100])
    changed = get_dataset(name).at(tmp_path)
    assert changed.split("test")[0].image.mode == "RGB"
    with pytest.raises(ValueError, match=f"image '.*{file.name}' can't be read"):
        changed.split("test")[1]
    assert changed.revision != before
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"image '.*{file.name}' of '{name}' is missing"):
        changed.split("test")[1]
    if name not in FOLDERS:
        lines = get_dataset(name).at(tmp_path).problems()
        [line] = [line for line in lines if "missing image" in line]
        assert file.name in line


@pytest.mark.parametrize("name", NAMES)
def test_unpacked_by_hand_does_as_well(name: str, ship: Ship, tmp_path: Path):
    copy = ship(name)
    first = get_dataset(name).at(tmp_path)
    facts = (first.revision, first.split("test").image_ids)
    for file in (file for file in copy.archives if not file.endswith(".json")):
        (first.place / file).unlink()
    shutil.move(first.place, tmp_path / "elsewhere")
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / first.folder).symlink_to(tmp_path / "elsewhere")
    second = get_dataset(name).at(tmp_path / "moved")
    assert (second.revision, second.split("test").image_ids) == facts


@pytest.mark.parametrize(("file", "content", "match"), [
    ("variants.txt", b"707-320\n707-320\n", r"variants.txt' names a variant twice"),
    ("variants.txt", b"\n", r"variants.txt' is empty"),
    ("variants.txt", b"707\xff", r"variants.txt' is no text"),
    ("images_variant_val.txt", b"1000000 MiG\n", r"val.txt', line 1: '1000000 MiG' isn't"),
    ("images_variant_val.txt", b"../x 707-320\n", r"line 1: '../x 707-320' isn't the number"),
    ("images_variant_test.txt", b"0000000 707-320\n", r"image 0000000 is in images_.*train"),
    ("images_variant_test.txt", b"\x80\4\x95", r"test.txt' is no text"),
])  # fmt: skip
def test_lists_that_lie(file: str, content: bytes, match: str, ship: Ship, tmp_path: Path):
    ship("fgvc-aircraft")
    found = get_dataset("fgvc-aircraft").at(tmp_path)
    (found.place / file).write_bytes(content)
    with pytest.raises(ValueError, match=match):
        found.split("test")
    (found.place / file).unlink()
    match = rf"{file}' of 'fgvc-aircraft' is missing; it is in 'fgvc-aircraft-2013b.tar.gz', below"
    with pytest.raises(FileNotFoundError, match=match):
        found.split("test")


def test_a_command_counts_and_names_them_or_leaves_them_out(
    ship: Ship, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    ship("dtd")
    dataset = get_dataset("dtd").at(tmp_path)
    file_of(dataset, dataset.split("test").image_ids[0]).unlink()
    monkeypatch.setattr("harness.models.towers.create_clip", lambda *_, **__: pytest.fail("worked"))
    words = ["eval", "clip_vit_s14_random60", "--dataset", "dtd", "--root", str(tmp_path)]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "1 missing image in" in error
    assert "or leave them out with --skip-bad" in error
    with pytest.raises(pytest.fail.Exception, match="worked"):
        main([*words, "--skip-bad"])
    assert "left out, as they can't be read: 1 image;" in capsys.readouterr().err


PAGE = Path(__file__).parents[3] / "docs" / "datasets.md"


def row(dataset: RootedDataset) -> str:
    """Lay out a line of the table."""
    counts = " / ".join(f"{n:,}" if n else "–" for n in dataset.counts.values())
    by_hand = [archive.file for archive in dataset.archives if archive.url is None]
    by_hand = [file for file in by_hand if file not in {a.holds for a in dataset.archives}]
    chance, hand = f"{100 / dataset.class_count:.3g} %", ", ".join(f"`{file}`" for file in by_hand)
    cells = (
        f"`{dataset.name}`", f"[{dataset.title}]({dataset.homepage})", f"{dataset.class_count:,}",
        counts, chance, f"`{dataset.templates[0]}`", dataset.license, dataset.source,
        hand or "nothing",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def files_line(dataset: RootedDataset) -> str:
    """Lay out a line of the list of files."""
    names = []
    for archive in dataset.archives:
        sums = " or ".join(f"`{told}`" for told in archive.checksums) or "no published sum"
        names.append(f"`{archive.file}` ({sums})")
    return f"- `{dataset.name}` in `{dataset.folder}/`: {'; '.join(names)}"


def test_the_page_has_a_line_of_each_and_of_no_other():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    for name in NAMES:
        dataset = get_dataset(name)
        assert row(dataset) in lines
        assert files_line(dataset) in lines
        assert sum(line.startswith(f"- `{name}`: ") for line in lines) == 1  # its paper
    assert sum(line.startswith("| `") for line in lines) == len(NAMES)
