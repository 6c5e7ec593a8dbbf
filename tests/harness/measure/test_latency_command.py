"""`latency` as a stranger uses it."""

from pathlib import Path
from typing import Any

import pytest

from harness.cli.entry import main
from harness.measure import latency
from harness.measure.latency import CPU_BATCHES, CUDA_BATCHES
from harness.records.times import read_latencies

RANDOM = "latency --model clip_vit_b16_random60 --batches 1 --rounds 6 --seconds 0"
pytestmark = pytest.mark.usefixtures("benchmark")


def test_a_run_writes_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    argv = [*RANDOM.split(), "--output", str(tmp_path / "out")]
    assert main(argv) == 0
    said = capsys.readouterr()
    file, page = sorted((tmp_path / "out").iterdir())
    assert (file.name, page.name) == ("latency.jsonl", "latency.md")
    before = file.read_bytes()
    dense, random = read_latencies(file)
    assert (dense.model, random.model) == ("clip_vit_b16", "clip_vit_b16_random60")
    assert (random.final_tokens, len(random.samples_ms)) == (38, 6)
    assert f"{random.times.ratio_to_dense:.3f} [" in said.out
    assert "clip_vit_b16: float32, eager, threads 1, batch 1: 2 of 2 models timed" in said.err
    assert f"| 1 | random60 | 38 | {random.gflops:.2f} |" in page.read_text("utf-8")

    monkeypatch.setattr("harness.measure.latency.time_runnables", None)
    assert main(argv) == 0
    assert file.read_bytes() == before
    assert capsys.readouterr().out == said.out

    with pytest.raises(TypeError, match="not callable"):
        main([*argv, "--fresh"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--batches 0", "--batches 0: expected a number from 1"),
        ("--threads 0", "--threads 0: expected a number from 1 to 1024"),
        ("--rounds 5", "--rounds 5: expected a number from 6"),
        ("--seconds -1", "--seconds -1: expected a number from 0"),
        ("--seconds nan", "--seconds nan"),
        ("--dtypes float23", "--dtypes 'float23': did you mean 'float32'"),
        ("--ways cuda-graphs", "--ways cuda-graphs on --device 'cpu'"),
        ("--ways cudagraphs", "did you mean 'cuda-graphs'"),
        ("--methods golden", "--methods 'golden'"),
        ("--methods tomme", "did you mean 'tome'"),
        ("--keeps 1.5", "--keeps 1.5: expected fractions in (0, 1]"),
        ("--device cudda", "--device 'cudda' can't be used here"),
    ],
)
def test_wrong_use_is_refused(
    flags: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("harness.models.towers.load_tower", None)
    assert main(["latency", "--model", "clip_vit_s14_tome60", *flags.split()]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_each_device_has_its_usual_batches():
    assert latency.batches_for("cpu", None) == CPU_BATCHES
    assert latency.batches_for("cuda:1", None) == CUDA_BATCHES
    assert latency.batches_for("cuda", [4, 2, 4]) == (4, 2)


@pytest.mark.parametrize(("load", "busy"), [(1.9, True), (0.4, False), (None, False)])
def test_a_busy_machine_is_reported_before(load: Any, busy: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.setattr("harness.measure.timing.load_1min", lambda: load)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("harness.measure.latency.measure_latency", lambda *_: iter([]))
    assert main([*RANDOM.split(), "--output", "out"]) == 0
    assert ("this machine is busy: a load of 1.9 on 2 cores" in capsys.readouterr().err) is busy


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.cuda
@pytest.mark.slow
def test_the_embedded_model_is_timed_in_every_way_that_cuda_has(tmp_path: Path):
    argv = "latency --model clip_vit_s14_patchrank60 clip_vit_s14_tome60 --device cuda --batches 1 32"
    ways = "--ways eager compile cuda-graphs --dtypes float16"
    assert main([*argv.split(), *ways.split(), "--output", str(tmp_path)]) == 0
    for record in read_latencies(tmp_path / "latency.jsonl"):
        assert record.failed is None
        assert record.stopwatch == "CUDA events"
        assert record.peak_mib is not None


def test_larger_images_are_timed_in_tables_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = [*RANDOM.split(), "--image-sizes", "64", "96", "--output", str(tmp_path)]
    assert main(argv) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "64x64 px" in out
    assert "96x96 px" in out
    rows = read_latencies(tmp_path / "latency.jsonl")
    assert [(row.image_size, row.final_tokens) for row in rows] == [
        ((64, 64), 64), ((64, 64), 38), ((96, 96), 144), ((96, 96), 86),
    ]  # fmt: skip
    assert rows[2].gflops > 2 * rows[0].gflops


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [
        (["100"], "--image-sizes 100: expected multiples of the patches' 8 pixels, from 8"),
        (["-8"], "--image-sizes -8"),
    ],
)
def test_sizes_that_no_patches_fill_are_refused(sizes: list[str], complaint: str, capsys: pytest.CaptureFixture[str]):
    assert main([*RANDOM.split(), "--image-sizes", *sizes]) == 2
    assert complaint in capsys.readouterr().err
