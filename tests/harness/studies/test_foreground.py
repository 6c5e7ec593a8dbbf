"""Linear probes of foreground against least squares and loops over sets of patches."""

from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from harness.datasets.base import Example
from harness.studies.foreground import (
    STRENGTHS,
    THRESHOLDS,
    fit_probes,
    iou,
    judge_foreground,
    true_foreground,
    with_ones,
)


def test_iou_is_that_of_sets_of_patches():
    predicted, truth = torch.rand(5, 9, 2) > 0.5, torch.rand(5, 9) > 0.5
    predicted[0], truth[0] = False, False
    found = iou(predicted, truth)
    assert found[0].tolist() == [1, 1]  # nothing is there, and nothing is found
    for image, candidate in np.ndindex(4, 2):
        own, true = (
            set(each.nonzero().flatten().tolist()) for each in (predicted[1 + image, :, candidate], truth[1 + image])
        )
        assert found[1 + image, candidate] == len(own & true) / len(own | true)


def test_probes_are_ridge_regressions_whose_strength_val_chooses():
    """By least squares with rows for the penalty, each strength and threshold tried in turn."""

    def parts(key: str, count: int) -> tuple[str, torch.Tensor, torch.Tensor]:
        x = torch.randn(count, 16, 6)
        return key, x, (x[..., 0] + 0.5 * torch.randn(count, 16)) > 0.8

    train, val = ([parts(key, 4) for key in ("dense", "row", "dense", "row")] for _ in range(2))
    probes = fit_probes(iter(train), iter(val))
    for key in ("dense", "row"):
        x = torch.cat([with_ones(x).flatten(0, 1) for name, x, _ in train if name == key]).double()
        y = torch.cat([2.0 * truth.flatten() - 1 for name, _, truth in train if name == key]).double()
        best = (-1.0, None)
        for strength in STRENGTHS:
            penalty = (len(x) * strength) ** 0.5 * torch.eye(7, dtype=torch.float64)[:6]
            weights = torch.linalg.lstsq(torch.cat((x, penalty)), torch.cat((y, y.new_zeros(6)))).solution
            for threshold in THRESHOLDS:
                moved = weights - threshold * torch.eye(7, dtype=torch.float64)[6]
                own = [iou(with_ones(x) @ moved.float()[:, None] > 0, truth) for name, x, truth in val if name == key]
                best = max(best, (float(torch.cat(own).mean()), moved), key=lambda one: one[0])
        assert torch.allclose(probes[key].double(), best[1], atol=1e-4)
    _, x, truth = val[1]
    judged = judge_foreground(probes, "dense", "row", x, truth)
    for column, key in enumerate(("dense", "row")):
        assert np.array_equal(judged[:, column], iou(with_ones(x) @ probes[key][:, None] > 0, truth)[:, 0])


def test_the_mask_is_seen_as_the_image_is():
    """Half a patch is enough; the normalisation at the end is undone."""
    mask = np.zeros((8, 8), dtype=bool)
    mask[:4, :2], mask[4, 4:] = True, True
    example = Example(image=Image.new("RGB", (8, 8)), label=0, image_id="a", mask=mask)

    tower = SimpleNamespace(grid=(2, 2), parameters=lambda: iter([torch.zeros(1)]))

    def preprocess(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 * 4 - 2

    assert true_foreground([example], preprocess, tower).tolist() == [[True, False, False, False]]
