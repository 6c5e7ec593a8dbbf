"""What rows said is kept by image, whatever order and parts they were asked in."""

import numpy as np
import pytest
import torch

from harness.measure.evaluate import Outcome, Seen

IDS = tuple("abcdef")


def said(ids: str, scored: bool = True, more: float = 0.0) -> Outcome:
    """Say of each image the position of its letter."""
    numbers = np.array([IDS.index(name) + more for name in ids], dtype=np.float32)
    scores = numbers[:, None].repeat(3, axis=1) if scored else None
    features = torch.from_numpy(numbers)[:, None].repeat(1, 2)
    return Outcome(features=features, scores=scores, final_tokens=3)


@pytest.mark.parametrize("scored", [True, False])
def test_parts_make_the_whole_in_any_order(scored: bool):
    seen = Seen()
    assert seen.lacking(["row"], "abc") == [0, 1, 2]
    seen.add({"row": said("eb", scored)}, "eb")
    assert seen.lacking(["row"], "abcde") == [0, 2, 3]
    seen.add({"row": said("acd", scored)}, "acd")
    assert seen.lacking(["row"], "abcde") == []
    for ids in ("dcbae", "ad", "e"):
        found, wanted = seen.of("row", ids), said(ids, scored)
        assert torch.equal(found.features, wanted.features)
        assert found.final_tokens == 3
        assert (found.scores is None) == (not scored)
        if scored:
            assert np.array_equal(found.scores, wanted.scores)


def test_an_image_lacks_if_one_of_the_rows_was_not_run_on_it():
    seen = Seen()
    seen.add({"one": said("ab"), "other": said("ab")}, "ab")
    seen.add({"one": said("c")}, "c")
    assert seen.lacking(["one"], "abc") == []
    assert seen.lacking(["one", "other"], "abc") == [2]
    assert seen.lacking(["one", "new"], "abc") == [0, 1, 2]


def test_what_is_known_of_an_image_stays():
    seen = Seen()
    seen.add({"row": said("ab")}, "ab")
    seen.add({"row": said("bc", more=0.5)}, "bc")
    assert seen.of("row", "abc").features[:, 0].tolist() == [0, 1, 2.5]
