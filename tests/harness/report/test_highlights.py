"""A group in short claims no more than the tests on its images; what is missing has a command."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.cli.parser import build_parser
from harness.records.averages import Average, averages
from harness.records.record import Record, pack_correct
from harness.records.statistics import Interval, holm, mcnemar_exact
from harness.report.changes import read_run
from harness.report.groups import grouped
from harness.report.highlights import Highlights, Missing, Standing, highlights, missing, standings


def gflops(row: Average) -> Interval | None:
    value = row.mean("gflops")
    return None if value is None else Interval(value, value, value)


def verdicts(found: list[Standing]) -> dict[str, str]:
    return {one.row.first.model: one.verdict for one in found}


def drawn(row: Any, seed: int, count: int = 9, **more: Any) -> list[Record]:
    """Return rows of random accuracy and cost, on the same images."""
    rng = np.random.default_rng(seed)
    hard = rng.random(100)
    found = []
    for at in range(count):
        correct = hard < rng.choice([0.3, 0.5, 0.55, 0.8])
        correct ^= rng.random(100) < 0.05
        top1 = float(correct.mean())
        keep = round(0.1 + 0.08 * at, 2)
        change = {"correct_bits": pack_correct(correct), "top1": top1, "top1_low": 0.0}
        one = row("evit", keep, 0, float(rng.choice([1.0, 1.005, 1.5, 2.0, 3.0])), **more)
        found.append(replace(one, **change, top1_high=1.0))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_it_is_its_definition_read_slowly(row: Any, seed: int):
    rows = averages(drawn(row, seed))
    asked = [
        (a, b)
        for b in rows
        for a in rows
        if a is not b and a.first.gflops <= 1.01 * b.first.gflops and a.first.top1 > b.first.top1
    ]
    p_values = holm([mcnemar_exact(a.first.correct, b.first.correct) for a, b in asked])
    clear = [pair for pair, p in zip(asked, p_values, strict=True) if p <= 0.05]
    beaten = {b.first.model for _, b in clear}
    found = standings(rows, gflops)
    assert {m for m, v in verdicts(found).items() if v == "beaten"} == beaten
    for one in found:
        better = [
            other
            for other in rows
            if other.first.gflops <= one.row.first.gflops
            and other.first.top1 >= one.row.first.top1
            and (other.first.gflops, other.first.top1) != (one.row.first.gflops, one.row.first.top1)
        ]
        if one.verdict == "beaten":
            own = [a for a, b in clear if b.identity == one.row.identity]
            assert one.by is not None
            assert one.by.first.top1 == max(a.first.top1 for a in own)
        else:
            assert (one.verdict == "front") == (not better)
            assert one.by is None


def test_the_order_of_rows_does_not_matter(row: Any):
    rows = averages(drawn(row, 3))
    assert verdicts(standings(rows, gflops)) == verdicts(standings(rows[::-1], gflops))


def test_equal_rows_are_both_on_it(row: Any):
    twins = [row("evit", 0.6, 60, 2.0), row("tome", 0.6, 60, 2.0)]
    assert set(verdicts(standings(averages(twins), gflops)).values()) == {"front"}


def test_a_small_lead_beats_nobody(row: Any):
    rows = averages([row("evit", 0.6, 60, 2.0), row("tome", 0.6, 62, 2.0)])
    assert verdicts(standings(rows, gflops)) == {
        "clip_vit_s14_evit60": "open",
        "clip_vit_s14_tome60": "front",
    }


def test_a_row_that_is_cheaper_by_a_hair_can_be_beaten(row: Any):
    rows = [row("random", 0.6, 30, 2.0), row("tome", 0.6, 70, 2.01)]
    assert verdicts(standings(averages(rows), gflops))["clip_vit_s14_random60"] == "beaten"
    rows[1] = replace(rows[1], gflops=2.03)
    assert verdicts(standings(averages(rows), gflops))["clip_vit_s14_random60"] == "front"


def test_where_times_overlap_nobody_is_beaten(row: Any):
    rows = averages([row("random", 0.6, 30, 0.70), row("tome", 0.6, 70, 0.72)])

    def within(margin: float) -> dict[str, str]:
        def cost(one: Average) -> Interval:
            ratio = one.first.gflops or 0.0
            if one.method == "tome":
                ratio = 0.65
            return Interval(ratio, ratio - margin, ratio + margin)

        return verdicts(standings(rows, cost))

    assert within(0.01)["clip_vit_s14_random60"] == "beaten"
    assert within(0.05)["clip_vit_s14_random60"] == "open"


def test_means_over_seeds_are_judged_by_their_images(row: Any):
    seeds = [
        row(method, 0.6, right + seed, 2.0, seed=seed)
        for method, right in (("random", 30), ("evit", 60), ("tome", 61))
        for seed in (0, 1, 2)
    ]
    found = standings(averages(seeds), gflops)
    assert verdicts(found)["clip_vit_s14_random60"] == "beaten"
    assert verdicts(found)["clip_vit_s14_evit60"] == "open"
    [lost] = [one for one in found if one.by is not None]
    assert lost.by is not None
    assert lost.by.method == "tome"


def test_what_has_no_cost_takes_no_part(row: Any):
    rows = averages([row("golden", 0.6, 90), row("evit", 0.6, 60, 2.0)])
    assert verdicts(standings(rows, gflops)) == {"clip_vit_s14_evit60": "front"}
    assert standings(rows[:1], gflops) == []


def short(records: list[Record]) -> Highlights:
    [group] = grouped(records).groups
    return highlights(group)


@pytest.fixture
def rows(dense: Record, patchrank: Record, row: Any) -> list[Record]:
    lost = {"diff_to_dense": -0.3, "diff_low": -0.39, "diff_high": -0.21}
    return [dense, patchrank, row("random", 0.3, 40, 1.7, **lost)]


def test_the_cheapest_row_without_a_clear_loss_is_named_with_what_it_saves(rows: list[Record]):
    found = short(rows)
    assert found.least is not None
    assert found.least.method == "patchrank"  # random is cheaper and clearly worse
    assert found.saving.startswith(
        "Fewest GFLOPs without a clear loss to dense (70.0 %): patchrank 60 %, -2.0 points "
        "[-5.1, +1.2], 2.45 GFLOPs, 28 % fewer; 0.71 of dense's time at batch 1 [0.70, 0.73]; 0.70 "
        "of dense's time at batch 32 [0.69, 0.72]."
    )
    assert found.conditions == "100 images; a processor, cpu, float32, 2 threads"
    assert "Clearly beaten: random 30 %" not in " ".join(found.winners)


def test_few_discordant_images_show_no_loss_and_that_is_said(rows: list[Record]):
    assert "right on 2 images, too few to show a loss" in short(rows).saving


def test_what_so_many_images_would_show_is_said(dense: Record, row: Any):
    correct = np.arange(100) < 70
    other = correct.copy()
    other[np.arange(0, 100, 5)] ^= True
    bits = {"correct_bits": pack_correct(other), "top1": float(other.mean())}
    told = {"diff_to_dense": float(other.mean()) - 0.7, "diff_low": -0.15, "diff_high": 0.02}
    found = short([dense, replace(row("evit", 0.6, 62, 2.0), **bits, **told)])
    assert "No clear loss isn't no loss: 100 images show one of " in found.saving
    assert found.saving.endswith(" points in four of five cases.")


def test_costs_within_a_percent_are_one_and_the_more_accurate_row_is_named(rows: list[Record]):
    near = replace(rows[1], method="tome", top1=0.67, gflops=2.44, correct_bits=pack_correct(
        np.arange(100) < 67))  # fmt: skip
    found = short([*rows, near])
    assert found.least is not None
    assert found.least.method == "patchrank"
    far = short([*rows, replace(near, gflops=2.3)])
    assert far.least is not None
    assert far.least.method == "tome"


def test_a_loss_by_the_interval_alone_is_no_saving(dense: Record, patchrank: Record):
    """The exact test finds nothing in two images; the interval that stands beside it does."""
    found = short([dense, replace(patchrank, diff_low=-0.051, diff_high=-0.001)])
    assert found.least is None
    assert found.saving.startswith("Every row with fewer GFLOPs is less accurate")
    assert short([dense, patchrank]).least is not None


def test_fronts_are_told_by_each_cost(rows: list[Record], row: Any):
    beaten = row("evit", 0.6, 30, 2.6)
    found = short([*rows, beaten]).winners
    assert found[0].startswith("By GFLOPs: On the front: random 30 %, patchrank 60 %, dense.")
    assert found[0].endswith("Clearly beaten: evit 60 % (by patchrank 60 %).")
    assert found[1].startswith("By time at batch 1: On the front: patchrank 60 %, dense.")
    assert found[1].endswith("None is clearly beaten.")
    assert len(found) == 3


@pytest.mark.parametrize(
    ("keep", "told"),
    [
        (["random"], "There is no dense row, so no loss to it can be told."),
        (["dense"], "No row has both a difference to dense and counted GFLOPs."),
        (
            ["dense", "random"],
            "Every row with fewer GFLOPs is less accurate than dense by its interval or the test.",
        ),
    ],
)
def test_what_cannot_be_said_is_said(keep: list[str], told: str, rows: list[Record]):
    found = short([record for record in rows if record.method in keep])
    assert (found.saving, found.least) == (told, None)


def test_a_row_that_costs_more_saves_nothing(dense: Record, patchrank: Record):
    found = short([dense, replace(patchrank, gflops=3.5)])
    assert found.saving == "No row with a difference to dense has fewer GFLOPs."


def test_seeds_are_told(dense: Record, patchrank: Record):
    twice = [replace(record, seed=seed) for record in (dense, patchrank) for seed in (0, 1)]
    assert "100 images, mean of 2 seeds; " in short(twice).conditions


def test_the_page_has_it_before_the_contents_with_a_link_to_the_table(made: Any, rows):
    text, _ = made(rows)
    assert text.index("In short</h2>") < text.index('<nav aria-label="Contents">')
    assert '<li><p><a href="#table-1">fashion test' in text
    assert text.index("Fewest GFLOPs without") < text.index("<table")


RESULTS = Path(__file__).parents[3] / "docs" / "results"


def told(records: list[Record]) -> dict[str, Missing]:
    return {one.title: one for one in missing(grouped(records), traced=False)}


def parsed(one: Missing) -> Any:
    words = shlex.split(one.command)
    assert words[0] == "patchrank"
    return build_parser().parse_args(words[1:])


def test_a_bare_record_lacks_every_plot(row: Any):
    found = told([row("random", 0.6, 50)])
    assert list(found) == [
        "Top-1 against GFLOPs",
        "Top-1 against time",
        "Kendall τ against keep rate",
        "Tokens per block",
        "Top-1 by shots",
        "Agreement of rankings, and kept patches",
    ]
    for one in found.values():
        args = parsed(one)
        assert args.command == "compare"
        assert args.models == ["clip_vit_s14.saliency"]
        assert args.datasets == ["fashion"]
        assert args.keeps == [0.6]
        assert (args.split, args.limit, args.device, args.dtype) == ("test", 100, "cpu", "float32")
    assert parsed(found["Top-1 against time"]).batches == [1, 32]
    assert parsed(found["Top-1 against time"]).shots == [16]
    assert parsed(found["Kendall τ against keep rate"]).methods == ["golden", "random"]
    assert parsed(found["Top-1 by shots"]).shots == [0, 1, 2, 4, 8, 16]
    assert parsed(found["Agreement of rankings, and kept patches"]).fresh


def test_what_is_there_is_not_missing():
    found = told(read_run(RESULTS))
    assert list(found) == ["Top-1 by shots", "Agreement of rankings, and kept patches"]
    assert not any(
        "patches" in one.title for one in missing(grouped(read_run(RESULTS)), traced=True)
    )
    assert len(found["Top-1 by shots"].groups) == 2


def test_only_groups_that_lack_it_are_named(dense: Record):
    other = replace(dense, dataset="emoji", latency=(), gflops=None)
    found = told([dense, other])
    for title in ("Top-1 against GFLOPs", "Top-1 against time"):
        assert [name.split()[0] for name in found[title].groups] == ["emoji"]
        assert parsed(found[title]).datasets == ["emoji"]


def test_the_command_measures_under_the_same_conditions(row: Any):
    change = {"split": "val", "device": "cuda:0", "dtype": "bfloat16"}
    [one, *_] = told([row("random", 0.6, 50, **change)]).values()
    args = parsed(one)
    assert (args.split, args.device, args.dtype) == ("val", "cuda:0", "bfloat16")


def test_conditions_that_differ_are_left_to_the_reader(row: Any):
    two = [row("random", 0.6, 50, dtype=dtype) for dtype in ("float32", "bfloat16")]
    [one, *_] = told(two).values()
    assert "--dtype" not in one.command


def test_shots_are_not_missing_where_there_are_several(dense: Record):
    few = replace(dense, shots=4)
    assert "Top-1 by shots" not in told([dense, few])


@pytest.mark.parametrize("name", ["a b", "x;rm", "$(x)", "'q'"])
def test_names_are_quoted_for_the_shell(name: str, row: Any):
    [one, *_] = told([row("random", 0.6, 50, dataset=name)]).values()
    assert parsed(one).datasets == [name]
