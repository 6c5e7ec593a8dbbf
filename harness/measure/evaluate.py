"""Run models over a dataset's images and read off accuracy and rankings."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.datasets.base import Dataset, Split
from harness.datasets.few_shot import batches
from harness.measure.rows import Outcome, Variant, run
from harness.records.conditions import GOLDEN
from harness.records.metrics import Importance


class OutcomeCache:
    """Outcomes by row and image, so that no image is run twice."""

    def __init__(self) -> None:
        """Start empty."""
        self._outcomes: dict[str, Outcome] = {}
        self._places: dict[str, dict[str, int]] = {}

    def missing(self, keys: Iterable[str], image_ids: Sequence[str]) -> list[int]:
        """Return the positions of the images that one of these rows wasn't run on."""
        places = [self._places.get(key, {}) for key in keys]
        return [i for i, name in enumerate(image_ids) if any(name not in own for own in places)]

    def add(self, outcomes: Mapping[str, Outcome], image_ids: Sequence[str]) -> None:
        """Take outcomes by row, on these images; what is known of an image stays as it is."""
        for key, outcome in outcomes.items():
            places = self._places.setdefault(key, {})
            new = [i for i, name in enumerate(image_ids) if name not in places]
            places |= {image_ids[i]: len(places) + place for place, i in enumerate(new)}
            known = [self._outcomes[key]] if key in self._outcomes else []
            self._outcomes[key] = Outcome.joined([*known, outcome.part(new)])

    def whole(
        self, keys: Sequence[str], split: Split, run: Callable[[Split], Mapping[str, Outcome]]
    ) -> dict[str, Outcome]:
        """Return the outcomes of rows on a split, by key; ``run`` them on what is missing."""
        ids = split.image_ids
        if new := self.missing(keys, ids):
            self.add(run(split.subset(new)), [ids[i] for i in new])
        return {key: self.of(key, ids) for key in keys}

    def of(self, key: str, image_ids: Sequence[str]) -> Outcome:
        """Return a row's outcome on these images, in their order; it was run on all of them."""
        places = self._places[key]
        return self._outcomes[key].part([places[name] for name in image_ids])


def outcomes(
    rows: Sequence[Variant],
    split: Split,
    preprocess: Any,
    *,
    device: torch.device,
    dtype: torch.dtype,
    importance: Mapping[str, Importance] | None = None,
    on_run: Callable[[int], None] = lambda _: None,
) -> dict[str, Outcome]:
    """Run variants of one dense tower, which is on ``device`` in ``dtype``, over a split.

    ``preprocess`` maps a PIL image to (C, H, W). ``importance`` is, by the key of a golden row,
    what it prunes by instead of its rankings. ``on_run`` takes after each row on a batch how often rows were
    run on an image.

    Raises:
        ValueError: a golden row, and an image without golden ranking; nothing was drawn.
    """
    golden = [row for row in rows if row.method == GOLDEN]
    if importance is None:
        importance = {row.key: _golden(row, split.image_ids) for row in golden}
    oracle = {row.key: torch.from_numpy(importance[row.key]).to(device) for row in golden}
    parts: dict[str, list[Outcome]] = {row.key: [] for row in rows}
    done = runs = 0

    def on_row() -> None:
        nonlocal runs
        runs += len(examples)
        on_run(runs)

    for examples, images in batches(split, preprocess):
        batch = {key: values[done : done + len(examples)] for key, values in oracle.items()}
        for key, output in run(rows, images.to(device, dtype), batch, on_row).items():
            parts[key].append(output)
        done += len(examples)
    return {key: Outcome.joined(part) for key, part in parts.items()}


def _golden(row: Variant, image_ids: Sequence[str]) -> Importance:
    """Return the golden importance of some images, (n, N)."""
    assert row.rankings is not None
    importance = row.rankings.of(image_ids)
    if (unranked := np.isnan(importance).any(axis=1)).any():
        missing = image_ids[int(np.flatnonzero(unranked)[0])]
        raise ValueError(f"no golden ranking for image {missing!r}")
    return importance


def captions_of(dataset: Dataset, image_ids: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Return the distinct texts of some images, and pairs (p, 2) of an image and a text that describes it."""
    places: dict[str, int] = {}
    pairs = [
        (image, places.setdefault(text, len(places)))
        for image, name in enumerate(image_ids)
        for text in dict.fromkeys(dataset.captions_of(name))
    ]
    return list(places), np.array(pairs, dtype=np.int64)


def feature_probe(features: Tensor) -> tuple[float, ...]:
    """Return the images' mean unit feature in eight fixed directions of random signs.

    Unlike what is told relative to the dense model it moves when all models' images are wrong alike.
    """
    signs = np.random.RandomState(0).choice([-1.0, 1.0], size=(features.shape[1], 8))  # frozen by numpy
    mean = features.double().mean(dim=0).numpy() @ signs / math.sqrt(features.shape[1])
    return tuple(mean.tolist())


def linear_probe(features: Tensor, labels: Tensor, classes: int, decay: float = 1e-3) -> Tensor:
    """Fit a multinomial logistic regression without bias, (classes, D), on unit features (n, D).

    ``decay`` is the weight of the squared weights in the loss.
    """
    weights = torch.zeros(classes, features.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(features @ weights.T, labels)
        loss = loss + decay * weights.square().sum() / classes
        loss.backward()
        return loss

    optimiser.step(closure)
    return weights.detach()
