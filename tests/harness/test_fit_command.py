"""`fit predictor` from the command line: which rankings it takes, what its flags reach."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from harness.cli import main
from harness.datasets.base import DATA_DIR, Dataset
from harness.golden.store import shipped_rankings
from harness.models.towers import Tower
from zoo.clip import ClipParts
from zoo.weights import cache_folder

EMBEDDED = "clip_vit_s14.imgfocus_lit"


@pytest.mark.parametrize("dataset", ["fashion", "emoji"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_rankings_ship_for_the_embedded_model_at_one_block(dataset: str, split: str):
    file = DATA_DIR / f"golden-{EMBEDDED}-{dataset}-{split}.parquet"
    assert shipped_rankings(EMBEDDED, dataset, split, 3) == file
    assert shipped_rankings(EMBEDDED, dataset, split, 2) is None
    assert shipped_rankings("clip_vit_b16.openai", dataset, split, 3) is None


def test_shipped_rankings_are_taken_and_nothing_is_ranked(monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, Any] = {}

    def fit(model: str, train: list[Path], val: list[Path], config: Any, **told: Any) -> Any:
        asked.update(told, train=train, val=val, config=config)
        return Path("out"), 0.5

    monkeypatch.setattr("harness.golden.fit.fit", fit)
    monkeypatch.setattr("harness.golden.rank.rank", None)
    flags = "--dataset fashion emoji --arch mixer --width 384 --loss ranknet --epochs 7 --seed 3"
    more = "--patience 2 --batch 8 --learning-rate 0.001 --shots 4 --rankings a --val b c"
    assert main(["fit", "predictor", *flags.split(), *more.split()]) == 0
    names = {
        split: [f"golden-{EMBEDDED}-{dataset}-{split}.parquet" for dataset in ("fashion", "emoji")]
        for split in ("train", "val")
    }
    assert [path.name for path in asked["train"]] == ["a", *names["train"]]
    assert [path.name for path in asked["val"]] == ["b", "c", *names["val"]]
    found = asked["config"]
    assert (found.arch, found.width, found.loss, found.epochs) == ("mixer", 384, "ranknet", 7)
    assert (found.seed, found.patience, found.batch, found.learning_rate) == (3, 2, 8, 0.001)
    assert (asked["shots"], asked["block"], asked["out"]) == (4, None, None)


@pytest.fixture
def miniature_command(
    miniature: None, parts: ClipParts, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let ``rank`` use the miniature tower as well, and commands the toy dataset."""
    tower = Tower(parts.model.visual, parts.preprocess, "clip_vit_b16.openai", parts)
    monkeypatch.setattr("harness.golden.rank.load_tower", lambda name: tower)
    monkeypatch.setattr("harness.models.towers.load_tower", lambda name: tower)
    monkeypatch.setattr("harness.datasets.get_dataset", lambda name: toy)


@pytest.mark.usefixtures("miniature_command")
def test_without_shipped_rankings_images_are_ranked_first(capsys: pytest.CaptureFixture[str]):
    command = "fit predictor --model clip_vit_b16 --dataset toy --limit 6 --block 4"
    command += " --arch linear --loss bce --epochs 1 --shots 1"
    assert main(command.split()) == 0
    path, _, said = capsys.readouterr().out.strip().removeprefix("wrote ").partition("; ")
    assert said.startswith("Kendall tau on the validation images ")
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["predictor"])
    assert (facts["block"], facts["recipe"]["loss"], facts["options"]["arch"]) == (
        4,
        "bce",
        "linear",
    )
    assert (facts["provenance"]["images"], facts["provenance"]["shots"]) == (4, 1)
    stores = sorted((cache_folder() / "rankings").iterdir())
    assert len(stores) == 2  # train and val
    # The stores that it made are there for another fit.
    again = f"fit predictor --model clip_vit_b16 --rankings {stores[0]} --val {stores[1]}"
    assert main([*again.split(), "--arch", "mlp", "--epochs", "1"]) == 0
    assert main([*again.split(), "--block", "3"]) == 2
    assert "--block 3: these rankings are of block 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ("--loss lisnet", "loss='lisnet': did you mean 'listnet'?"),
        ("--width 0", "width=0: expected a number from 1"),
        ("--dataset fashion --shots 0", "--shots 0: expected a number from 1"),
    ],
)
def test_mistakes(flags: str, match: str, capsys: pytest.CaptureFixture[str]):
    assert main(["fit", "predictor", *flags.split()]) == 2
    assert match in capsys.readouterr().err
