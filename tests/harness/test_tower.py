"""A tower without a text side of ours: rank and fit need none."""

import pytest
import torch

import zoo
from harness.base.hints import describe_error
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.golden.fit import fit
from harness.golden.rank import RankJob, Source, rank
from harness.models.towers import load_tower
from zoo.learning.fit import FitConfig
from zoo.ranking.golden import GoldenConfig


def test_the_command_that_the_missing_predictor_names_makes_one(small_clip):
    """`pretrained=True` on b32 without a predictor names `fit predictor`; afterwards it works."""
    small_clip.cached(small_clip.original())
    with pytest.raises(FileNotFoundError, match="no predictor") as caught:
        zoo.create_clip("clip_vit_b32_patchrank60")
    assert "fit predictor --model clip_vit_b32.openai" in describe_error(caught.value)
    dataset = get_dataset("emoji")
    golden = GoldenConfig(window=3, stride=3, score="confidence")
    files = []
    for split in ("train", "val"):
        source = Source.of(dataset, split)
        job = RankJob(model="clip_vit_b32", source=source, config=golden, limit=3)
        files.append(rank(job, Progress()).path)
    config = FitConfig(arch="mlp", width=8, epochs=1)
    fit("clip_vit_b32", files[:1], files[1:], config, out=None, progress=Progress())
    model = zoo.create_clip("clip_vit_b32_patchrank60").model.visual
    with torch.inference_mode():
        assert model.trace(torch.randn(1, 3, 224, 224)).final_tokens == 29


def test_preprocessing_is_the_towers_own():
    tower = load_tower("clip_vit_s14")
    image = get_dataset("emoji").split("val")[0].image
    assert tower.preprocess(image).shape == (3, 196, 196)
