"""Run models over a dataset's images and read off accuracy and rankings."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.datasets.base import Dataset, Example, Split
from harness.few_shot import seeded_order
from harness.variants import GOLDEN, Variant, run
from zoo.clip import ClipParts, class_features

BATCH = 32
SUBSET_SEED = 0
PATCHWISE = ("scores", "left", "token")  # of an outcome: a value per patch, if anything went


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A variant on a set of images, in image order.

    Attributes:
        features: (n, D) unit image features.
        scores: (n, N) float, higher = kept longer, or None.
        final_tokens: patch tokens left at the end.
        left: (n, N) int16 block at which a patch's own token went, -1 where it stayed; or None.
        token: (n, N) int16 grid position of the token that a patch is in at the end, -1 where it
            was dropped; or None.
    """

    features: Tensor
    scores: NDArray[np.float32] | None = None
    final_tokens: int
    left: NDArray[np.int16] | None = None
    token: NDArray[np.int16] | None = None


def subset(split: Split, limit: int | None) -> Split:
    """Take a fixed, class-balanced part of a split: ``limit`` images, or all if None.

    Classes give in turn until ``limit`` is reached; which image a class gives next is drawn once
    and for all, so that a smaller subset is part of a larger one.
    """
    if limit is None or limit >= len(split):
        return split
    return split.subset(np.sort(turns(split.labels)[:limit]))


def turns(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Order images so that the first few, however many, are class-balanced.

    Args:
        labels: (n,) true classes; images of unknown class count as one class.

    Returns:
        (n,) positions. Classes give in turn; which image a class gives next is drawn once and for
        all.
    """
    order = seeded_order(len(labels), SUBSET_SEED)
    grouped = np.argsort(labels[order], kind="stable")
    _, starts, counts = np.unique(labels[order][grouped], return_index=True, return_counts=True)
    turn = np.empty(len(labels), dtype=np.int64)
    turn[grouped] = np.arange(len(labels)) - np.repeat(starts, counts)
    return order[np.argsort(turn, kind="stable")]


def batches(split: Split, preprocess: Any) -> Iterator[tuple[list[Example], Tensor]]:
    """Yield the examples of a split with their images (B, C, H, W), ``BATCH`` at a time."""
    for start in range(0, len(split), BATCH):
        examples = [split[i] for i in range(start, min(start + BATCH, len(split)))]
        yield examples, torch.stack([preprocess(example.image) for example in examples])


def outcomes(
    rows: Sequence[Variant],
    split: Split,
    preprocess: Any,
    *,
    device: torch.device,
    dtype: torch.dtype,
    on_batch: Callable[[int], None] = lambda _: None,
) -> dict[str, Outcome]:
    """Run all rows over a split; their model must be on ``device`` in ``dtype`` already.

    Args:
        rows: variants of one dense tower, golden ones with their rankings.
        split: the images.
        preprocess: from PIL image to (C, H, W).
        device: where to compute.
        dtype: of the computation.
        on_batch: called with the number of images done.

    Returns:
        What came out, by the key of the row.

    Raises:
        ValueError: a golden row, and an image without golden ranking; nothing was drawn.
    """
    known = {
        row.key: torch.from_numpy(_golden(row, split.image_ids)).to(device)
        for row in rows
        if row.method == GOLDEN
    }
    parts: dict[str, list[Any]] = {row.key: [] for row in rows}
    done = 0
    for examples, images in batches(split, preprocess):
        golden = {key: every[done : done + len(examples)] for key, every in known.items()}
        for key, output in run(rows, images.to(device, dtype), golden).items():
            parts[key].append(output)
        done += len(examples)
        on_batch(done)
    return {key: _joined(part) for key, part in parts.items()}


def _golden(row: Variant, image_ids: Sequence[str]) -> NDArray[np.float32]:
    """Return the golden importance of some images, (n, N).

    Raises:
        ValueError: an image has none.
    """
    assert row.rankings is not None
    known = row.rankings.of(image_ids)
    if (lacking := np.isnan(known).any(axis=1)).any():
        missing = image_ids[int(np.flatnonzero(lacking)[0])]
        raise ValueError(f"no golden ranking for image {missing!r}")
    return known


def _joined(parts: list[Any]) -> Outcome:
    told = [name for name in PATCHWISE if getattr(parts[0], name) is not None]
    return Outcome(
        features=torch.cat([part.features.cpu() for part in parts]),
        final_tokens=parts[0].final_tokens,
        **{name: torch.cat([getattr(p, name).cpu() for p in parts]).numpy() for name in told},
    )


def text_classifier(parts: ClipParts, dataset: Dataset) -> tuple[Tensor, tuple[str, ...]]:
    """Encode the dataset's classes; those with words the text tower never saw are left out.

    Returns:
        (classes, D) unit features with a row of NaN for a class left out, and the names left out.
    """
    rows, left_out = [], []
    for name in dataset.classes:
        try:
            rows.append(class_features(parts.model, parts.tokenizer, [name], dataset.templates)[0])
        except ValueError:
            left_out.append(name)
            rows.append(torch.full((parts.model.visual.num_classes,), torch.nan))
    return torch.stack(rows), tuple(left_out)


def nameable(split: Split, classifier: Tensor | None) -> Split:
    """Leave out the images of classes that ``classifier`` has no row for (rows of NaN)."""
    if classifier is None or not classifier.isnan().any():
        return split
    return split.subset(np.flatnonzero(named(classifier)[split.labels]))


def named(classifier: Tensor) -> NDArray[np.bool_]:
    """Tell which classes ``classifier`` has a row for, (classes,)."""
    return np.asarray(~classifier.isnan().any(dim=1).numpy())


def predicted(features: Tensor, classifier: Tensor) -> NDArray[np.int64]:
    """Return the best class of each image, (n,).

    Args:
        features: (n, D) image features.
        classifier: (classes, D); rows of NaN are classes that can't win.

    Raises:
        ValueError: a feature is not a finite number.
    """
    if not features.isfinite().all():
        raise ValueError("image features overflowed; use --dtype bfloat16 or float32")
    logits = (features @ classifier.T).nan_to_num(nan=-torch.inf)
    return np.asarray(logits.argmax(dim=1).numpy())


def correct(features: Tensor, classifier: Tensor, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell for each image whether the best class, as in `predicted`, is its own, ``labels`` (n,).

    Raises:
        ValueError: as in `predicted`.
    """
    return np.asarray(predicted(features, classifier) == labels)


def margin(features: Tensor, classifier: Tensor, labels: NDArray[np.int64]) -> float | None:
    """Return the mean cosine with an image's own class minus that with the best other class.

    It moves with every feature, of images and of text, long before an answer flips.

    Args:
        features: (n, D) unit image features.
        classifier: (classes, D) unit text features; rows of NaN are classes that can't win.
        labels: (n,) true classes, none of a row of NaN.

    Returns:
        The mean over images; None where there is only one class.
    """
    cosines = (features @ classifier.T).nan_to_num(nan=-torch.inf)
    own = torch.from_numpy(labels).unsqueeze(1)
    others = cosines.scatter(1, own, -torch.inf).amax(dim=1)
    mean = float((cosines.gather(1, own).squeeze(1) - others).mean())
    return mean if math.isfinite(mean) else None


def linear_probe(features: Tensor, labels: Tensor, classes: int, decay: float = 1e-3) -> Tensor:
    """Fit a multinomial logistic regression without bias on unit features.

    Args:
        features: (n, D) unit features of the labelled images.
        labels: (n,) int64.
        classes: number of classes.
        decay: weight of the squared weights in the loss.

    Returns:
        (classes, D) weights.
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
