"""What may not stand in one column is refused, and all that differs is told."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.records import (
    CONDITIONS,
    LATER_CONDITIONS,
    Record,
    conditions,
    differing,
    images_digest,
    in_words,
    pack_correct,
    read_records,
    refuse_mixed,
)

CORRECT = np.array([1, 0, 1, 1, 0, 0, 0, 1, 1, 0], dtype=bool)


def record(**changed: object) -> Record:
    """Return a line of an earlier version with what the present one knows of it."""
    [known] = read_records(Path(__file__).parent / "schema" / "v5.jsonl")
    told = {"correct_bits": pack_correct(CORRECT), "image_count": 10, "top1": 0.5, "top1_low": 0.2}
    told |= {"images_sha256": "cd" * 32, "image_size": (196, 196), "top1_high": 0.8}
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
    assert told.endswith("see both by python -m harness compare RUN_A RUN_B")


@pytest.mark.parametrize("name", LATER_CONDITIONS)
def test_what_an_earlier_version_did_not_know_differs_from_nothing(name: str) -> None:
    unknown = replace(DENSE, **{name: None})
    refuse_mixed([unknown, DENSE, FULL])
    other = replace(FULL, **{name: OTHER[name]})
    with pytest.raises(ValueError, match=f"different {name}"):
        refuse_mixed([unknown, DENSE, other])  # whatever the first one says


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
    assert differing([("x", {"n": None}), ("y", {"n": 1})], unknown=["n"]) == {}
    assert differing([]) == {}
