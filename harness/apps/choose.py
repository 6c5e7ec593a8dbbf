"""The fastest setup of a tower that meets bounds, chosen on a user's own pictures and machine, with a certificate.

Fidelity rises with the keep rate, so each line (see `candidates`) is bisected on some pictures for the fewest tokens
that meet the bounds. Of the fastest lines, with somewhat higher keep rates too, setups that no other beats in both time
and fidelity are the rungs of a ladder. Pictures that were held out decide how far down the ladder one may go: rungs are
judged from the most faithful on, and the first that fails ends it. Tests in an order that is fixed beforehand need no
correction (Maurer, Hothorn and Lehmacher, 1995): a setup that misses the bounds is certified no more often than the
interval of a single one is wrong.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from harness.apps.candidates import DECIDING, Candidate, ChooseConfig, Lab, Line
from harness.apps.fidelity import AGREEMENT, CHANGE, COSINE, OVERLAP, Q05, Bounds
from harness.apps.setup import Setup
from harness.base.table import UNMEASURED, Cell, Table, points
from harness.base.terminal import Progress
from harness.measure.match import Search, together

SAFER = (0, 1, 4)  # keep rates above the lowest that meets the bounds, which are rungs of the ladder
BEST = 3  # lines that the ladder is made of, the fastest
RUNGS = 4  # of the ladder at most
ROUGH = 5  # calls of each setup, to compare lines
SLACK = 0.03  # of the time that is asked for, which a search for it leaves, as timing again moves it
TRIES = 6  # setups that are timed against a bound on time, one after the other
WORDS = {  # what metrics are called, as columns
    COSINE: "cosine",
    Q05: "5 % of cosines below",
    OVERLAP: "neighbour overlap",
    AGREEMENT: "same answer",
    CHANGE: "top-1, points",
}


class Instruments(Protocol):
    """What the search asks."""

    def used(self, candidates: Iterable[Candidate], *, first: bool = False) -> Mapping[Candidate, float]:
        """Return how much of what the bounds allow candidates use up, by pictures to search by or ``first`` ones."""

    def ratios(self, candidates: Iterable[Candidate], rounds: int) -> Mapping[Candidate, float]:
        """Return their times by the dense tower's in float32, all in the same rounds."""


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


def ladder(
    lines: Sequence[Line], tools: Instruments, on_step: Callable[[str], object] = lambda _: None
) -> list[Candidate]:
    """Return setups that should meet the bounds, each faster and less faithful than the one before.

    A first look at few pictures, in the precision of the first line, finds the lines that are worth the rest. The last
    setup just meets the bounds by the pictures that were searched by. If none does, the most faithful is returned.
    """
    alike = {line: dataclasses.replace(line, dtype=lines[0].dtype) for line in lines}
    leads = {line: one if one in alike else line for line, one in alike.items()}
    on_step("a first look at keep rates")
    places = _reached(dict.fromkeys(leads.values()), tools, first=True)
    met = {line: places[lead] for line, lead in leads.items() if places[lead] < len(line.rates)}
    if met:
        on_step("times of all methods")
        rough = tools.ratios([_candidate(line, at) for line, at in met.items()], ROUGH)
        best = sorted(met, key=lambda line: rough[_candidate(line, met[line])])[:BEST]
        on_step(f"keep rates of {', '.join(f'{line.name} in {line.dtype}' for line in best)}")
        places = _reached({line: met[line] for line in best}, tools)
        met = {line: at for line, at in places.items() if at < len(line.rates)}
    if not met:
        every = [Candidate(line, line.rates[-1]) for line in lines]
        used = tools.used(every)
        return [min(every, key=lambda one: used[one])]
    rungs = [_candidate(line, at + up) for line, at in met.items() for up in SAFER if at + up < len(line.rates)]
    on_step("a ladder of setups")
    used, ratios = tools.used(rungs), tools.ratios(rungs, DECIDING)
    faster = [one for one in rungs if ratios[one] < 1] or [min(rungs, key=lambda one: ratios[one])]
    every = front({one: (ratios[one], used[one]) for one in faster})
    return every if len(every) <= RUNGS else every[:1] + every[1 - RUNGS :]


def _candidate(line: Line, at: int) -> Candidate:
    return Candidate(line, line.rates[at])


def _reached(hints: Mapping[Line, int | None], tools: Instruments, *, first: bool = False) -> dict[Line, int]:
    """Return of each line the place of the lowest keep rate that meets the bounds."""

    def answers(asked: Mapping[Line, int]) -> dict[Line, float]:
        places = {line: _candidate(line, at) for line, at in asked.items()}
        used = tools.used(places.values(), first=first)
        return {line: used[one] for line, one in places.items()}

    return together({line: lowest(len(line.rates), hint) for line, hint in hints.items()}, answers)


def front(points: Mapping[Candidate, tuple[float, float]]) -> list[Candidate]:
    """Return candidates that none beats in time and fidelity, by (time, share used up); the most faithful first."""
    rungs, least = list[Candidate](), math.inf
    for one in sorted(points, key=lambda one: points[one]):
        if points[one][1] < least:
            least = points[one][1]
            rungs.append(one)
    return rungs[::-1]


def in_time(
    lines: Sequence[Line], tools: Instruments, goal: float, on_step: Callable[[str], object] = lambda _: None
) -> list[Candidate]:
    """Return setups whose time is at most ``goal`` of dense's, the most faithful first; if none is, the fastest."""
    goal *= 1 - SLACK
    slowest_first = {line: line.rates[::-1] for line in lines}

    def answers(asked: Mapping[Line, int]) -> dict[Line, float]:
        places = {line: Candidate(line, slowest_first[line][at]) for line, at in asked.items()}
        ratios = tools.ratios(places.values(), ROUGH)
        return {line: ratios[one] / goal for line, one in places.items()}

    on_step("keep rates in that time")
    reached = together({line: lowest(len(rates)) for line, rates in slowest_first.items()}, answers)
    met = [
        Candidate(line, rate)
        for line, at in reached.items()
        for rate in slowest_first[line][at : at + 3]  # and somewhat faster ones, should this one miss it
    ]
    if not met:
        every = [Candidate(line, line.rates[0]) for line in lines]
        ratios = tools.ratios(every, ROUGH)
        return [min(every, key=lambda one: ratios[one])]
    on_step("fidelity")
    used = tools.used(met)
    return sorted(met, key=lambda one: used[one])


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A setup that was judged, on pictures held out or in time."""

    setup: Setup
    name: str  # of its line
    keep: float
    passed: bool
    fidelity: dict[str, Any]  # see `Pictures.figures`
    time: dict[str, Any] | None = None  # see `Lab.times`; None if it wasn't timed by itself


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a search came to."""

    setup: Setup  # with its certificate; the nearest one if the bounds aren't met
    met: bool
    why: str  # the bounds aren't met, or nothing
    judged: tuple[Judged, ...]  # in their order, the chosen or nearest one last
    seconds: float


def choose(
    model: str,
    dataset: str,
    bounds: Bounds,
    config: ChooseConfig | None = None,
    *,
    fresh: bool = False,
    progress: Progress,
) -> Choice:
    """Search the fastest setup of a tower that meets bounds on a dataset's pictures, on this machine.

    With bounds on time alone it is the most faithful one within them. A search that was stopped goes on where it was,
    and one with other bounds takes what the same machine measured before; ``fresh`` measures everything anew.

    Raises:
        ValueError: a reduced model, pictures or classes that a bound needs and that aren't there, or an unknown name.
        FileNotFoundError: weights or a file are missing.
    """
    begun, config = time.monotonic(), config or ChooseConfig()
    lab = Lab(model, dataset, bounds, config, progress)
    if fresh:
        lab.forget()
    total = _expected(lab)
    with progress.overall(f"setups of {lab.tower.name}", total):
        judged = _by_fidelity(lab) if bounds.floors else _by_time(lab)
    last = judged[-1]
    assert last.time is not None
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
    return Choice(setup=setup, met=not why, why=why, judged=tuple(judged), seconds=certificate["seconds"])


def _expected(lab: Lab) -> int:
    """Return about how many times a row will run on a picture, for a bar that tells how long it takes."""
    lines, search, held_out = len(lab.lines), len(lab.search), len(lab.held_out)
    first, rungs = len(lab.first), BEST * len(SAFER)
    timed = (ROUGH + 1) * (lines + 1) + (DECIDING + 1) * (rungs + 1) + 4 * lab.config.rounds
    return 4 * first * lines + 2 * search * rungs + RUNGS * held_out + timed * lab.config.batch


def _by_fidelity(lab: Lab) -> list[Judged]:
    """Go down the ladder on pictures held out, from the most faithful rung on, until one fails; time the last good one.

    It comes last in the list. If the first fails, it is that one.
    """
    judged = []
    for rung in ladder(lab.lines, lab, lab.progress.say):
        figures = lab.figures(rung)
        judged.append((rung, figures, lab.bounds.met(figures)))
        if not judged[-1][2]:
            break
    good = [one for one in judged if one[2]] or judged
    rung, figures, passed = good[-1]
    lab.progress.say("time of the chosen setup")
    chosen = _judged(lab, rung, figures, passed, lab.times(rung))
    return [*(_judged(lab, *one) for one in judged if one[0] != rung), chosen]


def _by_time(lab: Lab) -> list[Judged]:
    """Time setups, the most faithful first, until one is as fast as asked; it comes last, or the fastest if none is."""
    bounds, judged = lab.bounds, list[Judged]()
    goals = [] if bounds.speed_up is None else [1 / bounds.speed_up]
    goals += [] if bounds.max_ms is None else [bounds.max_ms / lab.dense_ms]
    for one in in_time(lab.lines, lab, min(goals), lab.progress.say)[:TRIES]:
        times = lab.times(one)
        judged.append(_judged(lab, one, lab.figures(one), not _too_slow(bounds, times), times))
        if judged[-1].passed:
            return judged
    return sorted(judged, key=_ratio, reverse=True)


def _ratio(one: Judged) -> float:
    assert one.time is not None
    return float(one.time["ratio_to_dense"]["high"])


def _judged(
    lab: Lab, one: Candidate, figures: dict[str, Any], passed: bool, times: dict[str, Any] | None = None
) -> Judged:
    return Judged(setup=lab.setup(one), name=one.line.name, keep=one.keep, passed=passed, fidelity=figures, time=times)


def _too_slow(bounds: Bounds, times: Mapping[str, Any]) -> str:
    """Say which bound on time the ends of intervals miss, nothing if none."""
    ratio, call = times["ratio_to_dense"], times["median_ms"]
    if bounds.speed_up is not None and ratio["high"] * bounds.speed_up > 1:
        least = 1 / ratio["high"]
        return f"it is {1 / ratio['estimate']:.2f} times as fast as dense, by its interval at least {least:.2f}"
    if bounds.max_ms is not None and call["high"] > bounds.max_ms:
        return f"a call takes {call['estimate']:.4g} ms, by its interval at most {call['high']:.4g}"
    return ""


def _miss(bounds: Bounds, one: Judged) -> str:
    """Say which bound a setup misses, nothing if none."""
    assert one.time is not None
    for metric, floor in bounds.floors.items():
        figures = one.fidelity[metric]
        if figures["low"] < floor.least:
            words = f"{figures['estimate']:.5f}, by its interval at least {figures['low']:.5f}"
            return f"the mean {WORDS[metric]} on pictures held out is {words}"
    slow = _too_slow(bounds, one.time)
    if not slow and one.time["ratio_to_dense"]["estimate"] >= 1:
        slow = f"it takes {one.time['ratio_to_dense']['estimate']:.3f} of the dense tower's time"
    return slow


def choice_table(choice: Choice) -> Table:
    """Show the setups that were judged, the chosen or nearest one last."""
    metrics = [metric for metric in WORDS if metric in choice.judged[-1].fidelity]
    rows = []
    for one in choice.judged:
        keep = "" if one.setup.method is None else f" {100 * one.keep:.0f}"
        cells = [Cell(f"{one.name}{keep}"), Cell(one.setup.dtype)]
        for metric in metrics:
            estimate, low, high = (one.fidelity[metric][end] for end in ("estimate", "low", "high"))
            if metric == CHANGE:
                cells.append(points((estimate, low, high)))
            else:
                cells.append(Cell(f"{estimate:.4f} [{low:.4f}, {high:.4f}]", estimate))
        ratio = None if one.time is None else one.time["ratio_to_dense"]
        text = "" if ratio is None else f"{ratio['estimate']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        cells.append(Cell(text, ratio["estimate"]) if ratio is not None else UNMEASURED)
        rows.append([*cells, Cell("yes" if one.passed else "no")])
    facts = choice.setup.certificate["dataset"]
    held = facts["held_out"]
    return Table.of(
        f"Setups of {choice.setup.model} on {held['pictures']} pictures of {facts['name']} held out "
        f"({held['photographs']} photographs)",
        ["setup", "dtype", *(WORDS[metric] for metric in metrics), "x dense", "met"],
        rows,
        words=("setup", "dtype", "met"),
        roomy=[WORDS[metric] for metric in metrics[1:]],
        caption="setup: method and keep rate in %; means [95 % interval over photographs] beside the dense tower in "
        "float32; x dense: time; met: whether the bounds are; the last one is "
        f"{'chosen' if choice.met else 'the nearest'}",
    )
