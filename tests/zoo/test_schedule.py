"""Files of schedules: what is written comes back, makes the model it says, and goes with a saved one."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

import zoo
from zoo.loading.learned_files import ScheduleFile, read_schedule

FILE = ScheduleFile(
    reduce_at=(1, 2, 5),
    schedule=(0.75, 0.5),
    keep=0.25,
    model="clip_vit_b16",
    tag="openai",
    weights="0" * 16,
    method="rankmerge",
    options={"rank": "none"},
    cost={"match": "gflops", "of": "50 % of dense", "asked": 1.0, "reached": 1.0},
    found=True,
    datasets=[{"name": "toy", "before": 0.2, "after": 0.1, "difference": [-0.1, -0.2, -0.05]}],
    candidates=3,
    seconds=1.5,
    version="0.1.0",
)
NUMBERS = {"reduce_at": (1, 2, 5), "schedule": (0.75, 0.5), "keep": 0.25}


def test_any_tower_takes_the_numbers_and_saves_them(tiny: Callable[..., nn.Module], images: Tensor, tmp_path: Path):
    path = tmp_path / "new" / "s.json"
    FILE.write(path)
    assert ScheduleFile.read(path) == FILE
    assert read_schedule(path) == read_schedule(str(path)) == NUMBERS
    named = tiny("clip_vit_b16_rankmerge60", **read_schedule(path))
    reduced = zoo.reduce(tiny("deit_small_patch16_224"), method="rankmerge", **read_schedule(path)).eval()
    for at, model in enumerate((named, reduced)):
        save_for_hf(model, tmp_path / str(at))
        back = timm.create_model(f"local-dir:{tmp_path / str(at)}", pretrained=True).eval()
        assert asdict(back.reducer.config).items() >= NUMBERS.items()
        assert back.reducer.counts(64) == {1: 48, 2: 32, 5: 16}
        with torch.no_grad():
            torch.testing.assert_close(back(images), model(images))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "has format 2, this version reads 1"),
        ({"keep": 1.5}, "keep=1.5"),
        ({"schedule": [0.5, 0.75]}, r"schedule=\(0.5, 0.75\)"),
        ({"more": 1}, "more"),
        ({"keep": ...}, "missing field 'keep'"),
        ({"keep": "0.5"}, "keep must be float, got '0.5'"),
        ({"keep": math.nan}, "NaN is no number"),
        ({"reduce_at": [-1, 2, 5]}, r"reduce_at=\(-1, 2, 5\): expected block indices"),
        ({"reduce_at": [True, 2, 5]}, "reduce_at must be int, got True"),
        ({"candidates": 10**30}, "has 31 digits"),
        ({"method": []}, r"method must be str, got \[\]"),
        ({"options": {"rnak": "cls"}}, "rankmerge has no option 'rnak': did you mean 'rank'"),
        ({"options": {"arch": ["mlp"]}}, r"arch=\['mlp'\]: did you mean 'mlp'"),
        ({"datasets": [{}]}, "'name' of a data set must be str, got None"),
        ({"datasets": [{"name": ["toy"]}]}, r"'name' of a data set must be str, got \['toy'\]"),
        *((text, "schedule must be ScheduleFile, got ") for text in ("[]", "null", '"x"')),
        *((text, "holds no schedule") for text in ("{", "", "\0\1PAR1", '{"keep": 1, "keep": 1}', "[" * 100_000)),
        (None, "the file does not exist"),
    ],
)
def test_refusals(change: Any, words: str, tmp_path: Path):
    path = tmp_path / "s.json"
    FILE.write(path)
    if isinstance(change, dict):
        facts = json.loads(path.read_text()) | change
        path.write_text(json.dumps({name: value for name, value in facts.items() if value is not ...}))
    elif change is None:
        path.unlink()
    else:
        path.write_text(change)
    with pytest.raises(FileNotFoundError if change is None else ValueError, match=words) as caught:
        read_schedule(path)
    assert repr(str(path)) in str(caught.value)
