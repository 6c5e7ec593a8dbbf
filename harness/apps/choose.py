"""The fastest setup of a tower that meets bounds, chosen on a user's own pictures and machine, with a certificate.

Fidelity rises with the keep rate, so each approach is bisected on some pictures for the fewest tokens that meet the
bounds. Of the fastest ones, with somewhat higher keep rates too, setups that no other beats in both time and fidelity
are the rungs of a ladder. Pictures that were held out decide how far down the ladder one may go: rungs are judged from
the most faithful on, and the first that fails ends it. Tests in an order that is fixed beforehand need no correction
(Maurer, Hothorn and Lehmacher, 1995): a setup that misses the bounds is certified no more often than the interval of a
single one is wrong.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.apps.candidates import DECIDING, Approach, Candidate, ChooseConfig, Lab
from harness.apps.fidelity import AGREEMENT, CHANGE, COSINE, OVERLAP, Q05, SetupBounds
from harness.apps.setup import Setup
from harness.base.table import UNMEASURED, Cell, Table, points
from harness.base.terminal import Progress
from harness.measure.match import Search, together

SAFER = (0, 1, 4)  # keep rates above the lowest that meets the bounds, which are rungs of the ladder
BEST, RUNGS = 3, 4  # approaches that the ladder is made of, the fastest; its rungs at most
ROUGH = 5  # calls of each setup, to compare approaches
SLACK = 0.03  # of the time that is asked for, which a search for it leaves, as timing again moves it
TRIES = 6  # setups that are timed against a bound on time, one after the other
STEPS = 5  # of a search beside the setups that are judged, at most
WORDS = {  # what metrics are called, as columns
    COSINE: "cosine",
    Q05: "5 % of cosines below",
    OVERLAP: "neighbour overlap",
    AGREEMENT: "same answer",
    CHANGE: "top-1, points",
}


def lowest(count: int, hint: int | None = None) -> Search:
    """Search the lowest of ``count`` indices whose answer is at most 1, ``count`` if there is none; answers fall.

    With a ``hint`` it looks there first, and farther away by and by.
    """
    low, high, reach, at = 0, count, 1, count // 2 if hint is None else min(hint, count - 1)
    while low < high:
        met = (yield at) <= 1
        low, high = (low, at) if met else (at + 1, high)
        at = (low + high) // 2
        if hint is not None:
            at = max(at, high - reach) if met else min(at, low + reach - 1)
            reach *= 2
    return low


def _lowest_rates(
    hints: Mapping[Approach, int | None],
    rates: Callable[[Approach], Sequence[float]],
    answers: Callable[[list[Candidate]], Mapping[Candidate, float]],
) -> dict[Approach, int]:
    """Return of each approach the place of the lowest of its rates whose answer is at most 1."""

    def ask(places: Mapping[Approach, int]) -> dict[Approach, float]:
        candidates = {way: Candidate(way, rates(way)[at]) for way, at in places.items()}
        answered = answers(list(candidates.values()))
        return {way: answered[one] for way, one in candidates.items()}

    return together({way: lowest(len(rates(way)), hint) for way, hint in hints.items()}, ask)


def ladder(
    approaches: Sequence[Approach], lab: Lab, on_step: Callable[[str], object] = lambda _: None
) -> list[Candidate]:
    """Return setups that should meet the bounds, each faster and less faithful than the one before.

    A first look at few pictures, in the precision of the first approach, finds those that are worth the rest. The last
    setup just meets the bounds by the pictures that were searched by. If none does, the most faithful is returned.
    """

    def candidates(places: Mapping[Approach, int]) -> dict[Approach, Candidate]:
        return {way: Candidate(way, way.rates[at]) for way, at in places.items() if at < len(way.rates)}

    alike = {way: dataclasses.replace(way, dtype=approaches[0].dtype) for way in approaches}
    leads = {way: one if one in alike else way for way, one in alike.items()}
    on_step("a first look at keep rates")
    first = _lowest_rates(
        dict.fromkeys(leads.values()), lambda way: way.rates, lambda some: lab.shares(some, first=True)
    )
    places = {way: first[lead] for way, lead in leads.items()}
    if met := candidates(places):
        on_step("times of all methods")
        rough = lab.ratios(met.values(), ROUGH)
        best = sorted(met, key=lambda way: rough[met[way]])[:BEST]
        on_step(f"keep rates of {', '.join(f'{way.name} in {way.dtype}' for way in best)}")
        places = _lowest_rates({way: places[way] for way in best}, lambda way: way.rates, lab.shares)
        met = candidates(places)
    if not met:
        every = [Candidate(way, way.rates[-1]) for way in approaches]
        shares = lab.shares(every)
        return [min(every, key=lambda one: shares[one])]
    rungs = [one for way in met for up in SAFER for one in candidates({way: places[way] + up}).values()]
    on_step("a ladder of setups")
    shares, ratios = lab.shares(rungs), lab.ratios(rungs, DECIDING)
    faster = [one for one in rungs if ratios[one] < 1] or [min(rungs, key=lambda one: ratios[one])]
    every = front({one: (ratios[one], shares[one]) for one in faster})
    return every if len(every) <= RUNGS else every[:1] + every[1 - RUNGS :]


def front(points: Mapping[Candidate, tuple[float, float]]) -> list[Candidate]:
    """Return candidates that none beats in time and fidelity, by (time, share used up); the most faithful first."""
    rungs, least = list[Candidate](), math.inf
    for one in sorted(points, key=lambda one: points[one]):
        if points[one][1] < least:
            least = points[one][1]
            rungs.append(one)
    return rungs[::-1]


def in_time(
    approaches: Sequence[Approach], lab: Lab, goal: float, on_step: Callable[[str], object] = lambda _: None
) -> list[Candidate]:
    """Return setups whose time is at most ``goal`` of dense's, the most faithful first; if none is, the fastest."""
    goal *= 1 - SLACK

    def slowest_first(way: Approach) -> Sequence[float]:
        return way.rates[::-1]

    def answers(some: list[Candidate]) -> dict[Candidate, float]:
        return {one: ratio / goal for one, ratio in lab.ratios(some, ROUGH).items()}

    on_step("keep rates in that time")
    places = _lowest_rates(dict.fromkeys(approaches), slowest_first, answers)
    met = [
        Candidate(way, rate)
        for way, at in places.items()
        for rate in slowest_first(way)[at : at + 3]  # and somewhat faster ones, should this one miss it
    ]
    if not met:
        every = [Candidate(way, way.rates[0]) for way in approaches]
        ratios = lab.ratios(every, ROUGH)
        return [min(every, key=lambda one: ratios[one])]
    on_step("fidelity")
    shares = lab.shares(met)
    return sorted(met, key=lambda one: shares[one])


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """A setup on pictures held out, or in time."""

    setup: Setup
    name: str  # of its approach
    keep: float
    passed: bool
    fidelity: dict[str, Any]  # see `Pictures.figures`
    time: dict[str, Any] | None = None  # see `Lab.times`; None if it wasn't timed by itself


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a search came to."""

    setup: Setup  # with its certificate; the nearest one if the bounds aren't met
    met: bool
    why: str  # the bounds aren't met, or nothing
    judged: tuple[Assessment, ...]  # in their order, the chosen or nearest one last
    seconds: float


def choose(
    model: str,
    dataset: str,
    bounds: SetupBounds,
    config: ChooseConfig | None = None,
    *,
    fresh: bool = False,
    progress: Progress,
) -> Selection:
    """Search the fastest setup of a tower that meets bounds on a dataset's pictures, on this machine.

    With bounds on time alone it is the most faithful one within them. A search that was stopped goes on where it was,
    and one with other bounds takes what the same machine measured before; ``fresh`` measures everything anew.

    Raises:
        ValueError: a reduced model, pictures or classes that a bound needs and that aren't there, or an unknown name.
        FileNotFoundError: weights or a file are missing.
    """
    begun = time.monotonic()
    lab = Lab(model, dataset, bounds, config or ChooseConfig(), progress, fresh=fresh)
    done = itertools.count(1)
    with progress.task(f"setups of {lab.tower.name}", STEPS + (RUNGS if bounds.floors else TRIES)) as update:

        def on_step(text: str) -> None:
            progress.say(text)
            update(next(done))

        judged = _by_fidelity(lab, on_step) if bounds.floors else _by_time(lab, on_step)
    last = judged[-1]
    why = _miss(bounds, last)
    certificate = {
        "bounds": {name: value for name, value in dataclasses.asdict(bounds).items() if value is not None},
        "met": not why,
        "fidelity": last.fidelity,
        "time": last.time,
        "judged": [
            {"name": one.name, "dtype": one.setup.dtype, "keep": one.keep, "passed": one.passed} for one in judged
        ],
        **lab.facts(),
        "predictors": [str(path) for path in lab.predictors(last.setup)],
        "seconds": time.monotonic() - begun,
    }
    setup = dataclasses.replace(last.setup, certificate=certificate)
    return Selection(setup=setup, met=not why, why=why, judged=tuple(judged), seconds=certificate["seconds"])


def _by_fidelity(lab: Lab, on_step: Callable[[str], object]) -> list[Assessment]:
    """Go down the ladder on pictures held out, from the most faithful rung on, until one fails; time the last good one.

    It comes last in the list. If the first fails, it is that one.
    """
    judged: dict[Candidate, Assessment] = {}
    for rung in ladder(lab.approaches, lab, on_step):
        on_step(f"{rung.approach.name} at keep {100 * rung.keep:.0f} % on pictures held out")
        figures = lab.figures(rung)
        judged[rung] = _assess(lab, rung, figures, passed=lab.bounds.meets(figures))
        if not judged[rung].passed:
            break
    chosen = [one for one, own in judged.items() if own.passed or len(judged) == 1][-1]
    last = judged.pop(chosen)
    on_step("time of the chosen setup")
    return [*judged.values(), dataclasses.replace(last, time=lab.times(chosen))]


def _by_time(lab: Lab, on_step: Callable[[str], object]) -> list[Assessment]:
    """Time setups, the most faithful first, until one is as fast as asked; it comes last, or the fastest if none is."""
    bounds, judged = lab.bounds, list[Assessment]()
    goals = [] if bounds.speed_up is None else [1 / bounds.speed_up]
    goals += [] if bounds.max_ms is None else [bounds.max_ms / lab.dense_ms]
    for one in in_time(lab.approaches, lab, min(goals), on_step)[:TRIES]:
        on_step(f"{one.approach.name} at keep {100 * one.keep:.0f} %")
        times = lab.times(one)
        judged.append(_assess(lab, one, lab.figures(one), passed=not _too_slow(bounds, times), time=times))
        if judged[-1].passed:
            return judged
    return sorted(judged, key=lambda one: one.time["ratio_to_dense"]["high"] if one.time else 0.0, reverse=True)


def _assess(lab: Lab, one: Candidate, figures: dict[str, Any], **outcome: Any) -> Assessment:
    return Assessment(setup=lab.setup(one), name=one.approach.name, keep=one.keep, fidelity=figures, **outcome)


def _too_slow(bounds: SetupBounds, times: Mapping[str, Any]) -> str:
    """Say which bound on time the ends of intervals miss, nothing if none."""
    ratio, call = times["ratio_to_dense"], times["median_ms"]
    if bounds.speed_up is not None and ratio["high"] * bounds.speed_up > 1:
        least = 1 / ratio["high"]
        return f"it is {1 / ratio['estimate']:.2f} times as fast as dense, by its interval at least {least:.2f}"
    if bounds.max_ms is not None and call["high"] > bounds.max_ms:
        return f"a call takes {call['estimate']:.4g} ms, by its interval at most {call['high']:.4g}"
    return ""


def _miss(bounds: SetupBounds, one: Assessment) -> str:
    """Say which bound a setup misses, nothing if none."""
    assert one.time is not None
    for metric, least in bounds.floors.items():
        figures = one.fidelity[metric]
        if figures["low"] < least:
            words = f"{figures['estimate']:.5f}, by its interval at least {figures['low']:.5f}"
            return f"the mean {WORDS[metric]} on pictures held out is {words}"
    ratio = one.time["ratio_to_dense"]["estimate"]
    slow = "" if ratio < 1 else f"it takes {ratio:.3f} of the dense tower's time"
    return _too_slow(bounds, one.time) or slow


def selection_table(selection: Selection) -> Table:
    """Show the setups that were judged, the chosen or nearest one last."""

    def interval(figures: Mapping[str, float], places: int) -> Cell:
        ends = [f"{figures[end]:.{places}f}" for end in ("estimate", "low", "high")]
        return Cell(f"{ends[0]} [{ends[1]}, {ends[2]}]", figures["estimate"])

    metrics = [metric for metric in WORDS if metric in selection.judged[-1].fidelity]
    rows = []
    for one in selection.judged:
        keep = "" if one.setup.method is None else f" {100 * one.keep:.0f}"
        cells = [Cell(f"{one.name}{keep}"), Cell(one.setup.dtype)]
        for metric in metrics:
            own = one.fidelity[metric]
            change = metric == CHANGE
            cells.append(points((own["estimate"], own["low"], own["high"])) if change else interval(own, 4))
        cells.append(UNMEASURED if one.time is None else interval(one.time["ratio_to_dense"], 2))
        rows.append([*cells, Cell("yes" if one.passed else "no")])
    facts = selection.setup.certificate["dataset"]
    held = facts["held_out"]
    return Table.of(
        f"Setups of {selection.setup.model} on {held['pictures']} pictures of {facts['name']} held out "
        f"({held['photographs']} photographs)",
        ["setup", "dtype", *(WORDS[metric] for metric in metrics), "x dense", "met"],
        rows,
        words=("setup", "dtype", "met"),
        roomy=[WORDS[metric] for metric in metrics[1:]],
        caption="setup: method and keep rate in %; means [95 % interval over photographs] beside the dense tower in "
        "float32; x dense: time; met: whether the bounds are; the last one is "
        f"{'chosen' if selection.met else 'the nearest'}",
    )
