"""What rows cost, and what predictors cost beside their tower."""

import io
from dataclasses import replace

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from rich.console import Console

import zoo
from harness.base.terminal import Progress
from harness.cli import main
from harness.measure import cost
from harness.measure.cost import costs, counts, overhead, overhead_table
from harness.measure.rows import variants
from harness.models.cost import gflops
from harness.models.towers import load_tower
from zoo.core.predictor import Predictor

HOW = {"batch": 2, "rounds": 3, "dtype": "float32", "progress": Progress()}


def test_costs_of_every_row_that_is_a_model(dense: zoo.ReducedViT):
    rows = variants(dense, "clip_vit_b16", "openai", ["dense", "tome", "random", "golden"], [0.5])
    facts = costs(rows, {1: 2, 8: 2}, Progress())
    assert list(facts) == [row.model for row in rows]
    assert facts["clip_vit_b16_golden50"] == {}
    plain = facts["clip_vit_b16"]
    assert plain["tokens_per_block"] == (65,) * 6
    assert facts["clip_vit_b16_random50"]["tokens_per_block"] == (65,) * 3 + (33,) * 3
    # What fvcore says by itself, without the attention's own two products.
    counted = FlopCountAnalysis(dense, torch.zeros(1, 3, 64, 64))
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    attention = 6 * 2 * 65 * 65 * 48
    assert plain["gflops"] == pytest.approx((counted.total() + attention) / 1e9, rel=0.02)
    assert plain["params"] == sum(p.numel() for p in dense.parameters())
    for name in ("clip_vit_b16_random50", "clip_vit_b16_tome50"):
        assert facts[name]["gflops"] < plain["gflops"]
        for entry, batch in zip(facts[name]["latency"], (1, 8), strict=True):
            assert (entry.batch, entry.ratio_to_dense > 0) == (batch, True)
            assert entry.q1_ms <= entry.median_ms <= entry.q3_ms
    assert [entry.ratio_to_dense for entry in plain["latency"]] == [None, None]


def test_activations_and_unknown_operators_are_reported(dense: zoo.ReducedViT, monkeypatch: pytest.MonkeyPatch):
    rows = variants(dense, "clip_vit_b16", "openai", ["dense", "random"], [0.5])
    found = costs(rows, {}, Progress())
    # Width 48 in 3 heads, 65 tokens: linear maps give 9 widths more per token in each block.
    block = 65 * (3 + 1 + 1 + 4 + 1) * 48 + 3 * 65**2
    plain = found["clip_vit_b16"]
    assert plain["activations"] == 64 * 48 + 6 * block + dense.num_classes
    assert (plain["uncounted_operators"], plain["latency"]) == ((), ())  # without batches
    assert found["clip_vit_b16_random50"]["activations"] < plain["activations"]
    unknown = replace(gflops(dense, 64), unsupported=("aten::linalg_inv",))
    monkeypatch.setattr(cost, "gflops", lambda *args: unknown)
    console = Console(file=io.StringIO(), width=200)
    found = costs(rows[:1], {}, Progress(console))
    assert found["clip_vit_b16"]["uncounted_operators"] == ("aten::linalg_inv",)
    warning = "clip_vit_b16: GFLOPs lack operators of unknown cost: aten::linalg_inv"
    assert warning in console.file.getvalue()


def test_what_is_counted_does_not_depend_on_the_precision(dense: zoo.ReducedViT):
    rows = variants(dense, "clip_vit_b16", "openai", ["dense", "tome"], [0.5])
    single = counts(rows, Progress())
    assert list(single) == ["clip_vit_b16", "clip_vit_b16_tome50"]
    assert [one.final_tokens for one in single.values()] == [64, 32]
    for row in rows:
        row.vit.to(torch.bfloat16)
    assert counts(rows, Progress()) == single


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
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(overhead_table(rows, "a title"))
    text = " ".join(console.export_text().split())
    for part in ("a title", f"{100 * rows[1].share:.2f}", "median [interval] of rounds in turn"):
        assert part in text
    assert "GFLOPs lack" not in text
    console.print(overhead_table([replace(rows[0], uncounted=("aten::fft",))], "a title"))
    text = " ".join(console.export_text().split())
    assert "GFLOPs lack operators of unknown cost: aten::fft" in text


def test_overhead_beside_towers_of_other_libraries(foreign: str, capsys: pytest.CaptureFixture[str]):
    words = ["--archs", "mlp", "conv", "--width", "8", "--batch", "2", "--rounds", "2"]
    assert main(["study", "overhead", "--model", foreign, *words]) == 0
    assert f"predictors beside {load_tower(foreign).name}, batch 2" in " ".join(capsys.readouterr().out.split())
    assert main(["study", "overhead", "--model", foreign, "--random-weights"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "only models of `patchrank list`, such as clip_vit_b16, can be built without; name one" in error


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--archs covn", "arch='covn': did you mean 'conv'"),
        ("--width 0", "width=0: expected a number from 1"),
        ("--batch 0", "--batch 0: expected a number from 1"),
        ("--rounds 0", "--rounds 0: expected a number from 1"),
        ("--dtype int8", "--dtype 'int8'"),
    ],
)
def test_refused(flags: str, said: str, capsys: pytest.CaptureFixture[str]):
    assert main(["study", "overhead", *flags.split()]) == 2
    assert said in capsys.readouterr().err
