"""Features of a dataset's classes and captions by a text tower."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.datasets.base import SPLITS, Dataset, Split
from zoo.loading.clip import ClipParts, UnseenWordsError, class_features

NAMED = 12  # unknown classes in a message
TEXTS = 256  # captions that are encoded at once


def text_classifier(parts: ClipParts, dataset: Dataset) -> tuple[Tensor, tuple[str, ...]]:
    """Return (classes, D) unit features of a dataset's classes, and the names left out, whose rows are NaN.

    With ``skip_unknown`` classes of words that the text tower never saw are left out, else a ValueError names them.
    """
    rows, unseen = [], dict[str, tuple[str, ...]]()
    for name in dataset.classes:
        try:
            rows.append(class_features(parts.model, parts.tokenizer, [name], dataset.templates)[0].cpu())
        except UnseenWordsError as error:
            unseen[name] = error.words
            rows.append(torch.full((parts.model.visual.output_dim,), torch.nan))
    if unseen and not dataset.skip_unknown:
        labels = np.concatenate([dataset.labels(name) for name in SPLITS])
        lost = np.isin(labels, [label for label, name in enumerate(dataset.classes) if name in unseen]).sum()
        some = [f"{name!r} ({', '.join(words)})" for name, words in unseen.items()][:NAMED]
        more = [f"and {len(unseen) - NAMED} more"] if len(unseen) > NAMED else []
        raise ValueError(
            f"{dataset.name}: {len(unseen)} of {len(dataset.classes)} classes, with {lost} of {len(labels)} images, "
            f"have words that the text tower never saw: {', '.join(some + more)}; take a model with a "
            "full vocabulary or other --templates, or leave the classes out: --skip-unknown-classes"
        )
    return torch.stack(rows), tuple(unseen)


@torch.inference_mode()
def caption_features(parts: ClipParts, texts: Sequence[str], where: str, device: str = "cpu") -> Tensor:
    """Encode texts without templates in batches on a device, (m, D) unit features on the CPU; errors name ``where``."""
    text, rows = parts.model.text, []
    text.to(device)
    for start in range(0, len(texts), TEXTS):
        tokens = parts.tokenizer(list(texts[start : start + TEXTS]))
        try:
            rows.append(parts.model.encode_text(tokens, normalize=True).float().cpu())
        except UnseenWordsError as error:
            raise UnseenWordsError(error.words[:NAMED], f"captions of {where}") from error
    text.cpu()
    return torch.cat(rows)


def nameable(split: Split, classifier: Tensor | None) -> Split:
    """Leave out the images of classes that ``classifier`` has no row for (rows of NaN)."""
    return split if classifier is None else split.subset(np.flatnonzero(named(classifier)[split.labels]))


def named(classifier: Tensor) -> NDArray[np.bool_]:
    """Tell which classes ``classifier`` has a row for, (classes,)."""
    return np.asarray(~classifier.isnan().any(dim=1).numpy())
