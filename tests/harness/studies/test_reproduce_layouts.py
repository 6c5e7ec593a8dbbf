"""Every table and figure of the paper by its command, on images of a few pixels in the datasets' real layout."""

import dataclasses
import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.cli.entry import main
from harness.models.towers import load_tower
from harness.records.record import read_records
from harness.studies import reproduce
from harness.studies.reproduce import PICTURES, TABLES, paper
from zoo.core.reducer import final_count

MODEL = "clip_vit_b32.openai"
SPLITS = {"train": 3, "val": 1, "test": 2}  # images of a class
# Where an image of class c and number n lies, and what lists them.
COOP = {
    "caltech101": ("caltech-101/101_ObjectCategories/{c}/image_{n:04}.jpg", "caltech-101/split_zhou_Caltech101.json"),
    "oxford-pets": ("oxford_pets/images/{c}_{n}.jpg", "oxford_pets/split_zhou_OxfordPets.json"),
    "flowers102": ("oxford_flowers/jpg/image_{c}{n:05}.jpg", "oxford_flowers/split_zhou_OxfordFlowers.json"),
    "food101": ("food-101/images/{c}/{n}.jpg", "food-101/split_zhou_Food101.json"),
    "dtd": ("dtd/images/{c}/{c}_{n:04}.jpg", "dtd/split_zhou_DescribableTextures.json"),
    "ucf101": ("ucf101/UCF-101-midframes/{c}/v_{c}_g{n:02}_c01.jpg", "ucf101/split_zhou_UCF101.json"),
}
CLASSES = ("banded", "pink_primrose", "pho")
SYNSETS = ("n01440764", "n01443537", "n02007558")
ROBUST = {
    "imagenetv2": ("imagenetv2/imagenetv2-matched-frequency-format-val", ("0", "1", "130")),
    "imagenet-a": ("imagenet-adversarial/imagenet-a", ("n01498041", "n01531178", "n12267677")),
    "imagenet-r": ("imagenet-rendition/imagenet-r", ("n01443537", "n01484850", "n12267677")),
    "imagenet-sketch": ("imagenet-sketch/images", SYNSETS),
}
FLAGS = (
    f"--model {MODEL} --limit 3 --train-limit 3 --seeds 1 --golden window=4,stride=4 --fit arch=mlp,width=4,epochs=1 "
    "--labelled 1 --tune rounds=1,count=1"
)


def write_images(paths: Iterable[Path]) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = np.random.default_rng(list(path.name.encode())).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(drawn).save(path, "JPEG")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of the paper's datasets, and those that are like ImageNet, with three classes each."""
    root = tmp_path_factory.mktemp("data")
    for pattern, file in COOP.values():
        images = root / pattern.partition("{")[0].rpartition("/")[0]
        lists = {split: [] for split in SPLITS}
        for label, name in enumerate(CLASSES):
            numbers = iter(range(1, 99))
            for split, count in SPLITS.items():
                places = [root / pattern.format(c=name, n=next(numbers)) for _ in range(count)]
                write_images(places)
                lists[split] += [[str(place.relative_to(images)), label, name] for place in places]
        (root / file).write_text(json.dumps(lists))
    craft, lists = root / "fgvc_aircraft", dict.fromkeys(SPLITS, "")
    variants = ("707-320", "F-16A/B", "A380")
    each = product(variants, [split for split, count in SPLITS.items() for _ in range(count)])
    for number, (variant, split) in enumerate(each, 1_000_001):
        write_images([craft / f"images/{number}.jpg"])
        lists[split] += f"{number} {variant}\n"
    (craft / "variants.txt").write_text("\n".join(variants))
    for split, text in lists.items():
        (craft / f"images_variant_{split}.txt").write_text(text)
    (root / "oxford_pets/annotations").mkdir()
    for synset in SYNSETS:  # one training image in five makes val
        write_images(root / f"imagenet/images/train/{synset}/{synset}_{i}.JPEG" for i in range(5))
        write_images(root / f"imagenet/images/val/{synset}/ILSVRC2012_val_{synset[1:]}{i}.JPEG" for i in range(2))
    for folder, classes in ROBUST.values():
        write_images(root / folder / name / f"{i}.jpg" for name in classes for i in range(2))
    return root


@pytest.fixture
def small_depth() -> int:
    return 12


@pytest.fixture
def small(small_clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every step of a command have one narrow B/32 of all blocks; loading takes longer than running it."""
    small_clip.cached(small_clip.original())
    tower = load_tower(MODEL)
    for place in ("studies.workshop", "golden.fit", "golden.rank", "apps.show"):
        monkeypatch.setattr(f"harness.{place}.load_tower", lambda name: tower)


def run(target: str, root: Path, *flags: str) -> int:
    return main(["study", "reproduce", target, "--root", str(root), *" ".join((FLAGS, *flags)).split()])


def test_every_dataset_of_the_paper_is_read(root: Path, small, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setitem(TABLES, "figure5", dataclasses.replace(TABLES["figure5"], keeps=(0.5,)))
    assert run("figure5", root, f"--output {tmp_path}") == 0, capsys.readouterr().err
    text = (tmp_path / "figure5.md").read_text()
    assert "NOT the paper's tower" in text
    datasets = paper("figure5").datasets
    assert {record.dataset for record in read_records(tmp_path / "figure5.jsonl")} == set(datasets)
    measured = [line.split(" | ") for line in text.splitlines() if "keep 50 | ours | " in line]
    assert measured
    assert all("–" not in row[2 : 2 + len(datasets)] for row in measured)


@pytest.mark.parametrize(("picture", "block"), PICTURES.items())
def test_a_picture_shows_what_each_ranking_keeps(picture, block, root, small, tmp_path: Path, monkeypatch, capsys):
    sheets, show = [], reproduce.show
    monkeypatch.setattr(reproduce, "show", lambda *args, **how: sheets.append(show(*args, **how)) or sheets[-1])
    flags = f"--dataset caltech101 dtd --output {tmp_path / 'out'}"
    assert run(picture, root, flags, "--dry-run") == 0
    assert not (tmp_path / "out").exists()
    assert run(picture, root, flags) == 0
    assert f"before block {3 if block is None else block}" in capsys.readouterr().out
    [sheet] = sheets
    rates = product((90, 70, 50), ("golden", "clsattn"))
    counts = {f"{name} {percent}": final_count(49, percent / 100) for percent, name in rates}
    assert list(sheet.columns) == list(counts)
    assert [row.name.partition(":")[0] for row in sheet.rows] == ["caltech101", "dtd"]
    for row in sheet.rows:
        assert {name: int((tokens >= 0).sum()) for name, tokens in row.tokens.items()} == counts
    with Image.open(tmp_path / "out" / f"{picture}.png") as image:
        assert min(image.size) > 300


def test_variants_of_imagenet_are_judged_by_its_predictor(root: Path, small, tmp_path: Path, capsys):
    datasets = ("imagenet", *ROBUST)
    assert run("table4", root, f"--dataset {' '.join(datasets)} --output {tmp_path}") == 0, capsys.readouterr().err
    for line in (tmp_path / "table4.md").read_text().splitlines():
        name, *cells = line.removeprefix("| ").split(" | ")
        if cells[:1] == ["ours"]:
            empty = [cell == "–" for cell in cells[1 : 1 + len(datasets)]]
            assert empty == [False, *[name == "Patch Ranking"] * len(ROBUST)], name
