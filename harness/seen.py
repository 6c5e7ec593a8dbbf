"""What rows said about images, kept so that no image is run twice."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.evaluate import PATCHWISE, Outcome


class Seen:
    """Outcomes by row and image."""

    def __init__(self) -> None:
        """Know nothing."""
        self._outcomes: dict[str, Outcome] = {}
        self._places: dict[str, dict[str, int]] = {}

    def lacking(self, keys: Iterable[str], image_ids: Sequence[str]) -> list[int]:
        """Return the positions of the images that one of these rows wasn't run on."""
        places = [self._places.get(key, {}) for key in keys]
        return [i for i, name in enumerate(image_ids) if any(name not in own for own in places)]

    def add(self, outcomes: Mapping[str, Outcome], image_ids: Sequence[str]) -> None:
        """Take outcomes by row, on these images; what is known of an image stays as it is."""
        for key, outcome in outcomes.items():
            places = self._places.setdefault(key, {})
            new = [i for i, name in enumerate(image_ids) if name not in places]
            places |= {image_ids[i]: len(places) + place for place, i in enumerate(new)}
            more = part(outcome, new)
            known = self._outcomes.get(key)
            self._outcomes[key] = more if known is None else _joined(known, more)

    def of(self, key: str, image_ids: Sequence[str]) -> Outcome:
        """Return a row's outcome on these images, in their order; it was run on all of them."""
        places = self._places[key]
        return part(self._outcomes[key], [places[name] for name in image_ids])


def part(outcome: Outcome, positions: Sequence[int] | NDArray[np.int64]) -> Outcome:
    """Return an outcome on the images at these positions, in this order."""
    chosen = np.array(positions, dtype=np.int64)
    return Outcome(
        features=outcome.features[torch.from_numpy(chosen)],
        final_tokens=outcome.final_tokens,
        **{name: values[chosen] for name, values in _patchwise(outcome).items()},
    )


def _joined(first: Outcome, second: Outcome) -> Outcome:
    ours, theirs = _patchwise(first), _patchwise(second)
    return Outcome(
        features=torch.cat([first.features, second.features]),
        final_tokens=first.final_tokens,
        **{name: np.concatenate([ours[name], theirs[name]]) for name in ours if name in theirs},
    )


def _patchwise(outcome: Outcome) -> dict[str, Any]:
    found = {name: getattr(outcome, name) for name in PATCHWISE}
    return {name: values for name, values in found.items() if values is not None}
