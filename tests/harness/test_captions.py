"""Captions of class folders, and prompts."""

from pathlib import Path

import pytest

from harness.datasets.captions import caption, captions_of, require_template, slug, text_lines

NAMES = ["ankle_boot", "bag", "dog", "dog_house"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("ankle_boot", "ankle boot"), ("t-shirt", "t shirt"), ("__a--b_ ", "a b"), ("Köter", "Köter")],
)
def test_underscores_and_dashes_are_spaces(name: str, text: str):
    assert caption(name, "here") == text


@pytest.mark.parametrize("name", ["_", "- _", "a\nb", "a\x1b[31m", "\udc80"])
def test_names_that_no_prompt_takes(name: str):
    with pytest.raises(ValueError, match=r"here: the folder's name .* can't be put into a prompt"):
        caption(name, "here")


def test_names_are_captions_where_no_file_is(tmp_path: Path):
    assert captions_of(tmp_path, NAMES, "here") == ("ankle boot", "bag", "dog", "dog house")


@pytest.mark.parametrize("file", ["classes.txt", "classnames.txt"])
@pytest.mark.parametrize(
    "text",
    [
        "boots\nhandbag\na dog\nkennel\n",
        "dog_house kennel\nbag\thandbag\nankle_boot   boots\ndog a dog",
        "\ufeffankle_boot boots\r\nbag handbag\r\ndog a dog\r\ndog_house kennel\r\n\r\n",
    ],
)
def test_a_file_says_what_folders_mean(file: str, text: str, tmp_path: Path):
    (tmp_path / file).write_bytes(text.encode())
    assert captions_of(tmp_path, NAMES, "here") == ("boots", "handbag", "a dog", "kennel")


def test_the_longest_folder_is_meant(tmp_path: Path):
    (tmp_path / "classes.txt").write_text("a b c x\na y\n")
    assert captions_of(tmp_path, ["a", "a b c"], "here") == ("y", "x")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a\nb\nc", "here: classes.txt: 3 lines for 4 class folders"),
        ("bag x\nbag y\ndog z\ndog_house w", "classes.txt: folder 'bag' is there twice"),
        ("bag x\nankle_boot y\ndog z", "classes.txt: no line for the folder 'dog_house'"),
        ("x\ny\nz\nx", "folders 'ankle_boot' and 'dog_house' would both be class 'x'"),
        ("bag\nankle_boot\ndog\ndog_house", "line 1: 'bag' would be the caption of the folder 'an"),
        ("x\n\ny\nz", r"classes.txt', line 2: expected a name, got ''"),
        ("x\ny\x07\nw\nz", r"classes.txt', line 2: expected a name"),
        (b"\xff\xfe", "classes.txt' is not text in UTF-8"),
    ],
)
def test_files_that_contradict(text: str | bytes, match: str, tmp_path: Path):
    (tmp_path / "classes.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=match):
        captions_of(tmp_path, NAMES, "here")


def test_two_files_and_huge_ones(tmp_path: Path):
    (tmp_path / "classes.txt").write_text("a")
    (tmp_path / "classnames.txt").write_text("a")
    with pytest.raises(ValueError, match=r"both classes.txt and classnames.txt are there"):
        captions_of(tmp_path, ["a"], "here")
    with (tmp_path / "classes.txt").open("wb") as file:
        file.truncate(5 << 20)
    with pytest.raises(ValueError, match="more than 4,194,304 bytes and is no list of names"):
        text_lines(tmp_path / "classes.txt")


def test_two_folders_of_one_caption(tmp_path: Path):
    with pytest.raises(ValueError, match="'a-b' and 'a_b' would both be class 'a b'"):
        captions_of(tmp_path, ["a-b", "a_b"], "here")


@pytest.mark.parametrize(
    ("text", "name"), [("My Photos (2)", "my-photos-2"), ("..x", "x"), ("Bäume", "bäume")]
)
def test_slugs(text: str, name: str):
    assert slug(text, "here") == name


def test_a_name_needs_letters_or_digits():
    with pytest.raises(ValueError, match="here: its name becomes the dataset's"):
        slug("-", "here")


@pytest.mark.parametrize("template", ["{}", "a photo of a {}.", "100 % {}, it is"])
def test_prompts(template: str):
    require_template(template)


@pytest.mark.parametrize(
    "template", ["", "a photo", "{} {}", "{0}", "{c}", "{!r}", "{:>9}", "{", "}", "{{}}", "{{{}}}"]
)
def test_texts_that_are_no_prompts(template: str):
    with pytest.raises(ValueError, match=r"expected one {} where the class goes"):
        require_template(template)
