"""Which images a figure is asked for, and what is known about them."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.datasets import get_dataset
from harness.golden.pictures import find_pictures


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with two images and a text."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (30, 20), "red").save("red.png")
    Image.new("RGBA", (8, 8), (0, 0, 255, 128)).save("blue.png")
    Path("words.txt").write_text("no image")
    return tmp_path


def test_a_place_in_a_dataset():
    [picture] = find_pictures(["fashion:val:3"])
    fashion = get_dataset("fashion")
    example = fashion.split("val")[3]
    assert picture.name == "fashion:val:3"
    assert (np.asarray(picture.image) == np.asarray(example.image)).all()
    assert picture.classes[picture.label] == "dress"
    assert (picture.label, picture.classes) == (example.label, fashion.classes)
    assert picture.templates == fashion.templates


def test_a_file_alone(here: Path):
    [red, blue] = find_pictures([str(here / "red.png"), "blue.png"])
    assert (red.name, red.label, red.classes) == ("red.png", None, ())
    assert red.image.size == (30, 20)
    assert red.image.getpixel((5, 5)) == (255, 0, 0)
    assert blue.image.mode == "RGB"


def test_files_beside_places_have_the_classes_that_are_named(here: Path):
    places = ["emoji:val:2", "red.png", "fashion:test:0", "blue.png"]
    found = find_pictures(places, dataset="fashion", labels=["bag", "coat"])
    assert [picture.name for picture in found] == places
    labels = [picture.classes[picture.label] for picture in found]
    assert labels == ["smiley or emotion", "bag", "t-shirt", "coat"]
    assert found[1].templates == get_dataset("fashion").templates


def test_one_label_serves_all_files_and_one_file_may_have_several(here: Path):
    found = find_pictures(["red.png", "blue.png"], classes=["cat", "dog"], labels=["dog"])
    assert [picture.label for picture in found] == [1, 1]
    twice = find_pictures(["red.png"] * 2, classes=["cat", "dog"], labels=["dog", "cat"])
    assert [picture.label for picture in twice] == [1, 0]
    [unlabelled] = find_pictures(["red.png"], classes=["cat", "dog"])
    assert (unlabelled.label, unlabelled.classes) == (None, ("cat", "dog"))


def test_a_file_goes_before_a_place_of_its_name(here: Path):
    Image.new("RGB", (5, 5)).save(here / "x.png")
    (here / "x.png").rename(here / "fashion:val:3")
    [picture] = find_pictures(["fashion:val:3"])
    assert picture.image.size == (5, 5)
    assert picture.label is None


@pytest.mark.parametrize("place", ["gone.png", "sub/gone.jpg", ".", "C:pictures"])
def test_files_that_are_not_there(place: str, here: Path):
    with pytest.raises(FileNotFoundError, match=f"image {re.escape(repr(place))} does not exist"):
        find_pictures([place])


@pytest.mark.parametrize(
    ("places", "told", "match"),
    [
        (["words.txt"], {}, r"image 'words.txt' can't be read .* or leave it out$"),
        (["fasion:val:3"], {}, "no dataset is called 'fasion'. Did you mean 'fashion'?"),
        (["fashion:vla:3"], {}, "'fashion:vla:3': split must be one of train, val, test"),
        (["fashion:val:100000"], {}, r"index '100000': fashion val has images 0 to \d+"),
        (["fashion:val:-1"], {}, "index '-1': fashion val has images 0 to"),
        (["fashion:val:x"], {}, "index 'x': fashion val has images 0 to"),
        (["fashion:val:"], {}, "index '': fashion val has images 0 to"),
        (["emoji-names:val:0"], {}, "emoji-names val has no images"),
        (["red.png"], {"labels": ["bag"]}, "--label 'bag': a label needs the classes"),
        (
            ["red.png"],
            {"labels": ["bga"], "dataset": "fashion"},
            "--label 'bga': did you mean 'bag'",
        ),
        (["red.png"], {"dataset": "fashoin"}, "no dataset is called 'fashoin'"),
        (["red.png"], {"dataset": "fashion", "classes": ["a"]}, "both name classes"),
        (["red.png"], {"classes": ["a", "b", "a"]}, "--classes 'a,b,a': expected names, each once"),
        (["red.png"], {"classes": ["a", ""]}, "--classes 'a,': expected names"),
        (["fashion:val:3"], {"dataset": "emoji"}, "are for image files, and there is none among"),
        (
            ["red.png"] * 3,
            {"classes": ["a", "b"], "labels": ["a", "b"]},
            "2 labels for 3 files; give one, or one each",
        ),
    ],
)
def test_refusals(places: list[str], told: dict, match: str, here: Path):
    with pytest.raises(ValueError, match=match):
        find_pictures(places, **told)
