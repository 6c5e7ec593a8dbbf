"""Every table and figure of the paper by its command, on images of a few pixels in the datasets' real layout."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zoo
from harness.apps import show
from harness.cli import main
from harness.models.towers import Tower, load_tower
from harness.records.record import read_records
from harness.studies.paper import PICTURES, REPRODUCTIONS, get_reproduction

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
    f"--model {MODEL} --limit 3 --train-limit 3 --seeds 1 --window 4 --stride 4 --arch mlp --width 4 --epochs 1 "
    "--labelled 1 --rounds 1 --num-tokens 1"
)
TWO = ("caltech101", "oxford-pets")


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
        images, below = root / pattern.partition("{")[0].rpartition("/")[0], pattern
        lists = {split: [] for split in SPLITS}
        for label, name in enumerate(CLASSES):
            numbers = iter(range(1, 99))
            for split, count in SPLITS.items():
                places = [root / below.format(c=name, n=next(numbers)) for _ in range(count)]
                write_images(places)
                lists[split] += [[str(place.relative_to(images)), label, name] for place in places]
        (root / file).write_text(json.dumps(lists))
    craft, lists = root / "fgvc_aircraft", dict.fromkeys(SPLITS, "")
    numbers = iter(range(1_000_001, 1_000_099))
    variants = ("707-320", "F-16A/B", "A380")
    for variant in variants:
        for split, count in SPLITS.items():
            for number in (next(numbers) for _ in range(count)):
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
    """Number of blocks of B/32."""
    return 12


@pytest.fixture
def cached(small_clip) -> None:
    """B/32 with all of its blocks and patches but narrow, its weights read from a hub's cache."""
    small_clip.cached(small_clip.original())


def load_once(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every step of a command have the same tower; loading takes longer than running it."""
    for place in ("studies.run", "studies.workshop", "studies.reproduce", "golden.fit", "golden.rank", "apps.show"):
        monkeypatch.setattr(f"harness.{place}.load_tower", lambda name: tower)


@pytest.fixture
def small(cached, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load that tower once."""
    load_once(load_tower(MODEL), monkeypatch)


@pytest.fixture(scope="module")
def whole() -> Tower:
    """The real B/32 with random weights."""
    parts = zoo.create_clip(MODEL, pretrained=False)
    return Tower(parts.model.visual, parts.preprocess, MODEL, parts)


@pytest.fixture
def real(whole: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the real B/32, without its weights."""
    load_once(whole, monkeypatch)


def run(target: str, root: Path, *flags: str) -> int:
    return main(["study", "reproduce", target, "--root", str(root), *" ".join((FLAGS, *flags)).split()])


def check(target: str, datasets: tuple[str, ...], folder: Path) -> None:
    """Each row has a figure of ours of each dataset, and the paper's stand beside them."""
    text = (folder / f"{target}.md").read_text()
    assert "NOT the paper's tower: what differs" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    ours = {row[0]: row for row in rows[2:] if row[1] == "ours"}
    assert len(ours) == len({row[0] for row in rows[2:]} - {""}) > 2
    for name, row in ours.items():
        assert row[2 : 2 + len(datasets)].count("–") == 0, (target, name)
    assert any(row[1] == "paper" for row in rows)
    assert {record.dataset for record in read_records(folder / f"{target}.jsonl")} == set(datasets)
    assert (folder / f"{target}.svg").exists() == bool(get_reproduction(target).axis)


@pytest.mark.parametrize("target", [one.name for one in REPRODUCTIONS])
def test_a_table_is_made_by_its_command(target: str, root: Path, small, tmp_path: Path, capsys):
    recipe = get_reproduction(target)
    datasets = (*TWO, "imagenet") if recipe.general else TWO if recipe.joint else TWO[:1]
    flags = [f"--dataset {' '.join(datasets)} --output {tmp_path}"]
    if recipe.axis:  # costs are counted for each rate
        flags += ["--keeps 0.5"]
    assert run(target, root, *flags) == 0, capsys.readouterr().err
    check(target, datasets, tmp_path)


def test_without_datasets_they_are_the_paper_s(root: Path, small, tmp_path: Path, capsys):
    assert run("table6", root, f"--output {tmp_path}") == 0, capsys.readouterr().err
    check("table6", get_reproduction("table6").datasets, tmp_path)


@pytest.mark.parametrize("target", ["figure3", "table4"])
def test_a_dry_run_reads_all_datasets(target: str, root: Path, small, capsys, tmp_path: Path):
    assert run(target, root, f"--dry-run --json --output {tmp_path / 'out'}") == 0
    [plan] = json.loads(capsys.readouterr().out)["plans"]
    assert plan["missing"] == {}
    assert plan["passes"] > 0
    assert not (tmp_path / "out").exists()


def test_the_real_b32_makes_a_table(root: Path, real, tmp_path: Path, capsys):
    flags = "--keeps 1.0 0.75 0.5 --dataset dtd"
    assert run("figure5", root, flags, f"--output {tmp_path}") == 0, capsys.readouterr().err
    check("figure5", ("dtd",), tmp_path)
    assert {record.keep for record in read_records(tmp_path / "figure5.jsonl")} == {1.0, 0.75, 0.5}


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_the_real_b32_draws_a_picture(picture, root: Path, real, tmp_path: Path, monkeypatch, capsys):
    sheets, drawn = [], show.draw
    monkeypatch.setattr(show, "draw", lambda sheet, scale: sheets.append(sheet) or drawn(sheet, scale))
    names = " ".join(picture.datasets)
    assert run(picture.name, root, f"--keeps 0.75 0.5 --dataset {names} --output {tmp_path}") == 0
    out = capsys.readouterr().out
    assert f"before block {3 if picture.block is None else picture.block}" in out
    [sheet] = sheets
    assert list(sheet.columns) == ["golden 75", "clsattn 75", "golden 50", "clsattn 50"]
    assert [row.name.partition(":")[0] for row in sheet.rows] == list(picture.datasets)
    for row in sheet.rows:
        assert {name: int((tokens >= 0).sum()) for name, tokens in row.tokens.items()} == {
            "golden 75": 37, "clsattn 75": 37, "golden 50": 24, "clsattn 50": 24,
        }  # fmt: skip
    with Image.open(tmp_path / f"{picture.name}.png") as image:
        assert min(image.size) > 300


def test_variants_of_imagenet_are_judged_by_its_predictor(root: Path, small, tmp_path: Path, capsys):
    datasets = ("imagenet", *ROBUST)
    assert run("table4", root, f"--dataset {' '.join(datasets)} --output {tmp_path}") == 0, capsys.readouterr().err
    lines = (tmp_path / "table4.md").read_text().splitlines()
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in lines if " | ours | " in line}
    for name, row in rows.items():
        cells = row[2 : 2 + len(datasets)]
        assert [cell == "–" for cell in cells] == [False, *[name == "Patch Ranking"] * len(ROBUST)], name
