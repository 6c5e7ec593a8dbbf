"""What predictors cost beside their tower."""

from dataclasses import replace

import pytest

import zoo
from harness.base.terminal import Progress
from harness.cli.entry import main
from harness.measure.cost import gflops
from harness.models.towers import load_tower
from harness.studies.overhead import overhead, overhead_table
from zoo.core.predictor import Predictor

HOW = {"batch": 2, "rounds": 3, "dtype": "float32", "progress": Progress()}


def test_counts_are_the_difference_that_a_predictor_makes(dense: zoo.ReducedViT):
    """The pruned model with a predictor against one without: random order costs nothing."""
    [row] = overhead(dense, [("conv", 16)], **HOW)
    pruned, free = (
        gflops(zoo.reduce(dense, method=method, keep=0.5, **options).eval(), 64).gflops
        for method, options in (("patchrank", {"arch": "conv", "width": 16}), ("random", {}))
    )
    assert row.gflops == pytest.approx(pruned - free, rel=1e-9)
    assert row.share == pytest.approx(row.gflops / gflops(dense, 64).gflops, rel=1e-9)
    net = Predictor("conv", 48, 16, (8, 8), None, None)
    assert row.params == sum(p.numel() for p in net.parameters())
    assert 0 < row.latency.low <= row.latency.estimate <= row.latency.high


def test_a_row_per_shape_in_this_order(dense: zoo.ReducedViT):
    rows = overhead(dense, [("linear", 8), ("mixer", 48)], **HOW)
    assert [(row.arch, row.width) for row in rows] == [("linear", 8), ("mixer", 48)]
    assert rows[0].gflops < rows[1].gflops
    assert overhead_table(rows, "title").cells("share, %")[1] == f"{100 * rows[1].share:.2f}"
    assert "GFLOPs lack" not in overhead_table(rows, "title").caption
    assert "aten::fft" in overhead_table([replace(rows[0], uncounted=("aten::fft",))], "title").caption


def test_overhead_beside_towers_of_other_libraries(foreign: str, capsys: pytest.CaptureFixture[str]):
    words = ["--archs", "mlp", "conv", "--width", "8", "--batch", "2", "--rounds", "2"]
    assert main(["study", "overhead", "--model", foreign, *words]) == 0
    assert f"predictors beside {load_tower(foreign).name}, batch 2" in " ".join(capsys.readouterr().out.split())
    assert main(["study", "overhead", "--model", foreign, "--random-weights"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "only models of `patchrank list`, such as clip_vit_b16, can be built without; name one" in error


@pytest.mark.parametrize(
    ("flags", "said"),
    [("--archs covn", "'covn': did you mean 'conv'"), ("--width 0", "width=0"), ("--batch 0", "--batch 0")],
)
def test_refused(flags: str, said: str, capsys: pytest.CaptureFixture[str]):
    assert main(["study", "overhead", *flags.split()]) == 2
    assert said in capsys.readouterr().err
