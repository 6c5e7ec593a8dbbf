"""What rankings were made from: told apart by everything but versions, readable when older."""

import json
from dataclasses import replace

import pytest

from harness.golden.store import Provenance


def test_json_brings_everything_back(provenance: Provenance):
    full = replace(provenance, greedy=4, approximate="sketch:16")
    again = Provenance.parse(full.json())
    assert again == full
    assert again.versions == full.versions == {"torch": "2.6"}


def test_versions_are_told_but_tell_nothing_apart(provenance: Provenance):
    other = replace(provenance, versions={"torch": "3.0"})
    assert other == provenance
    assert other.differences(provenance) == []
    assert other.json() != provenance.json()


def test_differences_name_field_and_both_values(provenance: Provenance):
    wanted = replace(provenance, greedy=4, revision="beef")
    assert provenance.differences(wanted) == [
        "revision='feedbeef0000' there, 'beef' wanted",
        "greedy=None there, 4 wanted",
    ]


def test_the_command_names_what_is_not_default(provenance: Provenance):
    command = (
        "python -m harness rank --model clip_vit_s14.imgfocus_lit --dataset fashion --split test "
        "--score preservation --block 3 --window 2 --stride 1"
    )
    assert provenance.command() == command
    assert replace(provenance, greedy=4).command() == f"{command} --greedy 4"
    assert replace(provenance, approximate="a:1").command() == f"{command} --approx a:1"
    folder = replace(provenance, dataset="holiday", split="all").command()
    assert folder == command.replace("--dataset fashion --split test", "--images FOLDER")


def test_provenance_that_is_older_than_a_field_has_its_default(provenance: Provenance):
    facts = json.loads(provenance.json())
    for later in ("greedy", "approximate", "versions"):
        del facts[later]
    old = Provenance.parse(json.dumps(facts))
    assert old == provenance
    assert (old.greedy, old.approximate, old.versions) == (None, None, {})


def test_provenance_that_does_not_fit_is_refused(provenance: Provenance):
    facts = json.loads(provenance.json())
    with pytest.raises(ValueError, match=r"provenance .*'mood': 'good'.*: expected the fields"):
        Provenance.parse(json.dumps(facts | {"mood": "good"}))
    del facts["weights"]
    with pytest.raises(ValueError, match=r"provenance .* missing .*'weights'"):
        Provenance.parse(json.dumps(facts))
