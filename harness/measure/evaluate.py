"""Run models over a dataset's images and read off accuracy and rankings."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.datasets.base import Dataset, Split
from harness.datasets.few_shot import batches
from harness.measure.rows import Outcome, Variant, run
from harness.records.conditions import GOLDEN
from harness.records.record import RECALL_AT

Importance = NDArray[np.float32]  # (n, N), higher = keep, NaN where unknown
NEIGHBOURS = 10  # nearest images that `neighbours` looks for
LEAST_GALLERY = 500  # of fewer images the nearest say little about features
OVERFLOW = "image features overflowed; use --dtype bfloat16 or float32"
_PART = 2048  # images at once, so that a matrix of all pairs is never held


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


def predicted(features: Tensor, classifier: Tensor) -> NDArray[np.int64]:
    """Return the best class of each image, (n,), by features (n, D) and a classifier (classes, D).

    Rows of NaN are classes that can't win. Raises ValueError for features that aren't finite.
    """
    if not features.isfinite().all():
        raise ValueError(OVERFLOW)
    logits = (features @ classifier.T).nan_to_num(nan=-torch.inf)
    return np.asarray(logits.argmax(dim=1).numpy())


def correct(features: Tensor, classifier: Tensor, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell for each image whether the class of `predicted` is its own, ``labels`` (n,)."""
    return np.asarray(predicted(features, classifier) == labels)


def margin(features: Tensor, classifier: Tensor, labels: NDArray[np.int64]) -> float | None:
    """Return the mean cosine with an image's own class minus that with the best other class.

    It moves with every feature, of images and of text, long before an answer flips. None where
    there is only one class. Shapes are those of `correct`; features of images and text are unit.
    """
    cosines = (features @ classifier.T).nan_to_num(nan=-torch.inf)
    own = torch.from_numpy(labels).unsqueeze(1)
    others = cosines.scatter(1, own, -torch.inf).amax(dim=1)
    mean = float((cosines.gather(1, own).squeeze(1) - others).mean())
    return mean if math.isfinite(mean) else None


def cosine_distance(features: Tensor, dense: Tensor) -> NDArray[np.float64]:
    """Return 1 - cosine of each image's unit features (n, D) with the dense model's, (n,).

    By the difference of the two, so that nothing is cancelled and equal features are at exactly 0.
    """
    return np.asarray(((features.double() - dense.double()).square().sum(dim=1) / 2).numpy())


def divergence(
    features: Tensor, classifier: Tensor, dense: Tensor, dense_classifier: Tensor, scale: float
) -> NDArray[np.float64]:
    """Return KL(dense || row) of each image's class probabilities, in nats, (n,).

    Probabilities are the softmax of ``scale`` times the cosines of features (n, D) with the row's
    own classifier (classes, D); where prompts were learned each row has its own. Classes whose row
    is NaN are left out of both.
    """

    def log_chances(images: Tensor, classes: Tensor) -> Tensor:
        return (scale * (images.double() @ classes.double().T)).log_softmax(dim=1)

    known = ~(classifier + dense_classifier).isnan().any(dim=1)
    parts = []
    for own, other in zip(features.split(_PART), dense.split(_PART), strict=True):
        p, q = log_chances(other, dense_classifier[known]), log_chances(own, classifier[known])
        parts.append((p.exp() * (p - q)).sum(dim=1).clamp(min=0))
    return np.asarray(torch.cat(parts).numpy())


def neighbours(features: Tensor, gallery: Tensor) -> NDArray[np.int64]:
    """Return the `NEIGHBOURS` images whose ``gallery`` features are nearest each one's, (n, 10).

    Both are unit features (n, D) of the same images; an image is not its own neighbour.
    """
    parts = []
    for start, own in zip(range(0, len(features), _PART), features.split(_PART), strict=True):
        cosines = own @ gallery.T
        cosines[torch.arange(len(own)), start + torch.arange(len(own))] = -torch.inf
        parts.append(cosines.topk(NEIGHBOURS, dim=1).indices)
    return np.asarray(torch.cat(parts).numpy())


def overlap(found: NDArray[np.int64], truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of each image's true neighbours (n, k) that are among those found, (n,)."""
    return np.asarray((found[:, :, np.newaxis] == truth[:, np.newaxis]).any(axis=1).mean(axis=1))


class Captions(NamedTuple):
    """Distinct texts, unit features (m, D), and pairs (p, 2) int64 of an image and a text that describes it."""

    features: Tensor
    pairs: NDArray[np.int64]


def captions_of(dataset: Dataset, image_ids: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Return the distinct texts of some images, and pairs (p, 2) of an image and a text that describes it."""
    places: dict[str, int] = {}
    pairs = [
        (image, places.setdefault(text, len(places)))
        for image, name in enumerate(image_ids)
        for text in dict.fromkeys(dataset.captions_of(name))
    ]
    return list(places), np.array(pairs, dtype=np.int64)


def found_after(queries: Tensor, gallery: Tensor, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many entries of a gallery come before the first that is a query's own, (n,).

    Both are unit features, (n, D) and (m, D); ``pairs`` (p, 2) are a query and an entry of its own. What is as near as
    the own one comes before it, so that features that are all alike find nothing.
    """
    own, counts = torch.from_numpy(pairs), []
    for start, part in zip(range(0, len(queries), _PART), queries.split(_PART), strict=True):
        cosines = part @ gallery.T
        here = own[(own[:, 0] >= start) & (own[:, 0] < start + len(part))]
        mine = torch.zeros_like(cosines, dtype=torch.bool)
        mine[here[:, 0] - start, here[:, 1]] = True
        first = cosines.masked_fill(~mine, -torch.inf).amax(dim=1, keepdim=True)
        counts.append((cosines.masked_fill(mine, -torch.inf) >= first).sum(dim=1))
    return np.asarray(torch.cat(counts).numpy())


def recalls(features: Tensor, captions: Captions) -> dict[str, NDArray[Any]]:
    """Return the fields ``recall_*`` of each image, (n,), by unit image features (n, D).

    ``recall_text_K`` tells whether a text of the image is among the K nearest of all texts; ``recall_image_K`` is the
    share of its texts for which it, or another image of theirs, is among the K nearest images.
    """
    if not features.isfinite().all():
        raise ValueError(OVERFLOW)
    images, texts = captions.pairs.T
    by_image = found_after(features, captions.features, captions.pairs)
    by_text = found_after(captions.features, features, np.ascontiguousarray(captions.pairs[:, ::-1]))[texts]
    count = np.bincount(images, minlength=len(features))
    values: dict[str, NDArray[Any]] = {}
    for k in RECALL_AT:
        values[f"recall_image_{k}"] = np.bincount(images, by_text < k, minlength=len(features)) / count
        values[f"recall_text_{k}"] = by_image < k
    return values


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
