"""Images that a source lists and a copy lacks are told before anything is measured."""

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli import main
from harness.datasets import get_dataset


@pytest.mark.parametrize("name", ["dtd", "fgvc-aircraft"])
def test_a_command_counts_and_names_them_or_leaves_them_out(
    name: str,
    ship: Callable[..., object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ship(name)
    dataset = get_dataset(name).at(tmp_path)
    name_of_first = Path(dataset.split("test").image_ids[0]).stem
    next(dataset.place.rglob(f"{name_of_first}.jpg")).unlink()

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("worked")

    monkeypatch.setattr("harness.towers.create_clip", fail)
    words = ["eval", "clip_vit_s14_random60", "--dataset", name, "--root", str(tmp_path)]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "1 missing image in" in error
    assert "or leave them out with --skip-bad" in error
    with pytest.raises(AssertionError, match="worked"):
        main([*words, "--skip-bad"])
    assert "left out, as they can't be read: 1 image;" in capsys.readouterr().err
