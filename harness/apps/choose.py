"""The fastest setup of a tower that meets bounds, chosen on a user's own pictures and machine, with a certificate.

A setup is a way to run a model (runtime, precision, int8 recipe), a method, and a keep rate, or budgets at a mean cost.
Few are measured: fidelity is searched in float in the process, dense towers are timed in every way, one method at two
keep rates in every runtime that can still win. The rest is predicted, and what is chosen is judged and timed as it will
run. All that is said of keep rates holds for costs.
"""

import dataclasses
import math
import time
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from harness.base.table import UNMEASURED, Cell, Table, estimate_cell, points
from harness.base.terminal import Progress
from harness.measure.candidates import Candidate, ChooseConfig, Way
from harness.measure.fidelity import CHANGE, COSINE, NEIGHBOURS, TAIL_COSINE, SetupBounds
from harness.measure.lab import STAGES, Assessment, Lab, Prediction
from harness.records.statistics import Interval, exact
from harness.report.charts import Chart, Dot
from zoo.deploy.setup import Setup

SAFER = (8, 4, 2, 1, 0)  # keep rates above the lowest that meets the bounds: the rungs of the ladder
FEW_SAFER = (6, 2, 0)  # where each rung is quantised
ROOM = 0.5  # of the allowed loss: an int8 recipe that uses up less leaves enough for a reduction
LEAST_LOSS = 1e-5  # of 1 - cosine in a chart, whose axis is logarithmic
WORDS = {
    COSINE: "cosine",
    TAIL_COSINE: "cosine of 95 %",
    NEIGHBOURS: "neighbours",
    CHANGE: "top-1, points",
}  # metrics as columns


def build_ladder(lab: Lab) -> list[Candidate]:
    """Return setups that should meet the bounds, the most faithful first: dense towers, and reductions in one way.

    These are of the method that is fastest in the process, in the way in which they should be fastest, from a safe
    keep rate down to the lowest that should meet the bounds. If not even dense meets them, the most faithful dense
    tower is returned.
    """
    rates = _search_rates(lab)
    lab.begin(STAGES[2])
    for tower in lab.ratios(Candidate(way) for way in lab.ways if not way.recipes):
        lab.note(tower)
    lab.begin(STAGES[3])
    forecasts, runtimes = list[Forecast](), _order_runtimes(lab)
    with lab.progress.task("runtimes", len(runtimes)) as tick:
        for done, runtime in enumerate(runtimes, start=1):
            for way in (each for each in lab.ways if each.runtime == runtime):
                _try_recipes(lab, way, rates)
            if rates:
                forecasts += _forecast(lab, runtime, rates)
            tick(done)
    if not (dense := [tower for tower in lab.predictions if tower.method is None]):
        raise ValueError(f"no runtime can run the tower: {'; '.join(lab.left_out.values())}")
    if not (rungs := [tower for tower in dense if lab.share(tower) <= 1]):
        return [min(dense, key=lab.share)]
    if forecasts:
        best = min(forecasts, key=lambda each: each.note(lab, each.rates[0]).time)
        steps = FEW_SAFER if best.dense.way.recipe else SAFER
        for rate in (best.rates[up] for up in steps if up < len(best.rates)):
            best.note(lab, rate)
            rungs.append(rate._replace(way=best.dense.way))
    return sorted(rungs, key=lambda each: lab.predictions[each].share)


def _search_rates(lab: Lab) -> list[Candidate]:
    """Return the fastest method at all keep rates that meet the bounds, ascending, as the process runs it in float."""
    lab.begin(STAGES[0])
    dense = [tower for tower in map(Candidate, lab.inside) if lab.share(tower) <= 1]
    if not dense:
        return []
    ratios = lab.ratios(dense)
    way = min(dense, key=ratios.__getitem__).way
    lab.begin(STAGES[1])
    found = dict[Candidate, list[Candidate]]()  # by the lowest
    with lab.progress.task("methods", len(lab.reductions)) as tick:
        for done, reduction in enumerate(lab.reductions, start=1):
            if rates := _meeting(lab, reduction._replace(way=way).rates):
                found[rates[0]] = rates
            tick(done)
    ratios = lab.ratios(found)
    return found[min(ratios, key=ratios.__getitem__)] if ratios else []


def _order_runtimes(lab: Lab) -> list[str]:
    """Return the runtimes by the dense tower's times that are known in each, those without any first."""
    times: dict[str, list[float]] = {way.runtime: [] for way in lab.ways}
    for tower, took in lab.times.items():
        if tower.method is None and tower.way.runtime in times:
            times[tower.way.runtime].append(took)
    return sorted(times, key=lambda runtime: min(times[runtime], default=0.0))


def _meeting(lab: Lab, rates: list[Candidate], room: float = 1.0) -> list[Candidate]:
    """Return those of ascending keep rates that use up at most ``room`` of the allowed loss."""
    return rates[bisect_left(rates, -room, key=lambda rate: -lab.share(rate)) :]


def _try_recipes(lab: Lab, way: Way, rates: Sequence[Candidate]) -> None:
    """Try int8 recipes for the dense tower, the fastest first, until one leaves room for a reduction or can't win."""
    for recipe in way.recipes:
        tower = Candidate(way._replace(recipe=recipe))
        if lab.ratios([tower]):
            lab.note(tower)
            if lab.share(tower) <= ROOM or not _can_win(lab, tower, rates):
                break


def _can_win(lab: Lab, tower: Candidate, rates: Sequence[Candidate]) -> bool:
    """Tell whether reductions would be the fastest in the way of a dense tower if they took their share of its time."""
    known = [prediction.time for prediction in lab.predictions.values() if prediction.share <= 1]
    return lab.times[tower] * (lab.work(rates[0]) if rates else 1.0) < min(known, default=float("inf"))


class Forecast(NamedTuple):
    """What is expected of a method in a way to run it, from the method in float in the process.

    What a way's rounding loses is added to what a keep rate loses in float. A reduction takes its share, by
    multiply-adds, of the dense tower's time in its way, and an overhead that the runtime has in every precision: a line
    in multiply-adds through two keep rates that are timed.
    """

    dense: Candidate  # the dense tower in the way
    overhead: np.poly1d
    rates: Sequence[Candidate]  # in the process, that should meet the bounds in the way, ascending

    def note(self, lab: Lab, rate: Candidate) -> Prediction:
        """Note, and return, what is expected of a keep rate in the way."""
        inside, work = Candidate(rate.way), lab.work(rate)
        lost = max(0.0, lab.cosine(inside) - lab.cosine(self.dense))
        took = work * lab.times[self.dense] + float(self.overhead(work))
        expected = Prediction(lab.share(rate) + _rounding(lab, self.dense, inside), lab.cosine(rate) - lost, took)
        lab.predictions[rate._replace(way=self.dense.way)] = expected
        return expected


def _rounding(lab: Lab, tower: Candidate, inside: Candidate) -> float:
    """Return the share of the allowed loss that the way of a dense tower uses up beside that of the process."""
    return max(0.0, lab.share(tower) - lab.share(inside))


def _forecast(lab: Lab, runtime: str, rates: list[Candidate]) -> list[Forecast]:
    """Predict the method's lowest keep rate in each precision of a runtime in which it can still win.

    Two keep rates are timed in the fastest float precision of the runtime; without one, those in the process count.
    """
    towers = [each for each in lab.predictions if each.method is None and each.way.runtime == runtime]
    hopeful = [tower for tower in towers if lab.share(tower) <= 1 and _can_win(lab, tower, rates)]
    if not hopeful:
        return []
    inside = Candidate(rates[0].way)
    base = min((each for each in towers if not each.way.recipe), key=lab.times.__getitem__, default=inside)
    ends = {lab.work(rate): rate._replace(way=base.way) for rate in (rates[0], rates[len(rates) // 2])}
    times = lab.ratios([base, *ends.values()])
    over = {work: times[each] - work * times[base] for work, each in ends.items() if each in times}
    if not over:  # the runtime can't export the method
        return []
    overhead = np.poly1d(np.polyfit([*over], [*over.values()], len(over) - 1))
    meeting = {tower: _meeting(lab, rates, 1 - _rounding(lab, tower, inside)) for tower in hopeful}
    return [Forecast(tower, overhead, met) for tower, met in meeting.items() if met]


class Selection(NamedTuple):
    """The result of a search."""

    setup: Setup  # with its certificate; the nearest one if the bounds aren't met
    why: str  # the bounds aren't met; empty if they are
    judged: Sequence[Assessment]  # in their order, the chosen or nearest one last
    frontier: Sequence[Assessment]  # what was predicted or judged, by way, from dense down


def choose(
    model: str,
    dataset: str,
    bounds: SetupBounds,
    config: ChooseConfig,
    *,
    fresh: bool = False,
    progress: Progress,
) -> Selection:
    """Search the fastest setup of a tower that meets bounds on a dataset's pictures, on this machine.

    A search that was stopped goes on where it was, and one with other bounds takes what was measured on the same
    pictures; ``fresh`` measures everything anew.

    Raises:
        ValueError: a reduced model, too few pictures, or an unknown name.
        FileNotFoundError: weights or a file are missing.
        NoRoomError: there is no room for an exported file.
    """
    begun = time.monotonic()
    with progress.task("stages", len(STAGES)) as tick:
        lab = Lab(model, dataset, bounds, config, progress, fresh=fresh, tick=tick)
        judged = _judge(lab)
    why = _describe_miss(bounds, judged[-1])
    frontier = _list_frontier(lab, judged)
    setup = lab.certify(judged[-1], frontier, met=not why, seconds=time.monotonic() - begun)
    return Selection(setup, why, judged, frontier)


def _judge(lab: Lab) -> list[Assessment]:
    """Go down the ladder on pictures held out, from the most faithful rung on, until one fails.

    Tests in an order that is fixed beforehand need no correction (Maurer, Hothorn and Lehmacher, 1995). All that passed
    are timed in turn. The last reduction that passed competes with the dense towers, as the luckiest of several would
    seem to pay; the fastest that pays comes last in the list.
    """
    judged, ladder = dict[Candidate, Assessment](), build_ladder(lab)
    lab.begin(STAGES[4])
    with lab.progress.task("setups", len(ladder)) as tick:
        for done, rung in enumerate(ladder, start=1):
            if lab.available(rung):
                judged[rung] = lab.assess(rung)
                if not judged[rung].passed:
                    break
            tick(done)
    rivals = [candidate for candidate, assessment in judged.items() if assessment.passed] or list(judged)
    lab.begin(STAGES[-1])
    for candidate, time_of in lab.measure_times(rivals).items():
        judged[candidate] = dataclasses.replace(judged[candidate], time=time_of)
    reduced = [candidate for candidate in rivals if candidate.method is not None]
    rivals = [candidate for candidate in rivals if candidate.method is None or candidate == reduced[-1]]
    paying = [candidate for candidate in rivals if judged[candidate].pays] or rivals
    met = [candidate for candidate in paying if not _describe_miss(lab.bounds, judged[candidate])]
    last = judged.pop(min(met or paying, key=lambda candidate: judged[candidate].ratio.estimate))
    return [*judged.values(), last]


def _list_frontier(lab: Lab, judged: Sequence[Assessment]) -> list[Assessment]:
    """Return what was predicted or judged, by way, the way with the fastest setup first, and from dense down."""
    rows = {one: Assessment(candidate=one) for one in lab.predictions} | {each.candidate: each for each in judged}
    frontier = [dataclasses.replace(row, predicted=lab.predictions.get(one)) for one, row in rows.items()]
    least = dict[Way, float]()
    for row in frontier:
        way = row.candidate.way
        least[way] = min(least.get(way, math.inf), row.ratio.estimate)
    return sorted(frontier, key=lambda row: (least[row.candidate.way], str(row.candidate.way), -row.candidate.rate))


def _describe_miss(bounds: SetupBounds, assessment: Assessment) -> str:
    """Say which bound the ends of a setup's intervals miss, nothing if none."""
    for metric, least in bounds.floors.items():
        mean = assessment.fidelity[metric]
        flag = f"--max-loss {bounds.max_loss}" if metric == CHANGE else f"--min-{metric.replace('_', '-')} {least}"
        if mean.low < least:
            words = f"{mean.estimate:.5f}, by its interval at least {mean.low:.5f}"
            what = "cosine that 95 % reach" if metric == TAIL_COSINE else f"mean {WORDS[metric]}"
            return f"{flag} is missed: the {what} on pictures held out is {words}"
    ratio = assessment.ratio
    if bounds.speed_up is not None and ratio.high * bounds.speed_up > 1:
        words = f"{1 / ratio.estimate:.2f} times as fast as dense, by its interval at least {1 / ratio.high:.2f}"
        return f"--speed-up {bounds.speed_up} is missed: it is {words}"
    return "" if assessment.pays else "it isn't clearly faster than the fastest dense tower that meets the bounds"


def selection_table(selection: Selection) -> Table:
    """Show all setups that were measured or predicted, time against fidelity."""
    metrics = [metric for metric in WORDS if metric in selection.judged[-1].fidelity]
    rows, names = [], ("setup", "runtime", "precision", "recipe")
    for row in selection.frontier:
        met = "–" if row.passed is None else "yes" if row.passed else "no"
        if row.candidate == selection.judged[-1].candidate:
            met = "nearest" if selection.why else "chosen"
        took = _cell(row.ratio, 3) if row.time else Cell(f"~{row.ratio.estimate:.3f}", row.ratio.estimate)
        runtime, precision, recipe = row.candidate.way
        means = [_fidelity_cell(row, metric) for metric in metrics]
        rows.append([row.candidate.name, runtime, precision, recipe or "–", *means, took, met])
    dataset = selection.setup.certificate["dataset"]
    held = dataset["held_out"]
    ways = [row.candidate.way for row in selection.frontier]
    return Table.of(
        f"Setups of {selection.setup.model} on {held['pictures']} held-out pictures of {dataset['name']} "
        f"({held['photographs']} photographs)",
        [*names, *(WORDS[metric] for metric in metrics), "x dense", "met"],
        rows,
        words=(*names, "met"),
        sections=frozenset(at for at in range(1, len(ways)) if ways[at] != ways[at - 1]),
        caption="setup: method and keep rate in %; means are relative to dense in float32, with 95 % intervals over "
        "photographs; x dense: time relative to dense in eager float32; met: whether it meets the bounds on fidelity",
        legend="~: predicted from the pictures to search by and from few times, not judged or not timed in the end",
    )


def _cell(mean: Interval, digits: int) -> Cell:
    """Show an interval, its estimate alone where both ends read alike."""
    text = f"{{:.{digits}f}}".format
    return estimate_cell(mean.estimate if text(mean.low) == text(mean.high) else mean, text)


def _fidelity_cell(row: Assessment, metric: str) -> Cell:
    """Show a mean on pictures held out, or the cosine that is expected."""
    if row.passed is not None:
        return points(row.fidelity[metric]) if metric == CHANGE else _cell(row.fidelity[metric], 4)
    if row.predicted is not None and metric == COSINE:
        return Cell(f"~{row.predicted.cosine:.4f}", row.predicted.cosine)
    return UNMEASURED


def selection_chart(selection: Selection) -> Chart:
    """Return a chart of the setups, time against fidelity, a series for each way to run them."""
    series = dict[str, list[Dot]]()
    for row in selection.frontier:
        cosine = row.fidelity.get(COSINE) or (row.predicted and exact(row.predicted.cosine))
        assert cosine is not None
        mean, low, high = (max(1 - value, LEAST_LOSS) for value in cosine)
        name = str(row.candidate.way) + ("" if row.time else ", predicted")
        series.setdefault(name, []).append(Dot(row.ratio, Interval(mean, high, low), row.candidate.name))
    least = selection.setup.certificate["bounds"]["min_cosine"]
    return Chart(
        title=f"{selection.setup.model}: time against fidelity",
        x_label="time, relative to dense in eager float32",
        y_label="1 - cosine to dense, mean of pictures",
        series=series,
        level=None if least is None else 1 - least,
        log=True,
    )
