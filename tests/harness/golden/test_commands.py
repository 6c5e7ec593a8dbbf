"""What `show` refuses from the command line, before it loads a model."""

import pytest

from harness.cli import main


@pytest.mark.parametrize(
    ("command", "match"),
    [
        ("gone.png", "image 'gone.png' does not exist; expected an image file, or dataset:split"),
        ("fashion:val:99999", "index '99999': fashion val has images 0 to"),
        ("fashion:val:3 --keep 0.5 1.5", "--keep 1.5: expected fractions in (0, 1), such as 0.6"),
        ("fashion:val:3 --keep 1", "--keep 1: expected fractions"),
        ("fashion:val:3 --keep nan", "--keep nan: expected fractions"),
        ("fashion:val:3 --keep 0.5 0.5", "expected at least one rate, each once"),
        ("fashion:val:3 --by predicter", "--by 'predicter': did you mean 'predictor'"),
        ("fashion:val:3 --methods evti", "--methods 'evti': did you mean 'evit'"),
        ("fashion:val:3 --scale 0", "--scale 0: expected a number in [0.25, 8]"),
        ("fashion:val:3 --stride 3", "stride=3: more than window=2 leaves patches out"),
        ("fashion:val:3 --out show.svg", "--out 'show.svg': expected a file's name that ends in"),
        ("fashion:val:3 --model clip_vit_s41", "model 'clip_vit_s41': did you mean 'clip_vit_s14'"),
        ("fashion:val:3 --device nonsense", "--device 'nonsense' can't be used here"),
        ("fashion:val:3 --label bag", "are for image files, and there is none among fashion:val:3"),
    ],
)
def test_mistakes(command: str, match: str, capsys: pytest.CaptureFixture[str]):
    assert main(["show", *command.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert match in err
