"""Which images were right, and which records may not stand in one column."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays

from harness.records.record import (
    CONDITIONS,
    Record,
    by_image,
    conditions,
    differing,
    images_digest,
    in_words,
    pack_correct,
    read_records,
    refuse_mixed,
    unpack_correct,
)

CORRECT = np.array([1, 0, 1, 1, 0, 0, 0, 1, 1, 0], dtype=bool)


def record(**changed: object) -> Record:
    """Return the frozen record with some changes."""
    [known] = read_records(Path(__file__).parent / "schema" / "v6.jsonl")
    told = {"correct_bits": pack_correct(CORRECT), "image_count": 10, "top1": 0.5, "top1_low": 0.2}
    told |= {"images_sha256": "cd" * 32, "image_size": (196, 196), "top1_high": 0.8}
    told |= {"model": "clip_vit_s14", "method": "dense", "keep": 1.0}
    told |= {"shots": 16, "tuning": "t", "prompt_tokens": 8}
    return replace(known, **(told | changed))


DENSE = record()
FULL = record(model="clip_vit_s14_patchrank60", method="patchrank", keep=0.6)


def test_conditions_hold_for_every_method_of_a_run() -> None:
    assert conditions(DENSE) == conditions(FULL)
    refuse_mixed([DENSE, FULL])
    refuse_mixed([])


OTHER = {"tuning": "v", "images_sha256": "ef" * 32, "image_size": (224, 224)}


@pytest.mark.parametrize("name", CONDITIONS)
def test_each_condition_is_refused_when_it_differs(name: str) -> None:
    changed = getattr(FULL, name)
    changed = changed + 1 if isinstance(changed, int) else f"other {changed}"
    changed = OTHER.get(name, changed)
    more = {"image_count": {"correct_bits": pack_correct(np.append(CORRECT, True)), "top1": 6 / 11}}
    other = replace(FULL, **{name: changed, **more.get(name, {})})
    with pytest.raises(ValueError, match=f"records of different {name} cannot") as refused:
        refuse_mixed([DENSE, FULL, other])
    both = "clip_vit_s14, clip_vit_s14_patchrank60"
    known = getattr(DENSE, name)
    told = f": {name} {known!r} ({both}) and {changed!r} (clip_vit_s14_patchrank60); measure them"
    assert told in str(refused.value)


def test_all_that_differs_is_told_with_the_command_that_shows_both() -> None:
    others = [
        replace(FULL, model=f"m{at}", device_name="another", torch=f"2.1{at}.0+cpu")
        for at in range(5)
    ]
    with pytest.raises(ValueError, match=r"^records of different device_name, torch cannot") as no:
        refuse_mixed([DENSE, *others])
    told = str(no.value)
    assert "'another' (m0, m1, m2 and 2 more); torch '2.13.0+cpu' (clip_vit_s14, m3) and" in told
    assert told.endswith("see both by patchrank compare RUN_A RUN_B")


def test_what_varies_by_intention_is_let_pass_and_nothing_else() -> None:
    other = replace(FULL, seed=1)
    refuse_mixed([DENSE, FULL, other], varying=("seed",))
    with pytest.raises(ValueError, match="different tuning"):
        refuse_mixed([DENSE, replace(other, tuning="t")], varying=("seed",))


def test_the_digest_of_images_tells_order_names_and_number():
    lists = [["a", "b"], ["b", "a"], ["ab"], ["a", "b", "b"], ["a,b"], ["1:a"], [], [""], ["é"]]
    assert len({images_digest(names) for names in lists}) == len(lists)
    assert images_digest(iter(["a", "b"])) == images_digest(("a", "b"))
    # sha256 of "1:a1:b", by another program
    assert images_digest(["a", "b"]).startswith("facdde7abf1eac5b")


def test_only_what_differs_is_found_with_its_owners_once():
    told = [("x", {"n": 1, "m": 2}), ("y", {"n": 3, "m": 2}), ("y", {"n": 3, "m": 2})]
    assert differing(told) == {"n": {1: ["x"], 3: ["y"]}}
    assert in_words(differing(told)) == "n 1 (x) and 3 (y)"
    assert differing([("x", {"n": None}), ("y", {"n": 1})]) == {"n": {None: ["x"], 1: ["y"]}}
    assert differing([]) == {}


@given(arrays.arrays(np.bool_, arrays.array_shapes(min_dims=1, max_dims=1, max_side=99)))
def test_bits_round_trip(correct: np.ndarray) -> None:
    np.testing.assert_array_equal(unpack_correct(pack_correct(correct), len(correct)), correct)


def test_bits_are_in_image_order() -> None:
    assert pack_correct(CORRECT) == "b180"
    np.testing.assert_array_equal(unpack_correct("b180", 10), CORRECT)


def test_bitmaps_are_of_bools() -> None:
    with pytest.raises(ValueError, match=r"\(n,\) bool, got \(2,\) int64"):
        pack_correct(np.array([1, 0]))


IDS = [f"plain/test-{n}" for n in range(10)]


def test_answers_are_had_by_id_of_the_very_images() -> None:
    found = by_image(CORRECT, images_digest(IDS), IDS)
    assert list(found) == IDS
    assert [found[name] for name in IDS] == CORRECT.tolist()
    assert type(found[IDS[0]]) is bool


@pytest.mark.parametrize("ids", [IDS[::-1], IDS[:9], [*IDS[:9], "other"], []])
def test_answers_of_other_images_are_refused(ids: list[str]) -> None:
    with pytest.raises(ValueError, match=rf"these {len(ids)} images have the hash .* of 10, is of"):
        by_image(CORRECT, images_digest(IDS), ids)


def test_a_record_that_does_not_know_its_images_gives_no_answers_by_id() -> None:
    with pytest.raises(ValueError, match="of 10, doesn't say which images it is of: expected None"):
        by_image(CORRECT, None, IDS)
