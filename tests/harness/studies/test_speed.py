"""Check arithmetic and agreement; never how long anything takes."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import zoo
from harness.base.table import NOT_MEASURED
from harness.base.terminal import Progress
from harness.cli.entry import main
from harness.models.towers import Tower
from harness.records.agreement import kendall_tau
from harness.studies import speed
from harness.studies.speed import Plain, Speed, SpeedConfig, measure_speed, same_ranking, speed_table
from zoo.ranking.golden import GoldenConfig, GoldenEngine

SPARSE = GoldenConfig(block=2, window=2, stride=2)


def test_straightforward_and_engine_rank_alike(dense: zoo.ReducedViT):
    images = torch.randn(3, 3, 64, 64)
    plain = Plain(dense, SPARSE).importance(images)
    engine = GoldenEngine(dense, SPARSE).importance(images)
    torch.testing.assert_close(engine, plain, atol=1e-5, rtol=0)
    assert same_ranking(engine, plain).all()
    assert kendall_tau(engine.numpy(), plain.numpy()).min() > 0.999
    # The straightforward way forms the attention weights, of a copy.
    assert not any(block.attn.fused_attn for block in Plain(dense, SPARSE).model.blocks)
    assert all(block.attn.fused_attn for block in dense.blocks)


def test_rankings_are_the_same_up_to_ties():
    theirs = [[0.3, 0.2, 0.1]]
    assert same_ranking([[9, 8, 7]], theirs).tolist() == [True]
    assert same_ranking([[8, 9, 7]], theirs).tolist() == [False]
    assert same_ranking([[8, 9, 7]], theirs, tie=0.11).tolist() == [True]
    assert same_ranking([[7, 9, 8]], theirs, tie=0.11).tolist() == [False]
    assert same_ranking([[8, 8, 7]], theirs).tolist() == [False]


@pytest.fixture
def measured(dense: zoo.ReducedViT, monkeypatch: pytest.MonkeyPatch) -> Speed:
    tower = Tower(dense, noise, "tiny")
    monkeypatch.setattr(speed, "find_tower", lambda name, random_weights: tower)
    config = SpeedConfig(images=2, golden=SPARSE, batches=(3, 16), rounds=2)
    return measure_speed(config, Progress())


def test_measures_all_ways_in_the_same_rounds(measured: Speed):
    engines = [(f"engine, {dtype}", n) for dtype in ("float32", "bfloat16") for n in (3, 16)]
    assert [(way.name, way.batch) for way in measured.ways] == [("straightforward", 16), *engines]
    first, *engines = measured.ways
    assert first.speed_up == (1, 1, 1)
    assert [way.same for way in measured.ways[:3]] == [1, 1, 1]
    assert all(len(way.samples_ms) == 2 for way in measured.ways)
    for way in engines:
        seconds = np.median(way.samples_ms) / 1000
        assert way.windows_per_s.estimate == pytest.approx(2 * 16 / seconds)


def test_a_table_shows_every_way_and_no_agreement_without_weights(measured: Speed):
    for random_weights, dashes in ((False, 0), (True, 10)):
        table = speed_table(replace(measured, config=replace(measured.config, random_weights=random_weights)))
        assert table.cells("way") == [way.name for way in measured.ways]
        assert sum(row.count(NOT_MEASURED) for row in table.rows) == dashes
        assert "their range" in table.caption


def noise(image: object) -> Tensor:
    return torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_the_command_prints_tables_and_leaves_a_record(tmp_path: Path, capsys):
    out = tmp_path / "speed.json"
    flags = "--images 1 --window 7 --stride 7 --rounds 1 --precisions float32 --block 7"
    assert main(["study", "speed", *flags.split(), "--output", str(out)]) == 0
    text = capsys.readouterr().out
    assert "straightforward" in text
    assert "engine, float32" in text
    record = json.loads(out.read_text())
    assert record["windows"] == 4
    assert [way["name"] for way in record["ways"]] == ["straightforward", "engine, float32"]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--precisions", "float8"], "precisions='float8'"),
        (["--rounds", "0"], "rounds=0"),
        (["--images", "0"], "images=0"),
        (["--batches", "0"], "batches=0"),
        (["--random-weights", "--model", "vit_tiny_patch16_224"], "vit_tiny_patch16_224|patchrank list"),
    ],
)
def test_refusals(flags: list[str], text: str, capsys):
    assert main(["study", "speed", *flags]) == 2
    assert re.search(text, capsys.readouterr().err)
