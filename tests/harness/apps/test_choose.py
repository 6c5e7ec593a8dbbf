"""The walk to the fastest setup: against trying everything, stopped and resumed, and for real."""

import contextlib
import itertools
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from killing import kill_when
from PIL import Image
from some_budgets import file_of

import zoo
from harness.apps.choose import build_ladder, choose, selection_table
from harness.base.terminal import Progress
from harness.cli.entry import main
from harness.datasets.base import Dataset
from harness.measure import candidates as module
from harness.measure import exports as export_module
from harness.measure.candidates import RATES, Candidate, ChooseConfig, Way
from harness.measure.fidelity import Pictures, SetupBounds
from harness.measure.lab import Lab, Prediction
from harness.measure.rows import rows_of, usual_methods
from harness.measure.timing import BusyError
from harness.records.record import DENSE, GOLDEN
from harness.records.times import Timing
from zoo.core.adaptive import Adaptive
from zoo.core.errors import NoRoomError
from zoo.core.files import cache_folder
from zoo.core.settings import PRECISIONS
from zoo.deploy.quantization import INT8
from zoo.deploy.runtime import ONNXRUNTIME, OPENVINO, OPTIMIZED, Prepared, find_runtime
from zoo.deploy.setup import Setup
from zoo.loading.towers import Tower

ARCH, TAG = "clip_vit_b16", "openai"


class Fake:
    """A laboratory in which fidelity and time are known: shares of loss add up, times are lines in multiply-adds."""

    def __init__(self, seed: int, count: int = 6) -> None:
        rng = np.random.default_rng(seed)
        methods = sorted(zoo.METHODS)[:count]
        process = [Way(OPTIMIZED, precision) for precision in ("bfloat16", "float32")]
        self.ways = [*process, Way(OPENVINO, "bfloat16"), Way(OPENVINO, INT8), Way(ONNXRUNTIME, "float32")]
        self.inside = dict.fromkeys(process)
        self.reductions = [Candidate(process[0], name, RATES[-1]) for name in methods]
        ranges = ((1, 4), (0.5, 5), (0.1, 0.4))
        drawn = (rng.uniform(*ends, count).tolist() for ends in ranges)
        self.power, self.scale, self.least = (dict(zip(methods, each, strict=True)) for each in drawn)
        self.coarse = {recipe: rng.uniform(0.1, 0.9) for recipe in find_runtime(OPENVINO).recipes(INT8)}
        self.speed = {OPTIMIZED: 0.6, OPENVINO: 0.5, ONNXRUNTIME: 0.9}
        self.overhead = {OPTIMIZED: 0.02, OPENVINO: float(rng.uniform(0.0, 0.1)), ONNXRUNTIME: 0.0}
        self.progress, self.left_out, self.asked = Progress(), dict[str, str](), set[Any]()
        self.times, self.predictions = dict[Any, float](), dict[Any, Any]()

    def begin(self, stage: str) -> None: ...

    def share(self, one: Candidate) -> float:
        self.asked.add(one)
        coarse = self.coarse.get(str(one.way.recipe), 0.02 if one.way.precision == "bfloat16" else 0.0)
        return coarse + (0 if one.method is None else self.scale[one.method] * (1 - one.keep) ** self.power[one.method])

    def cosine(self, one: Candidate) -> float:
        return 1 - 0.01 * self.share(one)

    def work(self, one: Candidate) -> float:
        return 1.0 if one.method is None else self.least[one.method] + (1 - self.least[one.method]) * one.keep

    def ratio(self, one: Candidate) -> float:
        recipes = [*self.coarse]
        quick = 0.6 + 0.1 * recipes.index(one.way.recipe) if one.way.recipe else 1.0
        overhead = 0.0 if one.method is None else self.overhead[one.way.runtime] * (2 - one.keep)
        return self.speed[one.way.runtime] * quick * self.work(one) + overhead

    def ratios(self, candidates: Iterable[Candidate]) -> dict[Candidate, float]:
        ratios = {one: self.ratio(one) for one in candidates}
        self.times |= ratios
        return ratios

    def note(self, one: Candidate) -> None:
        self.predictions[one] = Prediction(self.share(one), self.cosine(one), self.times[one])


@pytest.mark.parametrize("seed", range(4))
def test_the_last_rung_is_the_fastest_of_all_that_should_meet_the_bounds(seed: int):
    """The slow way tries the method that is fastest in the process in every way and at every keep rate."""
    fake = Fake(seed)
    rungs = build_ladder(fake)
    reduced = [rung for rung in rungs if rung.method is not None]
    ways = [
        way._replace(recipe=recipe)
        for way in fake.ways
        for recipe in ([*fake.coarse] if way.precision == INT8 else [None])
    ]
    every = [Candidate(way, reduced[0].method, keep) for way in ways for keep in RATES]
    tried = {rung.way for rung in fake.predictions}
    fastest = min((one for one in every if fake.share(one) <= 1), key=fake.ratio)
    assert fastest.way not in tried or fake.ratio(reduced[-1]) == pytest.approx(fake.ratio(fastest))
    assert len(fake.times) < 30  # of 8 ways with 6 methods and 49 keep rates
    for one in reduced:
        assert fake.predictions[one].time == pytest.approx(fake.ratio(one))
    shares = [fake.predictions[one].share for one in rungs]
    assert shares == sorted(shares)
    assert shares[-1] <= 1


METHODS = ("rankmerge", "tome", "clsattn", "patchrank")
CONFIG = ChooseConfig(
    methods=METHODS, runtimes=(OPTIMIZED,), precisions=("float32",), search=20, held_out=40, seconds=0.0
)


class Clock:
    """Times by precision and by how many patch tokens are kept, which noise may blur; counts what is run."""

    def __init__(self) -> None:
        self.timed: list[int] = []
        self.ran, self.stop_after, self.busy_after = 0, math.inf, math.inf
        self.noise, self.rng = 0.0, np.random.default_rng(0)
        self.overhead = 0.2  # of dense's time, which no reduction saves

    def true_ms(self, one: Candidate | str) -> float:
        """Return the time of a candidate, or of dense in eager float32."""
        if isinstance(one, str):
            return 120.0
        reduced = self.overhead + 0.8 * (one.keep if one.cost is None else 0.01 * one.cost)  # so budgets win
        return (50.0 if one.way.precision == "bfloat16" else 100.0) * (1.0 if one.method is None else reduced)

    def time_models(self, models: Mapping[Any, Any], batch: int, rounds: int, **_: Any) -> dict[Any, Timing]:
        if len(self.timed) >= self.busy_after:
            raise BusyError("spread of dense 40 %")
        self.timed.append(len(models))
        noise = np.exp(self.noise * self.rng.standard_normal((len(models), rounds)))
        samples = zip(models, noise, strict=True)
        return {one: Timing(batch=batch, samples_ms=tuple(self.true_ms(one) * own)) for one, own in samples}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("harness.measure.timing.time_models", clock.time_models)
    monkeypatch.setattr("harness.records.statistics.RESAMPLES", 400)  # a test of bootstraps is elsewhere
    features = Pictures.features_of

    def counted(pictures: Pictures, model: Prepared) -> Any:
        clock.ran += len(pictures)
        if clock.ran > clock.stop_after:
            raise KeyboardInterrupt
        return features(pictures, model)

    monkeypatch.setattr(Pictures, "features_of", counted)
    return clock


@pytest.fixture
def small(tower: Tower, unlabelled: Dataset, predictor_file: Path, monkeypatch) -> None:
    for split, count in (("train", 80), ("test", 60)):
        monkeypatch.setitem(type(unlabelled)._split.__globals__["COUNTS"], split, count)
    monkeypatch.setattr(module, "load_tower", lambda name: tower)
    monkeypatch.setattr(module, "get_dataset", lambda name: unlabelled)
    monkeypatch.setattr("harness.measure.fidelity._NORMAL", 1.0)


def chosen(bounds: SetupBounds, config: ChooseConfig = CONFIG, **more: Any) -> Any:
    return choose(ARCH, "toy", bounds, config, progress=Progress(), **more)


def make_lab(config: ChooseConfig, say: Callable[[str], object] = lambda _: None, model: str = ARCH) -> Lab:
    progress = Progress()
    progress.say = say  # type: ignore[method-assign,assignment]
    return Lab(model, "toy", SetupBounds(min_cosine=0.97), config, progress)


@pytest.mark.usefixtures("small")
def test_the_choice_is_what_trying_all_gives(clock: Clock, tower: Tower):
    """Time rises with the keep rate alone here, so the fewest tokens that any method needs are the fastest."""
    config = replace(CONFIG, methods=METHODS[::2])
    choice = chosen(SetupBounds(min_cosine=0.97), config)
    assert not choice.why
    assert clock.timed[-1] == 1 + sum(one.passed for one in choice.judged)  # at last dense as it is and all that passed
    lab = make_lab(config)
    rows = []
    for pair in itertools.product(config.methods, RATES):
        with contextlib.suppress(ValueError):  # which can't keep so few
            rows += rows_of(tower, [pair])
    values = {(row.method, row.keep): lab.search.values(Prepared(call=row.vit)) for row in rows}
    share = {pair: lab.bounds.share(each, 40) for pair, each in values.items()}
    last = choice.judged[-1]
    assert choice.judged[0].candidate.method is None
    assert all(share[one.candidate.method, one.candidate.keep] <= 1 for one in choice.judged[1:])
    if all(one.passed for one in choice.judged):  # none failed, so it is the fastest of all
        assert last.candidate.keep == min(keep for (_, keep), used in share.items() if used <= 1)
    ratio, time = 0.2 + 0.8 * last.candidate.keep, choice.setup.certificate["time"]
    assert time["ratio_to_fastest_dense"]["estimate"] == pytest.approx(ratio)
    assert time["ratio_to_dense"]["estimate"] == pytest.approx(ratio / 1.2)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("after", "error"), [("pictures", KeyboardInterrupt), (0, BusyError), (1, BusyError)])
def test_a_search_that_was_stopped_goes_on_where_it_was(clock: Clock, after: Any, error: type[BaseException]):
    whole = chosen(SetupBounds(min_cosine=0.97), fresh=True)
    needed, clock.ran, clock.timed = clock.ran, 0, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "version", lambda _: "another")
        clock.stop_after, clock.busy_after = (0.5 * needed, math.inf) if after == "pictures" else (math.inf, after)
        with pytest.raises(error):
            chosen(SetupBounds(min_cosine=0.97))
        before, clock.ran, clock.stop_after, clock.busy_after = clock.ran, 0, math.inf, math.inf
        again = chosen(SetupBounds(min_cosine=0.97))
    assert again.judged == whole.judged
    # What was cut short is run again, nothing else.
    assert before + clock.ran <= needed + 40
    assert clock.ran < needed


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("foreign", ["local-dir"], indirect=True)
def test_killed_the_same_command_goes_on_where_it_was(foreign: str, tmp_path: Path):
    words = "choose --methods tome --runtimes optimized --precisions float32 --dataset photos --search 8 --held-out 20"
    command = [*words.split(), "--min-cosine", "0.9", "--model", foreign, "--output", str(tmp_path / "s.json")]

    def read_known() -> dict[str, Any]:
        files = list((cache_folder() / "choices").glob("*.json"))
        return json.loads(files[0].read_text())["search"] if files else {}

    own_threads = {**os.environ, "OMP_NUM_THREADS": "1"}
    code = f"""from harness.cli.entry import main
from harness.measure import timing
timing.watch_others, timing.why_busy = lambda seconds: None, lambda dense: ""
main({command})"""
    kill_when(lambda _: len(read_known()) >= 2, [sys.executable, "-P", "-c", code], env=own_threads)
    kept = read_known()
    with patch.object(Pictures, "values", autospec=True, side_effect=Pictures.values) as values:
        assert main(command) == 0
    asked = sum(len(pictures) == 8 for pictures, _ in (call.args for call in values.call_args_list))
    assert read_known().items() >= kept.items()
    assert 0 < asked == len(read_known()) - len(kept)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("overhead", [0.2, 1.02])
def test_under_noise_no_answer_is_slower_than_the_fastest_dense_tower(clock: Clock, overhead: float):
    """Quartiles of times are 40 % of the median apart; with the larger overhead no reduction pays."""
    clock.noise, clock.overhead = 0.3, overhead
    for seed in range(8):
        clock.rng = np.random.default_rng(seed)
        choice = chosen(SetupBounds(min_cosine=0.9), replace(CONFIG, methods=(), precisions=("float32", "bfloat16")))
        assert all(one.candidate.method != "random" for one in choice.judged)
        one = choice.judged[-1].candidate
        assert clock.true_ms(one) <= clock.true_ms(Candidate(Way(OPTIMIZED, "bfloat16")))
        if overhead > 1:
            assert (
                (one.method, one.way.precision) == (choice.setup.method, choice.setup.precision) == (None, "bfloat16")
            )


@pytest.mark.usefixtures("small", "clock")
def test_rungs_after_the_first_that_fails_are_not_judged(monkeypatch):
    """Of rungs that pass, pass, fail the second is chosen: the order is fixed beforehand, and a failure ends it."""
    met = iter((True, True, False))
    monkeypatch.setattr(SetupBounds, "meets", lambda *_: next(met))
    choice = chosen(SetupBounds(min_cosine=0.96))
    assert [one.passed for one in choice.judged] == [True, False, True]
    dense, failed, last = (one.candidate for one in choice.judged)
    assert dense.method is None
    assert failed.keep < last.keep


@pytest.mark.usefixtures("small", "clock")
def test_answers_meet_a_bound(named: Dataset, tower: Tower, monkeypatch):
    monkeypatch.setattr(module, "get_dataset", lambda name: named)
    choice = chosen(SetupBounds(max_loss=30))
    assert choice.setup.certificate["fidelity"]["diff_to_dense"]["low"] >= -0.3
    assert "top-1, points" in selection_table(choice).heads
    monkeypatch.setattr(module, "load_tower", lambda name: tower._replace(clip=None))
    with pytest.raises(ValueError, match=r"--max-loss 30: clip_vit_b16\S* has no text tower"):
        chosen(SetupBounds(max_loss=30))


@pytest.mark.usefixtures("small", "clock")
def test_what_comes_nearest_is_told_where_nothing_meets_the_bounds():
    choice = chosen(SetupBounds(min_cosine=0.9999999999999))
    assert choice.why.startswith("--min-cosine 0.9999999999999 is missed: the mean cosine on pictures held out")
    assert choice.judged[-1].candidate.method is None  # optimised, so not bit-equal
    assert chosen(SetupBounds(speed_up=20, min_cosine=0.97)).why.startswith("--speed-up 20 is missed: it is ")


@pytest.mark.usefixtures("small", "clock")
def test_a_method_without_a_predictor_is_left_out_and_told(predictor_file: Path):
    predictor_file.unlink()
    said: list[str] = []
    lab = make_lab(replace(CONFIG, methods=()), said.append)
    assert list(lab.left_out) == ["patchrank"]
    assert "patchrank is left out" in said[-1]
    tried = [way.method for way in lab.reductions]
    assert (tried.count("rankmerge"), {*tried}) == (3, set(usual_methods()) - {DENSE, GOLDEN, "patchrank", "random"})
    with pytest.raises(FileNotFoundError, match="no predictor"):
        chosen(SetupBounds(min_cosine=0.9))  # which asks for it by name


@pytest.mark.parametrize(("make", "quoted"), [
    (lambda: ChooseConfig(methods=("tomme",)), "--methods 'tomme': did you mean 'tome'"),
    (lambda: ChooseConfig(methods=("random",)), "--methods 'random' is a control"),
    (lambda: ChooseConfig(precisions=("float32", "int7")), "precisions=.int7.: did you mean 'int8'"),
    (lambda: ChooseConfig(runtimes=("openvin",)), "runtime 'openvin': did you mean 'openvino'"),
    (lambda: ChooseConfig(calibration=40), "calibration=40: expected an integer in .50"),
    (lambda: ChooseConfig(seconds=-1.0), "seconds=-1"),
    (lambda: ChooseConfig(held_out=1), "held_out=1: expected an integer in .20"),
    (lambda: chosen(SetupBounds(max_loss=5)), "--max-loss 5: dataset 'unlabelled' has no classes"),
    (lambda: make_lab(CONFIG, model="clip_vit_s14_tome60"), "'clip_vit_s14'"),
])  # fmt: skip
@pytest.mark.usefixtures("small")
def test_refusals(make: Callable[[], Any], quoted: str):
    with pytest.raises(ValueError, match=quoted):
        make()


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("foreign", ["local-dir"], indirect=True)
@pytest.mark.parametrize(
    "precision", [pytest.param(PRECISIONS[0], marks=pytest.mark.command("choose")), *PRECISIONS[1:]]
)
def test_what_the_command_prints_runs(precision: str, foreign: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 255, (32, 32, 32, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(f"photos/{number}.png")
    words = f"choose --model {foreign} --methods tome --runtimes optimized --precisions {precision} --images photos"
    command = [*words.split(), "--search", "8", "--held-out", "20", "--min-cosine"]
    assert main([*command, "0.98", "--output", "new/s.json", "--plot", "new/s.svg"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (embed,) = (shlex.split(line)[1:] for line in lines if line.startswith("patchrank "))
    assert main(embed) == 0
    assert "optimized " + precision in Path("new/s.svg").read_text()
    setup, scope, images = Setup.read(Path("new/s.json")), dict[str, Any](), torch.randn(2, 3, 32, 32)
    exec("\n".join(lines[-2:]), scope)
    with torch.inference_mode():
        assert torch.equal(scope["model"](images), zoo.optimize(setup.load().vit, dtype=precision)(images))
    capsys.readouterr()
    assert main([*command, "0.98", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["setup"]["options"] == setup.options
    assert main([*command, "0.98", "--speed-up", "20", "--output", "none/s.json"]) == 1
    assert not Path("none").exists()


@pytest.mark.usefixtures("small")
def test_what_is_judged_and_timed_is_what_the_file_loads(tower: Tower, unlabelled: Dataset, monkeypatch):
    """By the plain way; what can't be optimised is rounded."""
    images = torch.stack([tower.preprocess(example.image) for example in unlabelled.split("test")[:4]])
    lab = make_lab(replace(CONFIG, precisions=("float32", "bfloat16")))
    reduced = [reduction._replace(way=way, keep=0.5) for way in lab.ways for reduction in lab.reductions]
    for one in [*map(Candidate, lab.ways), *reduced]:
        with torch.inference_mode():
            features = zoo.optimize(lab._reduce(one), dtype=one.way.precision)(images)
            assert torch.equal(lab.serve(one).call(images), features)

    monkeypatch.setattr("zoo.deploy.optimized.optimize", Mock(side_effect=ValueError("not this one")))
    said: list[str] = []
    lab = make_lab(replace(CONFIG, precisions=("bfloat16",)), said.append)
    assert "run as they are: not this one" in said[0]
    one = lab.reductions[0]._replace(keep=0.5, way=lab.ways[0])  # that of reductions is the fastest of the processor
    with torch.inference_mode():
        low = lab.serve(one).call(images.to(torch.bfloat16))
        cosines = torch.cosine_similarity(low.float(), lab._reduce(one)(images))
    assert (one.method, low.dtype) == ("rankmerge", torch.bfloat16)
    assert cosines.min() > 0.95


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models that are exported, by a runtime that keeps them in memory."""
    made, models = list[str](), dict[Path, Any]()

    def export(model: Any, path: Path, images: torch.Tensor, **options: Any) -> None:
        assert (options["calibration"] is None) == (options["recipe"] is None)
        made.append(" ".join(map(str, (options["facts"]["model"], options["precision"], options["recipe"]))))
        models[path] = model
        path.write_bytes(b"whole")

    def load(path: Path) -> Any:
        if path.read_bytes() != b"whole":
            raise ValueError("it is cut")
        if not isinstance(models[path].reducer, Adaptive):
            return Mock(prepared=Prepared(call=models[path]))
        return Mock(prepared=Prepared.of_budgets(models[path], lambda tower: Prepared(call=tower)))

    for place in (export_module.__name__, Setup.__module__):
        monkeypatch.setattr(f"{place}.describe_preprocessing", lambda preprocess: {})
    monkeypatch.setattr(export_module, "export_model", export)
    monkeypatch.setattr(export_module, "load_exported", load)
    monkeypatch.setattr(type(find_runtime(OPENVINO)), "refusal", lambda *_, **__: "")
    return made


FILES = replace(CONFIG, methods=("tome",), runtimes=(OPENVINO,), precisions=("float32", INT8), calibration=80)


@pytest.mark.usefixtures("small", "clock")
def test_the_file_that_was_judged_is_in_the_setup(exports: list[str], unlabelled: Dataset, monkeypatch):
    """A file is made once; one that was cut is made again."""
    monkeypatch.setitem(type(unlabelled)._split.__globals__["COUNTS"], "train", 160)
    choice = chosen(SetupBounds(min_cosine=0.9), FILES)
    certificate, candidate = choice.setup.certificate, choice.judged[-1].candidate
    assert choice.setup.exported is not None
    assert (choice.setup.runtime, choice.setup.recipe) == (OPENVINO, candidate.way.recipe)
    assert certificate["dataset"]["calibration"]["pictures"] >= 50
    assert {row["runtime"] for row in certificate["candidates"]} == {OPENVINO}
    assert len(set(exports)) == len(exports) >= 5  # dense in float32 and int8, two keep rates, and a rung
    count = len(exports)
    file = Path(choice.setup.exported)
    file.write_bytes(b"who")
    left = file.with_name(f".{file.name}.1.partial")  # by a killed run
    left.mkdir()
    again = chosen(SetupBounds(min_cosine=0.9), FILES)
    assert (len(exports), left.exists()) == (count + 1, False)
    assert [one.fidelity for one in again.judged] == [one.fidelity for one in choice.judged]


@pytest.mark.usefixtures("small", "clock")
def test_budgets_per_picture_compete_with_fixed_keep_rates(
    exports: list[str], tower: Tower, unlabelled: Dataset, tmp_path: Path
):
    """Files are shared by all costs; the setup that is chosen has its own."""
    images = torch.stack([tower.preprocess(example.image) for example in unlabelled.split("train")[:6]])
    file = str(file_of(tower.vit, images, tmp_path))
    config = replace(CONFIG, methods=("rankmerge",), budgets=(file,), runtimes=(OPENVINO,))
    choice = chosen(SetupBounds(min_cosine=0.9), config)
    adaptive = [one.candidate for one in choice.judged if one.candidate.budgets is not None]
    assert (choice.judged[-1].candidate, choice.setup.budgets) == (adaptive[-1], file)
    assert choice.setup.cost == min(one.cost for one in adaptive) == 0.6 < max(one.cost for one in adaptive)
    assert len(exports) == 2  # dense and budgets
    lab = make_lab(config)
    reduced, pictures = choice.setup.reduce(tower), lab.held_out.images
    with torch.inference_mode():
        torch.testing.assert_close(lab.serve(adaptive[-1]).call(pictures), reduced(pictures))
        assert not torch.allclose(lab.serve(adaptive[0]).call(pictures), reduced(pictures), atol=1e-3)
    assert lab.work(adaptive[-1]) == pytest.approx(0.6, abs=0.1)


@pytest.mark.usefixtures("small", "clock", "exports")
def test_what_a_runtime_can_not_export_is_named_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch):
    config = replace(CONFIG, runtimes=(OPTIMIZED, OPENVINO))
    monkeypatch.setattr(export_module, "export_model", Mock(side_effect=RuntimeError("no translation for sort")))
    choice = chosen(SetupBounds(min_cosine=0.97), config)
    assert choice.setup.certificate["left_out"] == {"dense in openvino float32": "no translation for sort"}
    assert choice.setup.runtime == OPTIMIZED
    monkeypatch.setattr(
        export_module, "export_model", Mock(side_effect=NoRoomError("can't write 'm.xml': the disk is full"))
    )
    with pytest.raises(NoRoomError, match="the disk is full"):
        chosen(SetupBounds(min_cosine=0.97), config)


@pytest.mark.usefixtures("small", "clock")
def test_without_a_package_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("zoo.deploy.runtime.find_spec", lambda name: None)
    lab = make_lab(replace(CONFIG, runtimes=(), precisions=("float32", INT8)))
    assert [way.runtime for way in lab.ways] == [OPTIMIZED]
    assert "needs openvino" in lab.left_out["openvino in float32"]
    assert "pip install 'clip-patchrank[openvino]'" in lab.left_out["openvino in int8"]
    with pytest.raises(ValueError, match="leave no way to run the tower: openvino in float32: "):
        make_lab(replace(CONFIG, runtimes=(OPENVINO,)))
