"""`latency` as a stranger uses it, and what docs/latency.md says of it."""

import json
import re
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import torch

from harness.base.terminal import Progress
from harness.cli import main
from harness.measure import latency
from harness.measure.latency import CPU_BATCHES, CUDA_BATCHES, LatencyPlan
from harness.measure.times import CONDITIONS, VERDICTS, LatencyRecord, read_latencies
from harness.measure.timing import LEAST_ROUNDS, MOST_ROUNDS, OTHERS, SPREAD, Machine, Surroundings
from harness.measure.ways import ALLOWED, CHECKED, COMPILE, WAYS
from harness.records.record import Times

RANDOM = "latency --model clip_vit_s14_random60 --batches 1 --rounds 6 --seconds 0"


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
    assert (dense.model, random.model) == ("clip_vit_s14", "clip_vit_s14_random60")
    assert (random.final_tokens, len(random.samples_ms)) == (118, 6)
    assert f"{random.times.ratio_to_dense:.3f} [" in said.out
    assert "clip_vit_s14: float32, eager, threads 1, batch 1: 2 of 2 models timed" in said.err
    assert f"| 1 | random60 | 118 | {random.gflops:.2f} |" in page.read_text("utf-8")

    monkeypatch.setattr("harness.measure.latency.time_cell", None)
    assert main(argv) == 0
    assert file.read_bytes() == before
    assert capsys.readouterr().out == said.out

    with pytest.raises(TypeError, match="not callable"):
        main([*argv, "--fresh"])


def test_what_programs_get_are_the_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = [*RANDOM.split(), "--output", str(tmp_path), "--random-weights", "--json"]
    assert main(argv) == 0
    rows = json.loads(capsys.readouterr().out)["records"]
    lines = (tmp_path / "latency.jsonl").read_text("utf-8").splitlines()
    assert rows == [json.loads(line) for line in lines]
    assert [row["random_weights"] for row in rows] == [True, True]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--batches 0", "--batches 0: expected a number from 1"),
        ("--threads 0", "--threads 0: expected a number from 1 to 1024"),
        ("--rounds 5", "--rounds 5: expected a number from 6"),
        ("--seconds -1", "--seconds -1: expected a number from 0"),
        ("--seconds nan", "--seconds nan: expected a number from 0"),
        ("--seconds inf", "--seconds inf: expected a number from 0"),
        ("--threads 100000", "--threads 100000: expected a number from 1 to 1024"),
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


@pytest.mark.parametrize("where", ["file", "file/below", "folder"])
def test_an_output_that_takes_no_lines_is_refused_before_anything_is_loaded(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setattr("harness.models.towers.load_tower", None)
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "latency.jsonl").mkdir(parents=True)  # so that none can be opened
    assert main([*RANDOM.split(), "--output", str(tmp_path / where)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"--output '{tmp_path / where}'" in said
    assert "expected a folder" in said or "name another folder" in said


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


@pytest.mark.slow
def test_the_embedded_model_is_timed_in_every_way_that_a_cpu_has():
    how = {"dtypes": ("float32", "bfloat16"), "ways": ("eager", COMPILE, "channels-last")}
    how |= {"batches": (1,), "threads": (1,), "rounds": 6, "seconds": 0.0}
    plan = LatencyPlan(models=("clip_vit_s14_patchrank60",), **how)
    records = [record for cell, _ in latency.measure_latency(plan, [], Progress()) for record in cell]
    assert [record.failed for record in records] == [None] * 12
    for record in records:
        assert record.deviation < (1e-4 if record.dtype == "float32" else 0.2)
        assert record.first_call_s > 0
    assert {record.machine for record in records} == {Machine.here(torch.device("cpu"))}


@pytest.mark.cuda
@pytest.mark.slow
def test_the_embedded_model_is_timed_in_every_way_that_cuda_has(tmp_path: Path):
    argv = "latency --model clip_vit_s14_patchrank60 clip_vit_s14_tome60 --device cuda --batches 1 32"
    ways = "--ways eager compile reduce-overhead cuda-graphs channels-last --dtypes float16"
    assert main([*argv.split(), *ways.split(), "--output", str(tmp_path)]) == 0
    for record in read_latencies(tmp_path / "latency.jsonl"):
        assert record.failed is None
        assert record.stopwatch == "CUDA events"
        assert (record.peak_mib is None) == (record.way == "reduce-overhead")


ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "latency.md").read_text("utf-8")
ROW = re.compile(r"^\| `([\w-]+)` \| ([^|]+) \| ([^|]*)\| ([^|]+) \|$")
JSON = {
    str: "string", int: "integer", float: "number", bool: "boolean", dict: "object",
    Machine: "object", Surroundings: "object", Times: "object",
}  # fmt: skip


def rows(heading: str) -> dict[str, tuple[str, str]]:
    part = re.split(r"^##+ ", TEXT.split(f"## {heading}\n")[1], maxsplit=1, flags=re.M)[0]
    table = [line for line in part.splitlines() if line.startswith("| `")]
    found = [ROW.fullmatch(line) for line in table]
    assert None not in found, table[found.index(None)]
    return {row[1]: (row[2], row[3].strip()) for row in found if row}


def json_name(kind: Any) -> str:
    if isinstance(kind, UnionType):
        [own] = [part for part in get_args(kind) if part is not type(None)]
        return f"{json_name(own)} or null"
    if get_origin(kind) is tuple:
        return f"array of {json_name(get_args(kind)[0])}s"
    return JSON[get_origin(kind) or kind]


@pytest.mark.parametrize(
    ("heading", "kind"), [("Fields", LatencyRecord), ("Of `machine`", Machine), ("Of `surroundings`", Surroundings)]
)
def test_every_field_is_there_in_order_with_its_type_and_its_unit(heading: str, kind: Any):
    types = get_type_hints(kind)
    expected = {field.name: json_name(types[field.name]) for field in fields(kind)}
    documented = {name: row[0] for name, row in rows(heading).items()}
    assert list(documented.items()) == list(expected.items())
    units = {"_per_s": "images per second", "_ms": "ms", "_s": "s", "_mib": "MiB"}
    for name, (_, unit) in rows(heading).items():
        assert unit == next((units[end] for end in units if name.endswith(end)), unit), name


def test_conditions_ways_and_verdicts_are_those_that_the_page_says():
    names = list(rows("Fields"))
    between = names[names.index("version") : names.index("machine") + 1]
    assert tuple(name for name in between if name != "git_commit") == CONDITIONS
    assert "from `version` to `machine`, without `git_commit`, are the conditions" in TEXT
    assert re.findall(r"^- `([\w-]+)`: ", TEXT, re.M) == list(WAYS)
    for word in VERDICTS:
        assert f"**{word}**" in TEXT


def test_bounds_and_defaults_are_the_codes():
    for text in (
        f"more than {100 * SPREAD:.0f} % of the median apart",
        f"more than {100 * OTHERS:.0f} % of the cores",
        f"at least {LatencyPlan.rounds} rounds",
        f"{LatencyPlan.seconds:g} seconds",
        f"{MOST_ROUNDS} rounds at most",
        f"{LEAST_ROUNDS} rounds",
        f"{CHECKED} images",
        " ".join(map(str, CPU_BATCHES)),
        " ".join(map(str, CUDA_BATCHES)),
        *(f"{most:g} in {str(dtype).removeprefix('torch.')}" for dtype, most in ALLOWED.items()),
    ):
        assert text in " ".join(TEXT.split()), text


def test_larger_images_are_timed_in_tables_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = [*RANDOM.split(), "--random-weights", "--image-sizes", "56", "84", "--output", str(tmp_path)]
    assert main(argv) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "(random weights, 56x56 px)" in out
    assert "(random weights, 84x84 px)" in out
    rows = read_latencies(tmp_path / "latency.jsonl")
    assert [(row.image_size, row.final_tokens) for row in rows] == [
        ((56, 56), 16), ((56, 56), 10), ((84, 84), 36), ((84, 84), 22),
    ]  # fmt: skip
    assert rows[2].gflops > 2 * rows[0].gflops
    before = (tmp_path / "latency.jsonl").read_bytes()
    assert main(argv) == 0
    assert (tmp_path / "latency.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [
        (["100"], "--image-sizes 100: expected multiples of the patches' 14 pixels, from 14"),
        (["-14"], "--image-sizes -14: expected multiples of the patches' 14 pixels, from 14"),
    ],
)
def test_sizes_that_no_patches_fill_are_refused(sizes: list[str], complaint: str, capsys: pytest.CaptureFixture[str]):
    assert main([*RANDOM.split(), "--random-weights", "--image-sizes", *sizes]) == 2
    assert complaint in capsys.readouterr().err
