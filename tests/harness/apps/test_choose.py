"""The walk to the fastest setup: against trying everything, stopped and resumed, and for real."""

import copy
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import zoo
from harness.apps import candidates
from harness.apps.candidates import RATES, Approach, Candidate, ChooseConfig, Lab
from harness.apps.choose import SLACK, choose, in_time, ladder, lowest
from harness.apps.fidelity import Pictures, SetupBounds
from harness.apps.setup import Setup
from harness.base.terminal import Progress
from harness.cli.entry import main
from harness.datasets.base import Dataset
from harness.measure.match import together
from harness.measure.rows import rows_of
from harness.models.towers import Tower
from harness.records.times import Timing
from zoo.loading.learned_files import ScheduleFile

ARCH, TAG = "clip_vit_b16", "openai"


@pytest.mark.parametrize("count", [1, 10])
def test_the_lowest_place_is_the_one_that_a_look_at_all_finds(count: int):
    for truth, hint in itertools.product(range(count + 1), (None, *range(count + 2))):
        asked: list[int] = []

        def answer(places: Mapping[str, int], truth: int = truth, asked: list[int] = asked) -> dict[str, float]:
            asked.append(places[""])
            return {"": 0.5 if places[""] >= truth else 2.0}

        assert together({"": lowest(count, hint)}, answer) == {"": truth}
        assert len(set(asked)) == len(asked) <= 2 * math.log2(count) + 2
        if hint == truth < count:
            assert len(asked) <= 2


class Fake:
    """Setups whose fidelity and time are known, and how often they were asked for."""

    def __init__(self, seed: int, lines: int = 6) -> None:
        rng = np.random.default_rng(seed)
        methods = sorted(zoo.METHODS)[:lines]
        self.approaches = [
            Approach(dtype=dtype, method=method) for dtype in ("bfloat16", "float32") for method in methods
        ]
        self.approaches.append(Approach(dtype="bfloat16", rates=(1.0,)))
        self.power = dict(zip(methods, rng.uniform(1, 4, lines).tolist(), strict=True))
        self.scale = dict(zip(methods, rng.uniform(0.5, 5, lines).tolist(), strict=True))
        self.base = dict(zip(methods, rng.uniform(0.1, 0.5, lines).tolist(), strict=True))
        self.slow = {"bfloat16": 0.6, "float32": 1.0}
        self.asked = 0

    def share(self, one: Candidate) -> float:
        line, keep = one
        if line.method is None:
            return 0.05
        coarse = 0.02 if line.dtype == "bfloat16" else 0.0
        return self.scale[line.method] * (1 - keep) ** self.power[line.method] + coarse

    def ratio(self, one: Candidate) -> float:
        line, keep = one
        base = 1.0 if line.method is None else self.base[line.method] + (1 - self.base[line.method]) * keep
        return self.slow[line.dtype] * base

    def shares(self, candidates: Iterable[Candidate], *, first: bool = False) -> dict[Candidate, float]:
        self.asked += len(list(candidates))
        return {one: self.share(one) for one in candidates}

    def ratios(self, candidates: Iterable[Candidate], rounds: int) -> dict[Candidate, float]:
        return {one: self.ratio(one) for one in candidates}

    @property
    def every(self) -> list[Candidate]:
        return [Candidate(line, keep) for line in self.approaches for keep in line.rates]


@pytest.mark.parametrize("seed", range(3))
def test_the_last_rung_is_the_fastest_of_all_that_meet_the_bounds(seed: int):
    """The slow way tries every method, precision and keep rate."""
    fake = Fake(seed)
    rungs = ladder(fake.approaches, fake)
    fastest = min((one for one in fake.every if fake.share(one) <= 1), key=fake.ratio)
    assert fake.ratio(rungs[-1]) == pytest.approx(fake.ratio(fastest))
    assert fake.asked < len(fake.every) / 4
    for one, other in itertools.pairwise(rungs):
        assert fake.ratio(one) > fake.ratio(other)
        assert fake.share(one) < fake.share(other) <= 1


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("goal", [0.35, 0.8])
def test_in_a_time_the_first_is_the_most_faithful_of_all(seed: int, goal: float):
    fake = Fake(seed)
    within = [one for one in fake.every if fake.ratio(one) <= goal * (1 - SLACK)]
    found = in_time(fake.approaches, fake, goal)
    if not within:
        assert fake.ratio(found[0]) == min(map(fake.ratio, fake.every))
        return
    assert fake.share(found[0]) == min(map(fake.share, within))
    assert all(one in within for one in found)


METHODS = ("rankmerge", "tome", "clsattn", "patchrank")
CONFIG = ChooseConfig(methods=METHODS, dtypes=("float32",), search=20, held_out=40, seconds=0.0)


class Clock:
    """Times of models by how many patch tokens they keep, and what was measured."""

    def __init__(self) -> None:
        self.timed: list[int] = []
        self.ran = 0
        self.stop_after = math.inf

    def time_models(self, models: Mapping[str, Any], batch: int, rounds: int, **_: Any) -> dict[str, Timing]:
        self.timed.append(len(models))
        keeps = {name: 1.0 if vit.reducer is None else vit.reducer.config.keep for name, vit in models.items()}
        return {name: Timing(batch=batch, samples_ms=(20 + 80 * keep,) * rounds) for name, keep in keeps.items()}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("harness.measure.timing.time_models", clock.time_models)
    monkeypatch.setattr("harness.measure.timing.warnings_of", lambda *_: ())
    # A test of bootstraps is elsewhere.
    monkeypatch.setattr("harness.records.statistics.RESAMPLES", 400)

    features = Pictures.features

    def counted(pictures: Pictures, rows: Any) -> Any:
        clock.ran += len(rows) * len(pictures)
        if clock.ran > clock.stop_after:
            raise KeyboardInterrupt
        return features(pictures, rows)

    monkeypatch.setattr(Pictures, "features", counted)
    return clock


@pytest.fixture
def small(tower: Tower, unlabelled: Dataset, named: Dataset, predictor_file: Path, monkeypatch) -> None:
    """The tiny tower and toy images, whatever the names."""
    for dataset in (unlabelled, named):
        monkeypatch.setitem(type(dataset)._split.__globals__["COUNTS"], "train", 80)
        monkeypatch.setitem(type(dataset)._split.__globals__["COUNTS"], "test", 60)
    monkeypatch.setattr(candidates, "load_tower", lambda name: tower)
    monkeypatch.setattr(candidates, "get_dataset", lambda name: {"toy": unlabelled, "named": named}[name])
    monkeypatch.setattr("harness.apps.fidelity._NORMAL", 1.0)


def chosen(bounds: SetupBounds, config: ChooseConfig = CONFIG, dataset: str = "toy", **more: Any) -> Any:
    return choose(ARCH, dataset, bounds, config, progress=Progress(), **more)


@pytest.mark.usefixtures("small")
def test_the_choice_is_what_trying_all_gives(clock: Clock, tower: Tower, unlabelled: Dataset):
    """Time rises with the keep rate alone here, so the fewest tokens that any method needs are the fastest."""
    bounds = SetupBounds(min_cosine=0.97)
    config = replace(CONFIG, methods=METHODS[::2])
    choice = chosen(bounds, config)
    assert choice.met
    assert clock.timed[-1] == 3  # at last the chosen one and dense, as it is and optimised
    lab = Lab(ARCH, "toy", bounds, config, Progress())
    pairs = [(method, keep) for method in config.methods for keep in RATES if _able(tower, method, keep)]
    rows = rows_of(tower.vit, ARCH, TAG, pairs)
    values = lab.search.values(rows)
    share = {(row.method, row.keep): bounds.share(values[row.key], 40) for row in rows}
    last = choice.judged[-1]
    rungs = [one for one in choice.judged if one.passed]
    assert rungs[-1] is last
    assert all(share[one.name, one.keep] <= 1 for one in choice.judged)
    if len(rungs) == len(choice.judged):  # none failed, so it is the fastest of all
        assert last.keep == min(keep for (_, keep), used in share.items() if used <= 1)
    ratio = choice.setup.certificate["time"]["ratio_to_dense"]
    assert ratio["estimate"] == pytest.approx(0.2 + 0.8 * last.keep)


def _able(tower: Tower, method: str, keep: float) -> bool:
    try:
        rows_of(tower.vit, ARCH, TAG, [(method, keep)])
    except ValueError:
        return False
    return True


@pytest.mark.usefixtures("small")
def test_a_search_that_was_stopped_goes_on_where_it_was(clock: Clock):
    whole = chosen(SetupBounds(min_cosine=0.97), fresh=True)
    needed, clock.ran = clock.ran, 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates.Lab, "_identity", lambda lab: ["another search"])
        clock.stop_after = 0.5 * needed
        with pytest.raises(KeyboardInterrupt):
            chosen(SetupBounds(min_cosine=0.97))
        before, clock.ran, clock.stop_after = clock.ran, 0, math.inf
        again = chosen(SetupBounds(min_cosine=0.97))
    assert again.judged == whole.judged
    # What was cut short and the dense tower's features are run again, nothing else.
    assert before + clock.ran <= needed + 2 * 20 * len(METHODS) + 60 + 20
    assert clock.ran < needed


@pytest.mark.usefixtures("small")
def test_rungs_after_the_first_that_fails_are_not_judged(clock: Clock, monkeypatch):
    """Of rungs that pass, fail, pass the first is chosen: the order is fixed beforehand, and a failure ends it."""
    rungs: list[Candidate] = []

    def met(bounds: SetupBounds, figures: Any) -> bool:
        rungs.append(figures)
        return len(rungs) != 2

    monkeypatch.setattr(SetupBounds, "meets", met)
    choice = chosen(SetupBounds(min_cosine=0.96))
    assert len(rungs) == 2
    assert [one.passed for one in choice.judged] == [False, True]
    assert choice.judged[0].keep < choice.judged[1].keep


@pytest.mark.usefixtures("small")
def test_what_comes_nearest_is_told_where_nothing_meets_the_bounds(clock: Clock):
    choice = chosen(SetupBounds(min_cosine=0.9999999999999))
    assert not choice.met
    assert choice.why.startswith("the mean cosine on pictures held out is ")
    assert choice.judged[-1].name == "dense"  # optimised, so not bit-equal
    slow = chosen(SetupBounds(min_cosine=0.97, speed_up=20))
    assert not slow.met
    assert "times as fast as dense, by its interval at least" in slow.why


@pytest.mark.usefixtures("small")
def test_bounds_need_classes_or_many_pictures(clock: Clock):
    with pytest.raises(ValueError, match="--max-loss 5: dataset 'unlabelled'"):
        chosen(SetupBounds(max_loss=5))
    with pytest.raises(ValueError, match=r"--min-overlap 0\.9 with 20 pictures \(--search\)"):
        chosen(SetupBounds(min_overlap=0.9))
    choice = chosen(SetupBounds(max_loss=30), dataset="named")
    assert choice.met
    assert choice.setup.certificate["fidelity"]["top1_change"]["low"] >= -0.3
    assert "dense_agreement" in choice.setup.certificate["fidelity"]


@pytest.mark.usefixtures("small", "clock")
def test_a_method_without_a_predictor_is_left_out_and_told(predictor_file: Path):
    predictor_file.unlink()
    console = Console(record=True, width=300)
    usual = replace(CONFIG, methods=())
    lab = Lab(ARCH, "toy", SetupBounds(min_cosine=0.9), usual, Progress(console))
    assert list(lab.left_out) == ["patchrank"]
    assert "patchrank is left out: no predictor for clip_vit_b16.openai" in console.export_text()
    methods = [line.method for line in lab.approaches]
    assert methods == [None, "rankmerge", "tome", "clsattn", "evit", "random"]  # merging first
    with pytest.raises(FileNotFoundError, match="no predictor"):
        chosen(SetupBounds(min_cosine=0.9))  # which asks for it by name


@pytest.mark.usefixtures("small", "clock")
def test_a_schedule_is_stretched_over_keep_rates(tmp_path: Path, tower: Tower):
    file = ScheduleFile(
        reduce_at=(1, 3), schedule=(0.7,), keep=0.49, model=ARCH, tag=TAG, weights="", method="tome",
        options={"proportional": False}, cost={}, found=True, datasets=[], candidates=1, seconds=1.0, version="1",
    )  # fmt: skip
    file.write(tmp_path / "s.json")
    config = replace(CONFIG, methods=("clsattn",), schedules=(tmp_path / "s.json",))
    lab = Lab(ARCH, "toy", SetupBounds(min_cosine=0.9), config, Progress())
    line = lab.approaches[-1]
    assert (line.method, line.name) == ("tome", "tome with s.json")
    own = {"proportional": False, "reduce_at": [1, 3]}
    assert lab.options(Candidate(line, 0.49)) == own | {"schedule": [0.7], "keep": 0.49}
    assert lab.options(Candidate(line, 0.64)) == own | {"schedule": [0.8], "keep": 0.64}
    vit = lab.setup(Candidate(line, 0.64))
    assert zoo.reduce(tower.vit, method=vit.method, **vit.options).reducer.points == (1, 3)


@pytest.mark.usefixtures("small")
def test_a_recovery_is_a_setup_of_its_own(clock: Clock, tmp_path: Path, tower: Tower):
    """What it learned from doesn't decide; a recovery of other weights is refused by its file."""
    student, images = zoo.reduce(tower.vit, method="tome", keep=0.5), [torch.randn(4, 3, 64, 64)]
    recipe, path = zoo.RecoveryConfig(rounds=1, steps=1, batch=2), tmp_path / "r.safetensors"
    recovered = zoo.recover(student, images, images, recipe)
    origin = {"name": ARCH, "tag": TAG, "commit": None}
    zoo.save_recovery(path, student, recovered, recipe, **origin, datasets=[{"name": "elsewhere"}])
    config = replace(CONFIG, methods=("clsattn",), recoveries=(path,))
    lab = Lab(ARCH, "toy", SetupBounds(min_cosine=0.9), config, Progress())
    line = lab.approaches[-1]
    assert (line.name, line.rates) == ("tome with r.safetensors", (0.5,))
    assert "elsewhere" in lab._learned()
    one = Candidate(line, 0.5)
    setup = lab.setup(one)
    assert (setup.options, setup.recovery) == ({"keep": 0.5}, str(path))
    plain = zoo.add_recovery(zoo.reduce(tower.vit, method="tome", keep=0.5), path).eval()
    with torch.inference_mode():
        torch.testing.assert_close(lab.served_row(one).vit(images[0]), zoo.optimize(plain)(images[0]))
    assert chosen(SetupBounds(min_cosine=0.9), config).met
    other = tmp_path / "s.safetensors"
    stranger = copy.deepcopy(student)
    with torch.no_grad():
        stranger.blocks[0].mlp.fc1.weight += 1
    zoo.save_recovery(other, stranger, recovered, recipe, **origin, datasets=[{"name": "elsewhere"}])
    with pytest.raises(ValueError, match=r"s\.safetensors"):
        chosen(SetupBounds(min_cosine=0.9), replace(config, recoveries=(other,)))


@pytest.mark.parametrize(("make", "quoted"), [
    (lambda: ChooseConfig(methods=("tomme",)), "--methods 'tomme': did you mean 'tome'"),
    (lambda: ChooseConfig(dtypes=("int8",)), "--dtypes 'int8'"),
    (lambda: ChooseConfig(search=1), "--search 1: expected a number from 8"),
    (lambda: ChooseConfig(seconds=-1.0), "--seconds -1"),
    (
        lambda: choose("clip_vit_s14_tome60", "photos", SetupBounds(min_cosine=0.9), progress=Progress()),
        "name its dense tower, 'clip_vit_s14'",
    ),
])  # fmt: skip
def test_refusals(make: Callable[[], Any], quoted: str):
    with pytest.raises(ValueError, match=quoted):
        make()


COMMAND = "choose --methods rankmerge --dtypes float32 --rounds 6 --seconds 0 --batch 1"


@pytest.fixture
def command(small: None, clock: Clock, tmp_path: Path, monkeypatch) -> Callable[[str], int]:
    """Call the command with few toy images."""
    monkeypatch.chdir(tmp_path)
    more = "--dataset toy --search 20 --held-out 40"
    return lambda words: main([*COMMAND.split(), *more.split(), *words.split()])


def test_the_command_writes_the_setup_and_says_how_to_use_it(command: Callable[[str], int], capsys):
    assert command("--min-cosine 0.99 --output new/s.json") == 0
    out, err = capsys.readouterr()
    assert "a first look at keep rates" in err
    assert "wrote new/s.json" in out
    assert "patchrank embed FOLDER --model new/s.json --output vectors" in out
    setup = Setup.read(Path("new/s.json"))
    assert out.endswith(f"{setup.python()}\n")
    assert command("--min-cosine 0.99 --json -q") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["path"] == "setup.json"
    assert data["setup"]["options"] == setup.options
    assert command("--min-cosine 0.9999999999999 --output none/s.json") == 1
    assert "0.9999999999999" in capsys.readouterr().out
    assert not Path("none").exists()


def test_what_is_judged_and_timed_is_what_the_file_loads(small: None, tower: Tower, unlabelled: Dataset):
    """Every method and precision, by the plain way."""
    images = torch.stack([tower.preprocess(example.image) for example in unlabelled.split("test")[:4]])
    lab = Lab(ARCH, "toy", SetupBounds(min_cosine=0.9), replace(CONFIG, dtypes=("float32", "bfloat16")), Progress())
    for line in lab.approaches:
        one = Candidate(line, line.rates[len(line.rates) // 2])
        setup, row = lab.setup(one), lab.served_row(one)
        with torch.inference_mode():
            plain = lab.row(one).vit
            features = zoo.optimize(plain, dtype=line.dtype)(images)
            assert torch.equal(row.vit(images), features)
            assert plain.reducer is None or setup.options == {"keep": one.keep}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.apps.candidates.optimize", _refuse)
        console = Console(record=True, width=200)
        lab = Lab(ARCH, "toy", SetupBounds(min_cosine=0.9), replace(CONFIG, dtypes=("bfloat16",)), Progress(console))
        assert "models run as they are: not this one" in console.export_text()
        one = Candidate(lab.approaches[1], 0.5)
        assert (one.approach.method, lab.optimised) == ("rankmerge", False)
        with torch.inference_mode():
            low = lab.served_row(one).vit(images.to(torch.bfloat16))
            cosines = torch.cosine_similarity(low.float(), lab.row(one).vit(images))
        assert low.dtype == torch.bfloat16
        assert cosines.min() > 0.95
        assert next(lab.dense.vit.parameters()).dtype == torch.float32


def _refuse(*_: Any, **__: Any) -> Any:
    raise ValueError("not this one")
