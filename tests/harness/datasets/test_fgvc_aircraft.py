"""Lists of FGVC-Aircraft that are missing or contradict each other."""

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.datasets import get_dataset

Ship = Callable[..., object]


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("variants.txt", b"707-320\n707-320\n", r"variants.txt' names a variant twice"),
        ("variants.txt", b"\n", r"variants.txt' is empty"),
        ("variants.txt", b"707\xff", r"variants.txt' is no text"),
        ("images_variant_val.txt", b"1000000 MiG\n", r"val.txt', line 1: '1000000 MiG' isn't"),
        ("images_variant_val.txt", b"../x 707-320\n", r"line 1: '../x 707-320' isn't the number"),
        ("images_variant_test.txt", b"0000000 707-320\n", r"image 0000000 is in images_.*train"),
        ("images_variant_test.txt", b"\x80\4\x95", r"test.txt' is no text"),
    ],
)
def test_lists_that_lie(file: str, content: bytes, match: str, ship: Ship, tmp_path: Path):
    ship("fgvc-aircraft")
    found = get_dataset("fgvc-aircraft").at(tmp_path)
    (found.place / file).write_bytes(content)
    with pytest.raises(ValueError, match=match):
        found.split("test")


def test_a_missing_list_names_the_archive(ship: Ship, tmp_path: Path):
    ship("fgvc-aircraft")
    found = get_dataset("fgvc-aircraft").at(tmp_path)
    (found.place / "images_variant_val.txt").unlink()
    match = r"_val.txt' of 'fgvc-aircraft' is missing; it is in 'fgvc-aircraft-2013b.tar.gz', below"
    with pytest.raises(FileNotFoundError, match=match):
        found.split("test")
